// What virtual disks count and address in, and how a disk is cut into block groups.
//
// Invariant: a geometry has been checked when it exists: its arithmetic can't overflow.

import CheckpointCore
import Units

/// The smallest piece of a disk that is read or written, in bytes.
public let sectorSize = 512

/// A byte offset from the start of a virtual disk.
public struct DiskOffset: Quantity {
    public var rawValue: UInt64
    @inlinable public init(_ rawValue: UInt64) { self.rawValue = rawValue }
    public static let zero = DiskOffset(UInt64(0))
    @inlinable public static func + (a: DiskOffset, b: ByteCount) -> DiskOffset { DiskOffset(a.rawValue + b.rawValue) }
    /// The distance from `b` up to `a`; `b` must not lie behind `a`.
    @inlinable public static func - (a: DiskOffset, b: DiskOffset) -> ByteCount { ByteCount(a.rawValue - b.rawValue) }
}

/// The number of a request to a disk: later requests have greater ones.
public struct RequestID: Quantity {
    public var rawValue: UInt64
    @inlinable public init(_ rawValue: UInt64) { self.rawValue = rawValue }
}

/// The index of a block group: what is copied on write as one piece.
public struct BlockGroup: Quantity {
    public var rawValue: UInt64
    @inlinable public init(_ rawValue: UInt64) { self.rawValue = rawValue }
}

/// The identity of a copy-on-write file: random, never 0 in a file.
public struct OverlayID: Quantity {
    public var rawValue: UInt64
    @inlinable public init(_ rawValue: UInt64) { self.rawValue = rawValue }
    /// A new random one.
    public static func random() -> OverlayID { OverlayID(UInt64.random(in: 1...UInt64.max)) }
    /// Hexadecimal digits.
    public var description: String { String(rawValue, radix: 16) }
}

/// The length of a disk, and of its block groups. The last group may be shorter.
public struct DiskGeometry: Sendable, Equatable {
    /// A multiple of 512, at least 512, below 2^56.
    public let diskLength: ByteCount
    /// A power of two from 4 KiB to 256 KiB.
    public let groupSize: ByteCount

    /// 64 KiB: a compromise between what a small write copies and how much there is to keep account of.
    public static let standardGroupSize = ByteCount.kibibytes(64)

    /// Checks both.
    /// - Throws: `.invalidInput`.
    public init(diskLength: ByteCount, groupSize: ByteCount = standardGroupSize) throws(EngineError) {
        guard diskLength > .zero, diskLength.rawValue < 1 << 56, diskLength.rawValue % UInt64(sectorSize) == 0 else {
            throw EngineError(
                .invalidInput, "a disk can't have \(diskLength) bytes", remedy: "Make the image a whole number of sectors of 512 bytes long.")
        }
        guard groupSize >= .kibibytes(4), groupSize <= .kibibytes(256), groupSize.rawValue.nonzeroBitCount == 1 else {
            throw EngineError(
                .invalidInput, "a block group can't have \(groupSize) bytes", remedy: "Choose a power of two from 4 KiB to 256 KiB.")
        }
        self.diskLength = diskLength
        self.groupSize = groupSize
    }

    /// The whole disk.
    public var allBytes: Range<DiskOffset> { .zero..<DiskOffset(diskLength.rawValue) }
    /// How many groups; the last may be shorter than the others.
    public var groupCount: Int { Int((diskLength.rawValue + groupSize.rawValue - 1) / groupSize.rawValue) }
    /// The group that a byte belongs to.
    public func group(of offset: DiskOffset) -> BlockGroup { BlockGroup(offset.rawValue / groupSize.rawValue) }
    /// The groups that a range touches; it must not be empty.
    public func groups(of range: Range<DiskOffset>) -> Range<Int> {
        group(of: range.lowerBound).int..<Int((range.upperBound.rawValue - 1) / groupSize.rawValue) + 1
    }
    /// The bytes of a group.
    public func bytes(of group: BlockGroup) -> Range<DiskOffset> {
        let start = group.rawValue * groupSize.rawValue
        return DiskOffset(start)..<DiskOffset(min(start + groupSize.rawValue, diskLength.rawValue))
    }
}

extension Range where Bound == DiskOffset {
    /// How many bytes.
    public var byteCount: ByteCount { upperBound - lowerBound }
}
