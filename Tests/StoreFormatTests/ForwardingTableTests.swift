// Forwarding tables: the layout byte by byte, random ones, and what no table may say.

import StoreFormat
import Testing
import Units

@Suite struct `Forwarding tables` {
    private static let table = ForwardingTable(
        segment: SegmentIndex(0x0102_0304),
        entries: [
            ForwardingEntry(
                offset: SegmentOffset(UInt32(128)), birth: BlockBirth(UInt64(0x1112_1314_1516_1718)), newSegment: SegmentIndex(9),
                newOffset: SegmentOffset(UInt32(4096)), newStoredLength: 700, newChecksum: Samples.hash(0x20), kind: .run, codec: .lz4,
                kept: 0x8005, live: 0x8001),
            ForwardingEntry(
                offset: SegmentOffset(UInt32(192)), birth: BlockBirth(UInt64(5)), newSegment: SegmentIndex(10),
                newOffset: SegmentOffset(UInt32(128)), newStoredLength: 1000, newChecksum: Samples.hash(0x40), kind: .leaf, codec: .raw,
                kept: 1, live: 1),
        ])

    /// Everything behind the header, as FORMAT.md 7.3 lays it out.
    private static let body: [UInt8] =
        [4, 3, 2, 1, 2, 0, 0, 0]
        + [128, 0, 0, 0, 9, 0, 0, 0, 0, 16, 0, 0, 0xBC, 2, 0, 0, 0x18, 0x17, 0x16, 0x15, 0x14, 0x13, 0x12, 0x11]
        + (0x20..<0x30) + [1, 1, 5, 0x80, 1, 0x80, 0, 0]
        + [192, 0, 0, 0, 10, 0, 0, 0, 128, 0, 0, 0, 0xE8, 3, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0]
        + (0x40..<0x50) + [2, 0, 1, 0, 1, 0, 0, 0]

    @Test func `a sample has its pinned bytes, and these are the sample`() throws {
        let bytes = Self.table.encoded(birth: BlockBirth(UInt64(43)))
        #expect(Array(bytes[32...]) == Self.body)
        #expect(Array(bytes[16..<24]) == Array("CKFT".utf8) + [136, 0, 0, 0])
        #expect(unsafe try ForwardingTable.decode(bytes.span.bytes) == Self.table)
        #expect(Self.table.key.bytes == [1, 2, 3, 4, 0, 0, 0, 128, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18])
        #expect(ForwardingKey(Self.table.key.bytes) == Self.table.key)
        #expect(BlockKind.forwardingTable.maximumLength == 24616)
    }

    @Test func `random tables survive a round trip and find each of their entries`() throws {
        var random = SeededRandom()
        for round in 0..<100 {
            let table = random.forwardingTable()
            let bytes = table.encoded(birth: BlockBirth(random.next()))
            #expect(unsafe try ForwardingTable.decode(bytes.span.bytes) == table, "seed \(random.seed), round \(round)")
            for entry in table.entries { #expect(table.entry(entry.offset, entry.birth) == entry) }
            let last = table.entries[table.entries.count - 1]
            #expect(table.entry(last.offset, BlockBirth(last.birth.rawValue &+ 1)) == nil, "seed \(random.seed)")
        }
    }

    @Test func `what no table may say is refused`() {
        /// Sets bytes behind the header and expects the code that decoding throws.
        func refused(_ at: Int, _ value: [UInt8], _ code: FormatError.Code, _ what: Comment) {
            var bytes = Self.table.encoded(birth: BlockBirth(UInt64(43)))
            bytes.replaceSubrange(32 + at..<32 + at + value.count, with: value)
            do {
                _ = unsafe try ForwardingTable.decode(bytes.span.bytes)
                Issue.record(what)
            } catch { #expect((error as FormatError).code == code, what) }
        }
        refused(4, [0, 0], .badField, "no entries")
        refused(4, [1, 2], .badField, "513 entries")
        refused(4, [3, 0], .truncated, "more entries than bytes")
        refused(8, [64], .badField, "a block within the segment's header")
        refused(8, [129], .badField, "an offset that is no multiple of 64")
        refused(8, [192, 0, 0, 0], .badField, "entries that don't ascend")
        refused(16, [1], .badField, "a new offset that is no multiple of 64")
        refused(20, [0xFF, 0xFF, 0xFF], .wrongLength, "a run that is too long")
        refused(48, [6], .badField, "a catalog node, which never moves")
        refused(49, [2], .badField, "an unknown codec")
        refused(52, [0, 0], .badField, "nothing that lives")
        refused(52, [2, 0], .badField, "a living page that is not kept")
        refused(97, [1], .badField, "a codec of a leaf")
        refused(98, [3, 0], .badField, "pages of a leaf")
    }
}

extension SeededRandom {
    /// A table of 1 to 512 entries.
    mutating func forwardingTable() -> ForwardingTable {
        let count = 1 + below(below(8) == 0 ? ForwardingTable.maximumEntries : 20)
        let kinds: [BlockKind] = [.run, .leaf, .patchLeaf, .inner, .checkpointRecord]
        let entries = ascending(count, below: 100_000).map { place in
            let target = pointer(kinds[below(kinds.count)])
            let kept = target.kind == .run ? UInt16(1 + below(65535)) : 1
            let live = target.kind == .run ? kept & UInt16(truncatingIfNeeded: next()) : 1
            return ForwardingEntry(
                offset: SegmentOffset(128 + place * 64), birth: target.birth, newSegment: target.segment, newOffset: target.offset,
                newStoredLength: target.storedLength, newChecksum: target.checksum, kind: target.kind, codec: target.codec, kept: kept,
                live: live == 0 ? kept : live)
        }
        return ForwardingTable(segment: SegmentIndex(next() >> 32), entries: entries)
    }
}
