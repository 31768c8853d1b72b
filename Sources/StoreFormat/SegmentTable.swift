// The segment table: what each segment holds and how far it is filled. FORMAT.md 7.
//
// Invariant: an entry that was never used is 32 zero bytes, and an absent leaf or subtree stands for such
// entries; a used segment has a class.

public import Units

/// What blocks a segment holds.
public enum SegmentClass: UInt8, Hashable, Sendable, CaseIterable, CustomStringConvertible {
    /// Page runs.
    case runs = 1
    /// Leaves, inner nodes, checkpoint records.
    case index
    /// Catalog and segment-table nodes.
    case catalog

    public var description: String {
        switch self {
        case .runs: "runs"
        case .index: "index"
        case .catalog: "catalog"
        }
    }

    /// The class of the segments that hold blocks of `kind`; nil for segment headers, which are in all.
    public init?(holding kind: BlockKind) {
        switch kind {
        case .run: self = .runs
        case .leaf, .patchLeaf, .inner, .checkpointRecord: self = .index
        case .catalogNode, .tableLeaf, .tableInner, .forwardingTable: self = .catalog
        case .segmentHeader, .commitRecord: return nil
        }
    }
}

/// The state of one segment.
public struct SegmentEntry: Hashable, Sendable {
    /// Used or free.
    public var isUsed: Bool
    /// What it holds, or held when it was last used; nil: never used.
    public var segmentClass: SegmentClass?
    /// Used: where the next writer appends, a multiple of the commit unit or the segment's size. Free: 0.
    public var committedLength: UInt32
    /// Runs: pages that leaves may still list. Others: bytes / 64 of reachable blocks. An upper bound.
    public var live: UInt32
    /// What was ever added to `live` since the segment became used: live / written is the living share.
    public var written: UInt32
    /// The last checkpoint, or generation, that wrote here.
    public var birth: BlockBirth
    /// Free: since which generation, 0 when never used.
    public var freedGeneration: Generation

    public init(
        isUsed: Bool, segmentClass: SegmentClass?, committedLength: UInt32, live: UInt32, written: UInt32, birth: BlockBirth,
        freedGeneration: Generation
    ) {
        self.isUsed = isUsed
        self.segmentClass = segmentClass
        self.committedLength = committedLength
        self.live = live
        self.written = written
        self.birth = birth
        self.freedGeneration = freedGeneration
    }

    /// A free segment that nothing was ever written to.
    public static let neverUsed = SegmentEntry(
        isUsed: false, segmentClass: nil, committedLength: 0, live: 0, written: 0, birth: BlockBirth(UInt64(0)),
        freedGeneration: Generation(UInt64(0)))

    static let encodedLength = 32

    func encode(into writer: inout ByteWriter) {
        writer.put(UInt8(isUsed ? 1 : 0))
        writer.put(segmentClass?.rawValue ?? 0)
        writer.put(UInt16(0))
        writer.put(committedLength)
        writer.put(live)
        writer.put(written)
        writer.put(birth)
        writer.put(freedGeneration)
    }

    static func decode(_ bytes: RawSpan, at position: Int, _ subject: String) throws(FormatError) -> SegmentEntry {
        let (state, classNumber) = (bytes.u8(position), bytes.u8(position + 1))
        try check(state <= 1, subject, "state \(state) of a segment")
        let segmentClass = SegmentClass(rawValue: classNumber)
        try check(classNumber == 0 || segmentClass != nil, subject, "class \(classNumber) of a segment")
        let entry = SegmentEntry(
            isUsed: state == 1, segmentClass: segmentClass, committedLength: bytes.u32(position + 4),
            live: bytes.u32(position + 8), written: bytes.u32(position + 12), birth: BlockBirth(bytes.u64(position + 16)),
            freedGeneration: Generation(bytes.u64(position + 24)))
        if entry.isUsed {
            try check(segmentClass != nil, subject, "a used segment without a class")
        } else {
            try check(entry.committedLength == 0, subject, "a free segment with a committed length")
            try check(entry.written == 0, subject, "a free segment with something written")
            try check(entry == .neverUsed || segmentClass != nil, subject, "a segment freed without a class")
        }
        return entry
    }
}

/// The arithmetic of the segment table.
public enum SegmentTable {
    /// Entries of a leaf, and children of an inner node.
    public static let fanout = 64
    /// The deepest table that 2^32 - 1 segments need.
    public static let maximumDepth: UInt8 = 5

    /// Segments that a leaf (level 0) or one inner node of `level` covers: 64^(level + 1).
    public static func segmentsPerNode(level: UInt8) -> UInt64 {
        precondition(level <= maximumDepth, "levels are 0...5")
        return 1 << (6 * (UInt64(level) + 1))
    }

    /// The index of the child that covers `segment` in an inner node of `level` (1...5).
    public static func childIndex(of segment: SegmentIndex, level: UInt8) -> Int {
        Int(segment.rawValue / segmentsPerNode(level: level - 1) % UInt64(fanout))
    }

    /// Throws `.misplaced` unless a node that begins with `found` is where one of `wanted` is looked for.
    static func checkPlace(_ found: SegmentIndex, _ wanted: SegmentIndex, _ subject: String) throws(FormatError) {
        if found != wanted {
            throw FormatError(
                .misplaced, subject: subject, reason: "it begins with segment \(found); wanted segment \(wanted)")
        }
    }

