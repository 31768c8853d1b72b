// Nodes of the two catalog trees, and the values of the tree by id. FORMAT.md 6.2.
//
// Invariant: entries ascend strictly by key, bytewise; a leaf's entries have values, an inner node's have
// children; keys and values have the lengths that the tree fixes.

public import Units

/// Which of the copy-on-write trees that catalog nodes make up.
public enum CatalogTree: UInt8, Hashable, Sendable, CaseIterable, CustomStringConvertible {
    /// Key: the id, big-endian. Value: a `CatalogValue`.
    case byID = 1
    /// Key: the name. Value: the id, little-endian.
    case byName
    /// Checkpoints and tombstones, their children, and names that move; see `LineageKey`.
    case lineage
    /// Key: segment, offset, birth of the first entry of a table. Value: a pointer to the table.
    case forwarding

    public var description: String {
        switch self {
        case .byID: "by id"
        case .byName: "by name"
        case .lineage: "lineage"
        case .forwarding: "forwarding"
        }
    }

    /// The key of `id` in the tree by id: 8 bytes, the most significant first, so that keys sort as ids do.
    public static func key(_ id: CheckpointID) -> [UInt8] {
        (0..<8).map { UInt8(truncatingIfNeeded: id.rawValue >> (56 - 8 * $0)) }
    }

    /// The id of a key of the tree by id; nil when it is not 8 bytes.
    public static func id(ofKey key: [UInt8]) -> CheckpointID? {
        guard key.count == 8 else { return nil }
        return CheckpointID(key.reduce(UInt64(0)) { $0 << 8 | UInt64($1) })
    }

    /// The key of `name` in the tree by name.
    public static func key(_ name: String) -> [UInt8] { [UInt8](name.utf8) }

    /// The value of `id` in the tree by name: 8 bytes, the least significant first.
    public static func value(_ id: CheckpointID) -> [UInt8] { key(id).reversed() }

    /// The id of a value of the tree by name; nil when it is not 8 bytes.
    public static func id(ofValue value: [UInt8]) -> CheckpointID? { id(ofKey: value.reversed()) }

    var keyLengths: ClosedRange<Int> {
        switch self {
        case .byID: 8...8
        case .byName: 1...Names.maximumLength
        case .lineage: 9...LineageKey.maximumLength
        case .forwarding: ForwardingKey.encodedLength...ForwardingKey.encodedLength
        }
    }
    /// Nil: it depends on the key.
    var valueLength: Int? {
        switch self {
        case .byID: CatalogValue.encodedLength
        case .byName: 8
        case .lineage: nil
        case .forwarding: BlockPointer.encodedLength
        }
    }
}

/// A node of a catalog tree.
public struct CatalogNode: Hashable, Sendable {
    /// What an entry leads to.
    public enum Payload: Hashable, Sendable {
        case leaf([UInt8])
        case child(BlockPointer)
    }

    /// A key and what it leads to.
    public struct Entry: Hashable, Sendable {
        public var key: [UInt8]
        public var payload: Payload

        public init(key: [UInt8], payload: Payload) {
            self.key = key
            self.payload = payload
        }

        /// Bytes in the node.
        public var encodedLength: Int {
            switch payload {
            case .leaf(let value): 4 + key.count + value.count
            case .child: 4 + key.count + BlockPointer.encodedLength
            }
        }
    }

    public var tree: CatalogTree
    /// 0: a leaf. At most 15.
    public var level: UInt8
    /// At least one; keys strictly ascending bytewise.
    public var entries: [Entry]

    public init(tree: CatalogTree, level: UInt8, entries: [Entry]) {
        self.tree = tree
        self.level = level
        self.entries = entries
    }

    static let fixedLength = 40
    /// The longest node; what does not fit must be split.
    public static let maximumLength = 4096
    /// The highest level of a root.
    public static let maximumLevel: UInt8 = 15

    /// Bytes of the block.
    public var encodedLength: Int { Self.fixedLength + entries.reduce(0) { $0 + $1.encodedLength } }

    /// The sealed block. A node that is too long, empty, or of mixed payloads is a programmer's mistake.
    public func encoded(birth: BlockBirth) -> [UInt8] {
        precondition(!entries.isEmpty, "an empty catalog node is the null pointer")
        var writer = ByteWriter(blockLength: encodedLength)
        writer.put(tree.rawValue)
        writer.put(level)
        writer.put(UInt16(entries.count))
        writer.put(UInt32(0))
        for entry in entries {
            writer.put(UInt16(entry.key.count))
            switch entry.payload {
            case .leaf(let value):
                precondition(level == 0, "a value in an inner node")
                writer.put(UInt16(value.count))
                writer.put(entry.key)
                writer.put(value)
            case .child(let child):
                precondition(level > 0, "a child in a leaf")
                writer.put(UInt16(0))
                writer.put(entry.key)
                writer.put(child)
            }
        }
        return writer.sealed(.catalogNode, birth: birth)
    }

