// The kinds of blocks, with what the format fixes for each: number, magic, longest form.
//
// Invariant: the table is that of FORMAT.md 2.3 and registry.md; numbers and magics are never reused.

/// What a block is.
public enum BlockKind: UInt8, Hashable, Sendable, CaseIterable, CustomStringConvertible {
    case run = 1
    case leaf
    case patchLeaf
    case inner
    case checkpointRecord
    case catalogNode
    case tableLeaf
    case tableInner
    case segmentHeader
    case commitRecord
    case forwardingTable

    /// The four ASCII characters that mark the kind on the medium, as a little-endian integer.
    public var magic: UInt32 {
        switch self {
        case .run: Self.magic("CKRN")
        case .leaf: Self.magic("CKLF")
        case .patchLeaf: Self.magic("CKPL")
        case .inner: Self.magic("CKIN")
        case .checkpointRecord: Self.magic("CKCP")
        case .catalogNode: Self.magic("CKBT")
        case .tableLeaf: Self.magic("CKTL")
        case .tableInner: Self.magic("CKTI")
        case .segmentHeader: Self.magic("CKSG")
        case .commitRecord: Self.magic("CKCM")
        case .forwardingTable: Self.magic("CKFT")
        }
    }

    /// The kind whose magic this is; nil for none.
    public init?(magic: UInt32) {
        guard let kind = Self.allCases.first(where: { $0.magic == magic }) else { return nil }
        self = kind
    }

    /// The usual noun, for messages: "full leaf".
    public var name: String {
        switch self {
        case .run: "page run"
        case .leaf: "full leaf"
        case .patchLeaf: "patch leaf"
        case .inner: "inner node"
        case .checkpointRecord: "checkpoint record"
        case .catalogNode: "catalog node"
        case .tableLeaf: "segment-table leaf"
        case .tableInner: "segment-table inner node"
        case .segmentHeader: "segment header"
        case .commitRecord: "commit record"
        case .forwardingTable: "forwarding table"
        }
    }

    public var description: String { name }

    /// The most bytes that a block of this kind can have, header included: what a reader must be ready for.
    public var maximumLength: Int {
        switch self {
        case .run: PageRunHeader.maximumLength
        case .leaf: Leaf.maximumLength
        case .patchLeaf: PatchLeaf.maximumLength
        case .inner: InnerNode.maximumLength
        case .checkpointRecord: CheckpointRecord.maximumLength
        case .catalogNode: CatalogNode.maximumLength
        case .tableLeaf: TableLeaf.encodedLength
        case .tableInner: TableInner.maximumLength
        case .segmentHeader: SegmentHeader.encodedLength
        case .commitRecord: CommitRecord.maximumLength
        case .forwardingTable: ForwardingTable.maximumLength
        }
    }

    /// Whether pointers may name blocks of this kind; segment headers and commit records are found by scans only.
    public var isPointedTo: Bool { self != .segmentHeader && self != .commitRecord }

    /// Whether blocks of this kind may be moved: those that checkpoints are made of. All others are written anew instead.
    public var isForwarded: Bool {
        switch self {
        case .run, .leaf, .patchLeaf, .inner, .checkpointRecord: true
        case .catalogNode, .tableLeaf, .tableInner, .segmentHeader, .commitRecord, .forwardingTable: false
        }
    }

    private static func magic(_ text: StaticString) -> UInt32 {
        unsafe UnsafeRawPointer(text.utf8Start).loadUnaligned(as: UInt32.self).littleEndian
    }
}

/// How the payload of a page run is stored.
public enum RunCodec: UInt8, Hashable, Sendable, CaseIterable, CustomStringConvertible {
    /// The pages as they are.
    case raw = 0
    /// One LZ4 block without a frame.
    case lz4 = 1

    public var description: String {
        switch self {
        case .raw: "raw"
        case .lz4: "lz4"
        }
    }
}