    static func firstSegment(_ bytes: RawSpan, level: UInt8, _ subject: String) throws(FormatError) -> SegmentIndex {
        let first = UInt64(bytes.u32(32))
        try check(
            first % segmentsPerNode(level: level) == 0, subject, "segment \(first) is no first one of level \(level)")
        return SegmentIndex(first)
    }
}

/// A leaf of the segment table.
public struct TableLeaf: Hashable, Sendable {
    /// A multiple of 64.
    public var firstSegment: SegmentIndex
    /// 64.
    public var entries: [SegmentEntry]

    public init(firstSegment: SegmentIndex, entries: [SegmentEntry]) {
        self.firstSegment = firstSegment
        self.entries = entries
    }

    static let fixedLength = 48
    /// Bytes of the block.
    public static let encodedLength = fixedLength + SegmentTable.fanout * SegmentEntry.encodedLength

    /// The sealed block. Another number of entries than 64 is a programmer's mistake.
    public func encoded(birth: BlockBirth) -> [UInt8] {
        precondition(entries.count == SegmentTable.fanout, "a table leaf has \(SegmentTable.fanout) entries")
        var writer = ByteWriter(blockLength: Self.encodedLength)
        writer.put(index: firstSegment)
        writer.put(UInt16(entries.count))
        writer.pad(to: Self.fixedLength)
        for entry in entries { entry.encode(into: &writer) }
        return writer.sealed(.tableLeaf, birth: birth)
    }

    /// Decodes a whole block and checks every field.
    ///
    /// - Throws: any code of `FormatError` but those of slots.
    public static func decode(_ bytes: RawSpan) throws(FormatError) -> TableLeaf {
        try Block.checkHeader(bytes, kind: .tableLeaf, fixedLength: fixedLength)
        try check(bytes.u16(36) == SegmentTable.fanout, subject, "\(bytes.u16(36)) entries")
        try bytes.requireExactly(encodedLength, subject)
        let first = try SegmentTable.firstSegment(bytes, level: 0, subject)
        var entries: [SegmentEntry] = []
        entries.reserveCapacity(SegmentTable.fanout)
        for i in 0..<SegmentTable.fanout {
            entries.append(try SegmentEntry.decode(bytes, at: fixedLength + i * SegmentEntry.encodedLength, subject))
        }
        return TableLeaf(firstSegment: first, entries: entries)
    }

    /// Throws `.misplaced` unless the leaf begins with `firstSegment`.
    public func checkPlace(firstSegment: SegmentIndex) throws(FormatError) {
        try SegmentTable.checkPlace(self.firstSegment, firstSegment, Self.subject)
    }

    private static let subject = "segment-table leaf"
}

/// An inner node of the segment table.
public struct TableInner: Hashable, Sendable {
    /// A multiple of 64^(level + 1).
    public var firstSegment: SegmentIndex
    /// 1: children are leaves; else inner nodes of one level less. At most 5.
    public var level: UInt8
    /// 64 places; nil: free segments that were never used.
    public var children: [BlockPointer?]

    public init(firstSegment: SegmentIndex, level: UInt8, children: [BlockPointer?]) {
        self.firstSegment = firstSegment
        self.level = level
        self.children = children
    }

    static let fixedLength = 48
    /// Bytes of a node with so many children.
    public static func encodedLength(children: Int) -> Int { fixedLength + children * BlockPointer.encodedLength }
    /// The longest node: all children present.
    public static let maximumLength = fixedLength + SegmentTable.fanout * BlockPointer.encodedLength

    /// The sealed block. A node without 64 places or without a child is a programmer's mistake.
    public func encoded(birth: BlockBirth) -> [UInt8] {
        precondition(children.count == SegmentTable.fanout, "a table node has \(SegmentTable.fanout) child places")
        let present = children.compactMap(\.self)
        precondition(!present.isEmpty, "a table node without children is the null pointer")
        var writer = ByteWriter(blockLength: Self.fixedLength + present.count * BlockPointer.encodedLength)
        writer.put(index: firstSegment)
        writer.put(level)
        writer.put(UInt8(0))
        writer.put(UInt16(present.count))
        writer.put(bitmap(of: children))
        for child in present { writer.put(child) }
        return writer.sealed(.tableInner, birth: birth)
    }

    /// Decodes a whole block and checks every field.
    ///
    /// - Throws: any code of `FormatError` but those of slots.
    public static func decode(_ bytes: RawSpan) throws(FormatError) -> TableInner {
        try Block.checkHeader(bytes, kind: .tableInner, fixedLength: fixedLength)
        let level = bytes.u8(36)
        try check(level >= 1 && level <= SegmentTable.maximumDepth, subject, "level \(level)")
        return TableInner(
            firstSegment: try SegmentTable.firstSegment(bytes, level: level, subject), level: level,
            children: try sparseChildren(
                bytes, bitmapAt: 40, places: SegmentTable.fanout, count: Int(bytes.u16(38)),
                kinds: level == 1 ? [.tableLeaf] : [.tableInner], subject: subject))
    }

    /// Throws `.misplaced` unless the node begins with `firstSegment` and is of `level`.
    public func checkPlace(firstSegment: SegmentIndex, level: UInt8) throws(FormatError) {
        try SegmentTable.checkPlace(self.firstSegment, firstSegment, Self.subject)
        guard self.level == level else {
            throw FormatError(.misplaced, subject: Self.subject, reason: "level \(self.level); wanted \(level)")
        }
    }

    private static let subject = "segment-table inner node"
}