    /// Decodes a whole block and checks every field.
    ///
    /// - Throws: any code of `FormatError` but those of slots.
    public static func decode(_ bytes: RawSpan) throws(FormatError) -> CatalogNode {
        try Block.checkHeader(bytes, kind: .catalogNode, fixedLength: fixedLength)
        guard let tree = CatalogTree(rawValue: bytes.u8(32)) else {
            throw FormatError(.badField, subject: subject, reason: "tree \(bytes.u8(32))")
        }
        let (level, count) = (bytes.u8(33), Int(bytes.u16(34)))
        try check(level <= maximumLevel, subject, "level \(level)")
        try check(count >= 1, subject, "no entries")
        var entries: [Entry] = []
        var position = fixedLength
        for _ in 0..<count {
            let entry = try entry(bytes, at: &position, tree: tree, level: level)
            try check(
                entries.last.map { $0.key.lexicographicallyPrecedes(entry.key) } ?? true, subject,
                "its keys don't ascend")
            entries.append(entry)
        }
        try bytes.requireExactly(position, subject)
        return CatalogNode(tree: tree, level: level, entries: entries)
    }

    /// Throws `.misplaced` unless the node is one of `level` of `tree`.
    public func checkPlace(tree: CatalogTree, level: UInt8) throws(FormatError) {
        guard self.tree == tree, self.level == level else {
            throw FormatError(
                .misplaced, subject: Self.subject,
                reason: "it belongs to the tree \(self.tree), level \(self.level); wanted \(tree), level \(level)")
        }
    }

    private static let subject = "catalog node"

    private static func entry(_ bytes: RawSpan, at position: inout Int, tree: CatalogTree, level: UInt8)
        throws(FormatError) -> Entry
    {
        try bytes.require(position + 4, subject)
        let keyLength = Int(bytes.u16(position))
        let payloadLength = level == 0 ? Int(bytes.u16(position + 2)) : BlockPointer.encodedLength
        let (keyStart, payloadStart) = (position + 4, position + 4 + keyLength)
        try bytes.require(payloadStart + payloadLength, subject)
        position = payloadStart + payloadLength
        let key = bytes.copy(keyStart, count: keyLength)
        if level > 0 {
            try check(keyLength <= tree.keyLengths.upperBound, subject, "a key of \(keyLength) bytes \(tree)")
            let child = try BlockPointer.decode(bytes, at: payloadStart, kinds: [.catalogNode], subject: subject)
            return Entry(key: key, payload: .child(child))
        }
        try check(tree.keyLengths.contains(keyLength), subject, "a key of \(keyLength) bytes \(tree)")
        try check(tree.valueLength.map { $0 == payloadLength } ?? true, subject, "a value of \(payloadLength) bytes \(tree)")
        let value = bytes.copy(payloadStart, count: payloadLength)
        switch tree {
        case .byID:
            try check(key.contains { $0 != 0 }, subject, "id 0")
            let value = try CatalogValue.decode(bytes.extracting(payloadStart..<position))
            try check(CatalogTree.key(CheckpointID(value.record.birth.rawValue)) == key, subject, "a record of another id")
        case .byName:
            try check(value.contains { $0 != 0 }, subject, "id 0")
            try Names.check(try bytes.text(keyStart, count: keyLength, subject), subject: subject)
        case .lineage: _ = try LineageEntry.decode(key: key, value: value)
        case .forwarding:
            try check(ForwardingKey(key) != nil, subject, "a key that no forwarding table has")
            _ = try BlockPointer.decode(bytes, at: payloadStart, kinds: [.forwardingTable], subject: subject)
        }
        return Entry(key: key, payload: .leaf(value))
    }
}

/// The value of the catalog by id: where a checkpoint's record is, and since when.
public struct CatalogValue: Hashable, Sendable {
    /// A checkpoint record.
    public var record: BlockPointer
    /// The generation in which it was committed.
    public var generation: Generation
    /// 0 in version 1.
    public var flags: UInt32

    public init(record: BlockPointer, generation: Generation, flags: UInt32 = 0) {
        self.record = record
        self.generation = generation
        self.flags = flags
    }

    public static let encodedLength = 56

    /// The 56 bytes of the value; it stands in a node and has no header of its own.
    public func encoded() -> [UInt8] {
        var writer = ByteWriter(length: Self.encodedLength)
        writer.put(record)
        writer.put(generation)
        writer.put(flags)
        writer.put(UInt32(0))
        return writer.bytes
    }

    /// Decodes exactly 56 bytes.
    ///
    /// - Throws: `.truncated`, `.wrongLength`, `.badField`.
    public static func decode(_ bytes: RawSpan) throws(FormatError) -> CatalogValue {
        let subject = "catalog value"
        try bytes.requireExactly(encodedLength, subject)
        try check(bytes.u64(40) >= 1, subject, "generation 0")
        try check(bytes.u32(48) == 0, subject, "flags \(bytes.u32(48)), which version 1 does not have")
        return CatalogValue(
            record: try BlockPointer.decode(bytes, at: 0, kinds: [.checkpointRecord], subject: subject),
            generation: Generation(bytes.u64(40)), flags: bytes.u32(48))
    }

    /// Decodes exactly 56 bytes, as an entry of a catalog leaf holds them.
    public static func decode(_ bytes: [UInt8]) throws(FormatError) -> CatalogValue {
        try unsafe decode(bytes.span.bytes)
    }
}
