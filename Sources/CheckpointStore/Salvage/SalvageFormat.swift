// What salvage reads of compaction: forwarding tables, and the commit records behind moved blocks.
//
// Invariant: bytes whose checksum is wrong are nobody's table or record.

import PageCodec
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
    private static let tableMagic: UInt32 = 0x5446_4B43
    private static let longestTable = 24616
    private static let fixedLength = 40
    private static let entryLength = 48

    /// The length of the forwarding table that the 32 bytes of a block header announce; nil when they announce something else.
    static func tableLength(_ header: RawSpan) -> Int? {
        guard header.byteCount >= BlockHeader.encodedLength, word(header, 16) == tableMagic else { return nil }
        let length = Int(word(header, 20))
        return length > fixedLength && length <= longestTable && (length - fixedLength) % entryLength == 0 ? length : nil
    }

    /// The entries of a forwarding table and the generation that wrote it; nil when the bytes are no sound table. An entry that says
    /// what can't be is left out.
    static func table(_ bytes: RawSpan) -> (generation: Generation, entries: [ForwardedBlock])? {
        guard let length = tableLength(bytes), bytes.byteCount == length else { return nil }
        guard hash128(bytes.extracting(16..<length)) == Hash128(low: long(bytes, 0), high: long(bytes, 8)) else { return nil }
        let segment = SegmentIndex(UInt64(word(bytes, 32)))
        let count = (length - fixedLength) / entryLength
        guard Int(word(bytes, 36)) == count else { return nil }
        let entries = (0..<count).compactMap { number -> ForwardedBlock? in
            let at = fixedLength + number * entryLength
            let (kinds, masks) = (word(bytes, at + 40), word(bytes, at + 44))
            guard let codec = RunCodec(rawValue: UInt8(truncatingIfNeeded: kinds >> 8)), masks >> 16 == 0 else { return nil }
            return ForwardedBlock(
                segment: segment, offset: SegmentOffset(word(bytes, at)), birth: BlockBirth(long(bytes, at + 16)),
                newSegment: SegmentIndex(UInt64(word(bytes, at + 4))), newOffset: SegmentOffset(word(bytes, at + 8)),
                newStoredLength: word(bytes, at + 12), newChecksum: Hash128(low: long(bytes, at + 24), high: long(bytes, at + 32)),
                codec: codec, kept: UInt16(truncatingIfNeeded: kinds >> 16))
        }
        return (Generation(long(bytes, 24)), entries)
    }

    /// The blocks that a commit record vouches for when it is compaction's, which names no checkpoint's record: where they start and
    /// end. Nil for any other block. The bytes are those of a block that `Block.peek` has found sound.
    static func movedBlocks(_ record: RawSpan, in segment: SegmentIndex) -> Range<SegmentOffset>? {
        let recordLength = 88
        guard record.byteCount == recordLength, (0..<5).allSatisfy({ long(record, 32 + 8 * $0) == 0 }),
            UInt64(word(record, 72)) == segment.rawValue, word(record, 76) < word(record, 80)
        else { return nil }
        return SegmentOffset(word(record, 76))..<SegmentOffset(word(record, 80))
    }

    private static func word(_ bytes: RawSpan, _ at: Int) -> UInt32 {
        UInt32(littleEndian: unsafe bytes.unsafeLoadUnaligned(fromByteOffset: at, as: UInt32.self))
    }

    private static func long(_ bytes: RawSpan, _ at: Int) -> UInt64 {
        UInt64(littleEndian: unsafe bytes.unsafeLoadUnaligned(fromByteOffset: at, as: UInt64.self))
    }
}
