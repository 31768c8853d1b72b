// Where blocks are that have been moved. FORMAT.md 7.3.

public import Units

/// The key of a forwarding table in its tree: what its first entry stands for.
public struct ForwardingKey: Hashable, Sendable {
    public var segment: SegmentIndex
    public var offset: SegmentOffset
    public var birth: BlockBirth

    public init(segment: SegmentIndex, offset: SegmentOffset, birth: BlockBirth) {
        self.segment = segment
        self.offset = offset
        self.birth = birth
    }

    public static let encodedLength = 16

    /// 16 bytes, each part big-endian, so that keys sort by segment, offset, birth.
    public var bytes: [UInt8] {
        let place = UInt64(segment.rawValue) << 32 | UInt64(offset.rawValue)
        return CatalogTree.key(CheckpointID(place)) + CatalogTree.key(CheckpointID(birth.rawValue))
    }

    /// Nil when it is no key of a table.
    public init?(_ key: [UInt8]) {
        guard key.count == Self.encodedLength, let place = CatalogTree.id(ofKey: Array(key[..<8])),
            let birth = CatalogTree.id(ofKey: Array(key[8...]))
        else { return nil }
        self.init(
            segment: SegmentIndex(place.rawValue >> 32), offset: SegmentOffset(UInt32(truncatingIfNeeded: place.rawValue)),
            birth: BlockBirth(birth.rawValue))
    }
}

/// Where one block of a segment has gone.
public struct ForwardingEntry: Hashable, Sendable {
    /// Where the block stood in its old segment, as pointers say.
    public var offset: SegmentOffset
    /// The block's birth, the same at both places.
    public var birth: BlockBirth
    public var newSegment: SegmentIndex
    public var newOffset: SegmentOffset
    public var newStoredLength: UInt32
    public var newChecksum: Hash128
    /// One that leaves, nodes and catalogs point to: 1 to 5.
    public var kind: BlockKind
    /// Runs: how the new block is stored. Others: raw.
    public var codec: RunCodec
    /// Runs: bit i is set when page i of the old run is in the new one, as the page whose number is how many lower bits are set. Other
    /// kinds: 1.
    public var kept: UInt16
    /// A subset of `kept`, not empty: the pages that leaves may still list. Other kinds: 1.
    public var live: UInt16

    public init(
        offset: SegmentOffset, birth: BlockBirth, newSegment: SegmentIndex, newOffset: SegmentOffset, newStoredLength: UInt32,
        newChecksum: Hash128, kind: BlockKind, codec: RunCodec, kept: UInt16, live: UInt16
    ) {
        self.offset = offset
        self.birth = birth
        self.newSegment = newSegment
        self.newOffset = newOffset
        self.newStoredLength = newStoredLength
        self.newChecksum = newChecksum
        self.kind = kind
        self.codec = codec
        self.kept = kept
        self.live = live
    }

    /// The entry that leads from the block that `old` points to, to the block of `new`.
    public init(from old: BlockPointer, to new: BlockPointer, kept: UInt16, live: UInt16) {
        precondition(old.birth == new.birth && old.kind == new.kind, "a block that moves stays what it is")
        self.init(
            offset: old.offset, birth: old.birth, newSegment: new.segment, newOffset: new.offset, newStoredLength: new.storedLength,
            newChecksum: new.checksum, kind: new.kind, codec: new.codec, kept: kept, live: live)
    }

    /// The pointer to the block where it is now.
    public var target: BlockPointer {
        BlockPointer(
            segment: newSegment, offset: newOffset, storedLength: newStoredLength, kind: kind, codec: codec, birth: birth,
            checksum: newChecksum)
    }

    /// Whether this stands before the place (`offset`, `birth`) in its segment.
    public func precedes(_ offset: SegmentOffset, _ birth: BlockBirth) -> Bool {
        (self.offset, self.birth.rawValue) < (offset, birth.rawValue)
    }
}

/// The entries of one segment, or part of them: a block of kind 11.
///
/// Invariant: 1 to 512 entries, strictly ascending by offset, then birth.
public struct ForwardingTable: Hashable, Sendable {
    /// The segment that pointers name.
    public var segment: SegmentIndex
    public var entries: [ForwardingEntry]

    public init(segment: SegmentIndex, entries: [ForwardingEntry]) {
        self.segment = segment
        self.entries = entries
    }

    static let fixedLength = 40
    static let entryLength = 48
    /// Entries of one table.
    public static let maximumEntries = 512
    public static let maximumLength = fixedLength + maximumEntries * entryLength

