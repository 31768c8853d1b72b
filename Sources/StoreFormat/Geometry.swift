// The geometry of a store: where rings and segments are. FORMAT.md 1 and 3.1.
//
// Invariant: a geometry that passed `check` has no offset above 2^63, so that its arithmetic can't overflow.

public import Units

/// Sizes and places that are fixed when a store is created (only `segmentCount` grows or shrinks).
public struct Geometry: Hashable, Sendable {
    /// Bytes of a segment: a multiple of `commitUnit`, 128 KiB..1 GiB.
    public var segmentSize: UInt32
    /// Bytes that no two commits share: a power of two, 4096..65536.
    public var commitUnit: UInt32
    /// At least 1.
    public var segmentCount: UInt32
    /// Where ring B starts: a power of two, 64 KiB..16 MiB.
    public var twinOffset: MediumOffset

    public init(segmentSize: UInt32, commitUnit: UInt32, segmentCount: UInt32, twinOffset: MediumOffset) {
        self.segmentSize = segmentSize
        self.commitUnit = commitUnit
        self.segmentCount = segmentCount
        self.twinOffset = twinOffset
    }

    /// The places that ring B may start at, in the order in which they are searched.
    public static let twinOffsets: [MediumOffset] = (16...24).map { MediumOffset(UInt64(1) << UInt64($0)) }

    /// Where segment 0 starts: 2 x `twinOffset`.
    public var dataOffset: MediumOffset { MediumOffset(twinOffset.rawValue * 2) }

    /// Levels of inner nodes in the segment table.
    public var tableDepth: UInt8 { Self.tableDepth(segmentCount: segmentCount) }

    /// Levels of inner nodes in the segment table of `segmentCount` segments: the smallest d with
    /// 64^(d + 1) >= segmentCount.
    public static func tableDepth(segmentCount: UInt32) -> UInt8 {
        var depth: UInt8 = 0
        while SegmentTable.segmentsPerNode(level: depth) < segmentCount { depth += 1 }
        return depth
    }

    /// Where `segment` starts on the medium.
    public func offset(of segment: SegmentIndex) -> MediumOffset {
        dataOffset + ByteCount(segment.rawValue * UInt64(segmentSize))
    }

    /// Where the block of `pointer` starts on the medium; `check(pointer)` says whether it is there at all.
    public func position(of pointer: BlockPointer) -> MediumOffset {
        offset(of: pointer.segment) + ByteCount(UInt64(pointer.offset.rawValue))
    }

    /// The bytes that the medium must have.
    public var requiredSize: ByteCount {
        offset(of: SegmentIndex(UInt64(segmentCount))) - .zero
    }

    /// Throws `.badField` unless the block of `pointer` lies within a segment of the store.
    public func check(_ pointer: BlockPointer) throws(FormatError) {
        try StoreFormat.check(
            pointer.segment.rawValue < UInt64(segmentCount), "pointer", "segment \(pointer.segment) of \(segmentCount)")
        try StoreFormat.check(
            UInt64(pointer.offset.rawValue) + UInt64(pointer.storedLength) <= UInt64(segmentSize), "pointer",
            "\(pointer) reaches beyond its segment of \(segmentSize) bytes")
    }

    /// Throws `.badField` unless the sizes are in the ranges of the format.
    public func check() throws(FormatError) {
        let subject = "geometry"
        try StoreFormat.check(
            commitUnit.nonzeroBitCount == 1 && (4096...65536).contains(commitUnit), subject, "commit unit \(commitUnit)")
        try StoreFormat.check(
            (131_072...1_073_741_824).contains(segmentSize) && segmentSize % commitUnit == 0, subject,
            "segment size \(segmentSize)")
        try StoreFormat.check(segmentCount >= 1, subject, "no segments")
        try StoreFormat.check(Self.twinOffsets.contains(twinOffset), subject, "ring B at \(twinOffset)")
    }
}
