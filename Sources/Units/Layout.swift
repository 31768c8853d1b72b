// Places inside segments and regions, and the constants of the format that several layers share.
//
// Invariant: the constants are fixed by version 1 of the format; changing one is a new format.

/// Pages of a span: the piece of a region that one leaf describes (2 MiB).
public let pagesPerSpan = 512
/// The most pages that one page run holds.
public let pagesPerRun = 16
/// Every block starts at a multiple of this many bytes in its segment.
public let blockAlignment = 64

/// A byte offset within a segment.
public struct SegmentOffset: RawRepresentable, Hashable, Comparable, Sendable, Codable, CustomStringConvertible {
    public var rawValue: UInt32
    @inlinable public init(rawValue: UInt32) { self.rawValue = rawValue }
    @inlinable public init(_ rawValue: UInt32) { self.rawValue = rawValue }
    /// Wraps an `Int`; one that does not fit 32 bits is a programmer's mistake.
    @inlinable public init(_ value: Int) { rawValue = UInt32(value) }
    public static let zero = SegmentOffset(UInt32(0))
    /// The value as `Int`.
    @inlinable public var int: Int { Int(rawValue) }
    @inlinable public static func < (a: SegmentOffset, b: SegmentOffset) -> Bool { a.rawValue < b.rawValue }
    /// Traps when the sum does not fit 32 bits.
    @inlinable public static func + (a: SegmentOffset, b: ByteCount) -> SegmentOffset {
        SegmentOffset(UInt32(UInt64(a.rawValue) + b.rawValue))
    }
    /// The distance from `b` up to `a`; `b` must not lie behind `a`.
    @inlinable public static func - (a: SegmentOffset, b: SegmentOffset) -> ByteCount {
        ByteCount(UInt64(a.rawValue - b.rawValue))
    }
    /// The smallest multiple of `unit` that is not below this; traps when it does not fit.
    @inlinable public func roundedUp(to unit: Int) -> SegmentOffset {
        SegmentOffset((Int(rawValue) + unit - 1) / unit * unit)
    }
    public var description: String { String(rawValue) }
}

/// The index of a span within a region: page index / 512.
public struct SpanIndex: Quantity {
    public var rawValue: UInt64
    @inlinable public init(_ rawValue: UInt64) { self.rawValue = rawValue }
    /// The span that holds `page`.
    @inlinable public init(of page: PageIndex) { rawValue = page.rawValue / UInt64(pagesPerSpan) }
    /// The first page of the span.
    @inlinable public var firstPage: PageIndex { PageIndex(rawValue * UInt64(pagesPerSpan)) }
}
