// What a checkpoint record says of one region. FORMAT.md 6.1.
//
// Invariant: key and depth are functions of name and length, and the root fits the depth.

import PageCodec
public import Units

/// What a region holds.
public enum RegionKind: UInt8, Hashable, Sendable, CaseIterable, CustomStringConvertible, Codable {
    /// Guest memory; a multiple of the page size.
    case memory = 1
    /// The contents of a disk.
    case disk
    /// The state of devices or a process, opaque to the store.
    case state

    /// The usual word: "memory", "disk", "state".
    public var name: String {
        switch self {
        case .memory: "memory"
        case .disk: "disk"
        case .state: "state"
        }
    }

    public var description: String { name }

    /// The kind of that name; nil for none.
    public init?(name: some StringProtocol) {
        guard let kind = Self.allCases.first(where: { $0.name == name }) else { return nil }
        self = kind
    }

    public init(from decoder: any Decoder) throws {
        let name = try decoder.singleValueContainer().decode(String.self)
        guard let kind = RegionKind(name: name) else {
            throw DecodingError.dataCorrupted(
                .init(codingPath: decoder.codingPath, debugDescription: "no kind of region: \(name)"))
        }
        self = kind
    }

    public func encode(to encoder: any Encoder) throws {
        var container = encoder.singleValueContainer()
        try container.encode(name)
    }
}

/// A region of a checkpoint.
public struct RegionRecord: Hashable, Sendable {
    public var name: String
    public var kind: RegionKind
    /// Levels of inner nodes of its page-table tree.
    public var depth: UInt8
    /// For memory a multiple of the page size; at most 2^63.
    public var byteLength: ByteCount
    /// `regionKey(name)`.
    public var key: RegionKey
    /// A leaf or patch leaf when `depth` is 0, else an inner node; nil: all zero.
    public var root: BlockPointer?
    /// Pages that are not zero.
    public var storedPages: PageCount
    /// Pages that this checkpoint stored.
    public var newPages: PageCount

    public init(
        name: String, kind: RegionKind, depth: UInt8, byteLength: ByteCount, key: RegionKey, root: BlockPointer?,
        storedPages: PageCount, newPages: PageCount
    ) {
        self.name = name
        self.kind = kind
        self.depth = depth
        self.byteLength = byteLength
        self.key = key
        self.root = root
        self.storedPages = storedPages
        self.newPages = newPages
    }

    /// Pages of the region, the last one perhaps partly used.
    public var pageCount: PageCount { PageCount(covering: byteLength) }

    static let fixedLength = 80

    /// Bytes in the record.
    public var encodedLength: Int { Self.fixedLength + name.utf8.count }

    /// Throws `.badField` unless the region keeps every rule of the format.
    public func check() throws(FormatError) {
        let subject = "region"
        try Names.check(name, subject: subject)
        try StoreFormat.check(
            byteLength <= PageTree.maximumByteLength, subject, "\(byteLength) bytes, at most 2^63 allowed")
        try StoreFormat.check(
            kind != .memory || byteLength.rawValue % UInt64(pageSize) == 0, subject,
            "\(byteLength) bytes of memory, not a multiple of \(pageSize)")
        try StoreFormat.check(key == regionKey(name), subject, "its key is not that of its name")
        try StoreFormat.check(
            depth == PageTree.depth(pageCount: pageCount), subject, "depth \(depth) for \(byteLength) bytes")
        try StoreFormat.check(
            storedPages <= pageCount, subject, "\(storedPages) stored pages of \(pageCount)")
        guard let root else {
            return try StoreFormat.check(storedPages == .zero, subject, "stored pages, but no root")
        }
        try StoreFormat.check(pageCount > .zero, subject, "a root, but no pages")
        let fits = depth == 0 ? root.kind == .leaf || root.kind == .patchLeaf : root.kind == .inner
        try StoreFormat.check(fits, subject, "depth \(depth), but its root is a \(root.kind)")
    }

    func encode(into writer: inout ByteWriter) {
        writer.put(UInt16(name.utf8.count))
        writer.put(kind.rawValue)
        writer.put(depth)
        writer.put(UInt32(0))
        writer.put(byteLength)
        writer.put(key)
        writer.put(root)
        writer.put(storedPages)
        writer.put(newPages)
        writer.put(name.utf8)
    }

    /// Decodes the region at `position` and moves behind it; the fields' rules are `check`'s.
    static func decode(_ bytes: RawSpan, at position: inout Int) throws(FormatError) -> RegionRecord {
        let (subject, start) = ("region", position)
        try bytes.require(start + fixedLength, subject)
        let nameLength = Int(bytes.u16(start))
        try bytes.require(start + fixedLength + nameLength, subject)
        guard let kind = RegionKind(rawValue: bytes.u8(start + 2)) else {
            throw FormatError(.badField, subject: subject, reason: "kind \(bytes.u8(start + 2))")
        }
        position = start + fixedLength + nameLength
        return RegionRecord(
            name: try bytes.text(start + fixedLength, count: nameLength, subject), kind: kind, depth: bytes.u8(start + 3),
            byteLength: ByteCount(bytes.u64(start + 8)), key: RegionKey(bytes.u64(start + 16)),
            root: try BlockPointer.decode(bytes, at: start + 24), storedPages: PageCount(bytes.u64(start + 64)),
            newPages: PageCount(bytes.u64(start + 72)))
    }
}