    /// Bytes of the block.
    public var encodedLength: Int { Self.fixedLength + entries.count * Self.entryLength }

    /// The key under which the table stands in its tree.
    public var key: ForwardingKey {
        guard let first = entries.first else { preconditionFailure("a table has entries") }
        return ForwardingKey(segment: segment, offset: first.offset, birth: first.birth)
    }

    /// The entry of the block that stood at `offset` and was written by `birth`. O(log n).
    public func entry(_ offset: SegmentOffset, _ birth: BlockBirth) -> ForwardingEntry? {
        let index = firstIndex(from: offset, birth)
        guard index < entries.count, entries[index].offset == offset, entries[index].birth == birth else { return nil }
        return entries[index]
    }

    /// The index of the first entry that is not before (`offset`, `birth`).
    public func firstIndex(from offset: SegmentOffset, _ birth: BlockBirth) -> Int {
        var (low, high) = (0, entries.count)
        while low < high {
            let middle = (low + high) / 2
            if entries[middle].precedes(offset, birth) { low = middle + 1 } else { high = middle }
        }
        return low
    }

    /// The sealed block. A table without entries or with too many is a programmer's mistake.
    public func encoded(birth: BlockBirth) -> [UInt8] {
        precondition((1...Self.maximumEntries).contains(entries.count), "a table has 1 to \(Self.maximumEntries) entries")
        var writer = ByteWriter(blockLength: encodedLength)
        writer.put(index: segment)
        writer.put(UInt32(entries.count))
        for entry in entries {
            writer.put(entry.offset.rawValue)
            writer.put(index: entry.newSegment)
            writer.put(entry.newOffset.rawValue)
            writer.put(entry.newStoredLength)
            writer.put(entry.birth)
            writer.put(entry.newChecksum)
            writer.put(entry.kind.rawValue)
            writer.put(entry.codec.rawValue)
            writer.put(entry.kept)
            writer.put(entry.live)
            writer.put(UInt16(0))
        }
        return writer.sealed(.forwardingTable, birth: birth)
    }

    /// Decodes a whole block and checks every field.
    ///
    /// - Throws: any code of `FormatError` but those of slots.
    public static func decode(_ bytes: RawSpan) throws(FormatError) -> ForwardingTable {
        try Block.checkHeader(bytes, kind: .forwardingTable, fixedLength: fixedLength)
        let count = bytes.u32(36)
        try check(count >= 1 && count <= maximumEntries, subject, "\(count) entries")
        try bytes.requireExactly(fixedLength + Int(count) * entryLength, subject)
        var entries: [ForwardingEntry] = []
        entries.reserveCapacity(Int(count))
        for index in 0..<Int(count) {
            let entry = try entry(bytes, at: fixedLength + index * entryLength)
            try check(entries.last.map { $0.precedes(entry.offset, entry.birth) } ?? true, subject, "its entries don't ascend")
            entries.append(entry)
        }
        return ForwardingTable(segment: SegmentIndex(UInt64(bytes.u32(32))), entries: entries)
    }

    private static func entry(_ bytes: RawSpan, at position: Int) throws(FormatError) -> ForwardingEntry {
        guard let kind = BlockKind(rawValue: bytes.u8(position + 40)), kind.isForwarded else {
            throw FormatError(.badField, subject: subject, reason: "a block of kind \(bytes.u8(position + 40)), which never moves")
        }
        guard let codec = RunCodec(rawValue: bytes.u8(position + 41)), kind == .run || codec == .raw else {
            throw FormatError(.badField, subject: subject, reason: "codec \(bytes.u8(position + 41)) of a \(kind)")
        }
        let entry = ForwardingEntry(
            offset: SegmentOffset(bytes.u32(position)), birth: BlockBirth(bytes.u64(position + 16)),
            newSegment: SegmentIndex(UInt64(bytes.u32(position + 4))), newOffset: SegmentOffset(bytes.u32(position + 8)),
            newStoredLength: bytes.u32(position + 12), newChecksum: bytes.hash(position + 24), kind: kind, codec: codec,
            kept: bytes.u16(position + 42), live: bytes.u16(position + 44))
        try check(
            entry.offset.int % blockAlignment == 0 && entry.offset.int >= SegmentHeader.encodedLength, subject,
            "a block that stood at offset \(entry.offset)")
        try entry.target.checkFields()
        try check(entry.live != 0 && entry.live & ~entry.kept == 0, subject, "pages \(entry.live) listed of \(entry.kept) kept")
        try check(kind == .run || entry.kept == 1, subject, "kept pages of a \(kind)")
        return entry
    }

    private static let subject = "forwarding table"
}
