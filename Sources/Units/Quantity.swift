// Strong types for everything that is counted or addressed: offsets, lengths, page indexes,
// generations. Two of different kinds can't be mixed up, and none of them is a bare integer.
//
// Invariant: a quantity is its `rawValue` and nothing else; arithmetic that overflows traps, so
// sizes from outside are checked with the `checked…` forms before they are used.

/// A 64-bit unsigned quantity with a meaning of its own.
public protocol Quantity: RawRepresentable, Hashable, Comparable, Sendable, CustomStringConvertible, Codable
where RawValue == UInt64 {
    /// Wraps `rawValue`; every value is allowed.
    init(_ rawValue: UInt64)
}

extension Quantity {
    @inlinable public init(rawValue: UInt64) { self.init(rawValue) }
    /// Wraps a non-negative `Int`; a negative one is a programmer's mistake.
    @inlinable public init(_ value: Int) { self.init(UInt64(value)) }
    @inlinable public static func < (a: Self, b: Self) -> Bool { a.rawValue < b.rawValue }
    /// The value as `Int`. Values above `Int.max` are a programmer's mistake: check outside sizes first.
    @inlinable public var int: Int { Int(rawValue) }
    public var description: String { String(rawValue) }
}

/// A number of bytes.
public struct ByteCount: Quantity {
    public var rawValue: UInt64
    @inlinable public init(_ rawValue: UInt64) { self.rawValue = rawValue }
    public static let zero = ByteCount(UInt64(0))
    @inlinable public static func + (a: ByteCount, b: ByteCount) -> ByteCount { ByteCount(a.rawValue + b.rawValue) }
    @inlinable public static func - (a: ByteCount, b: ByteCount) -> ByteCount { ByteCount(a.rawValue - b.rawValue) }
    @inlinable public static func += (a: inout ByteCount, b: ByteCount) { a.rawValue += b.rawValue }
    /// The smallest multiple of `unit` that is not below this; traps on overflow.
    @inlinable public func roundedUp(to unit: UInt64) -> ByteCount { ByteCount((rawValue + unit - 1) / unit * unit) }
    public static func kibibytes(_ n: UInt64) -> ByteCount { ByteCount(n << 10) }
    public static func mebibytes(_ n: UInt64) -> ByteCount { ByteCount(n << 20) }
    public static func gibibytes(_ n: UInt64) -> ByteCount { ByteCount(n << 30) }
}

extension Sequence<ByteCount> {
    /// The sum, or 2^64 - 1 where it is more: lengths of sparse regions may add up to more than a number of bytes can say. O(n).
    public var saturatingSum: ByteCount { reduce(.zero) { $0.addingSaturating($1) } }
}

extension ByteCount {
    /// The sum with `other`, or 2^64 - 1 where it is more.
    public func addingSaturating(_ other: ByteCount) -> ByteCount {
        let (sum, overflow) = rawValue.addingReportingOverflow(other.rawValue)
        return ByteCount(overflow ? .max : sum)
    }
}

/// A byte offset from the start of a medium.
public struct MediumOffset: Quantity {
    public var rawValue: UInt64
    @inlinable public init(_ rawValue: UInt64) { self.rawValue = rawValue }
    public static let zero = MediumOffset(UInt64(0))
    @inlinable public static func + (a: MediumOffset, b: ByteCount) -> MediumOffset {
        MediumOffset(a.rawValue + b.rawValue)
    }
    /// The distance from `b` up to `a`; `b` must not lie behind `a`.
    @inlinable public static func - (a: MediumOffset, b: MediumOffset) -> ByteCount {
        ByteCount(a.rawValue - b.rawValue)
    }
    /// `self + length`, or nil when that does not fit.
    @inlinable public func checkedAdd(_ length: ByteCount) -> MediumOffset? {
        let (sum, overflow) = rawValue.addingReportingOverflow(length.rawValue)
        return overflow ? nil : MediumOffset(sum)
    }
}

/// The size of a guest page as the store sees it: 4 KiB.
public let pageSize = 4096

/// The index of a 4 KiB page within a region: byte offset / 4096.
public struct PageIndex: Quantity {
    public var rawValue: UInt64
    @inlinable public init(_ rawValue: UInt64) { self.rawValue = rawValue }
    @inlinable public static func + (a: PageIndex, b: PageCount) -> PageIndex { PageIndex(a.rawValue + b.rawValue) }
    @inlinable public static func - (a: PageIndex, b: PageIndex) -> PageCount { PageCount(a.rawValue - b.rawValue) }
}

/// A number of 4 KiB pages.
public struct PageCount: Quantity {
    public var rawValue: UInt64
    @inlinable public init(_ rawValue: UInt64) { self.rawValue = rawValue }
    public static let zero = PageCount(UInt64(0))
    @inlinable public static func + (a: PageCount, b: PageCount) -> PageCount { PageCount(a.rawValue + b.rawValue) }
    @inlinable public static func - (a: PageCount, b: PageCount) -> PageCount { PageCount(a.rawValue - b.rawValue) }
    @inlinable public static func += (a: inout PageCount, b: PageCount) { a.rawValue += b.rawValue }
    /// The bytes that this many pages hold.
    @inlinable public var bytes: ByteCount { ByteCount(rawValue * UInt64(pageSize)) }
    /// The bytes that this many pages hold, or 2^64 - 1 where they are more: for counts that nobody has checked.
    public var saturatingBytes: ByteCount {
        let (bytes, overflow) = rawValue.multipliedReportingOverflow(by: UInt64(pageSize))
        return ByteCount(overflow ? .max : bytes)
    }
    /// The pages needed for `bytes`, the last one perhaps partly filled.
    @inlinable public init(covering bytes: ByteCount) {
        rawValue = bytes.rawValue / UInt64(pageSize) + (bytes.rawValue % UInt64(pageSize) == 0 ? 0 : 1)
    }
}

/// The number of a commit: each durable commit has the generation of the one before it plus one.
public struct Generation: Quantity {
    public var rawValue: UInt64
    @inlinable public init(_ rawValue: UInt64) { self.rawValue = rawValue }
    public var next: Generation { Generation(rawValue + 1) }
}

/// The number of a segment, counted from the start of the data area.
public struct SegmentIndex: Quantity {
    public var rawValue: UInt64
    @inlinable public init(_ rawValue: UInt64) { self.rawValue = rawValue }
}
