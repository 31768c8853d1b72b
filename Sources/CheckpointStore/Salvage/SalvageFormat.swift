// What salvage reads of compaction: forwarding tables, and the commit records behind moved blocks.
//
// Invariant: bytes whose checksum is wrong are nobody's table or record.

import StoreFormat
import Units

/// Where a block that compaction moved has gone.
struct ForwardedBlock: Sendable {
    /// The place that pointers name.
    var segment: SegmentIndex
    var offset: SegmentOffset
    var birth: BlockBirth
    var newSegment: SegmentIndex
    var newOffset: SegmentOffset
    var newStoredLength: UInt32
    var newChecksum: Hash128
    var codec: RunCodec
    /// Runs: bit i: page i of the old run is in the new one, as its page number (bits below i).
    var kept: UInt16
}

/// What compaction leaves in segments.
enum CompactionMarks {
    /// The entries of a forwarding table and the generation that wrote it; nil when the bytes are no sound table.
    static func table(_ bytes: RawSpan) -> (generation: Generation, entries: [ForwardedBlock])? {
        guard let header = try? Block.peek(bytes), let table = try? ForwardingTable.decode(bytes) else { return nil }
        let entries = table.entries.map { entry in
            ForwardedBlock(
                segment: table.segment, offset: entry.offset, birth: entry.birth, newSegment: entry.newSegment, newOffset: entry.newOffset,
                newStoredLength: entry.newStoredLength, newChecksum: entry.newChecksum, codec: entry.codec, kept: entry.kept)
        }
        return (Generation(header.birth.rawValue), entries)
    }

    /// The blocks that a commit record vouches for when it is compaction's, which names no checkpoint's record: where they start and
    /// end. Nil for any other record.
    static func movedBlocks(_ record: CommitRecord?, in segment: SegmentIndex) -> Range<SegmentOffset>? {
        guard let record, record.record == nil, record.segment == segment else { return nil }
        return record.firstOffset..<record.endOffset
    }
}
