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

/// The entries of one segment, or part of them.
public enum ForwardingTable {
    static let fixedLength = 40
    static let entryLength = 48
    /// Entries of one table.
    public static let maximumEntries = 512
    public static let maximumLength = fixedLength + maximumEntries * entryLength
}
