// Sets of pages as sorted ranges.
//
// Invariant: ranges are ascending, not empty, and don't touch each other.

/// A set of pages.
public struct PageRanges: Sendable, Equatable {
    public private(set) var ranges: [Range<PageIndex>] = []

    public init() {}

    /// The pages of `ranges`, which may come in any order, overlap and be empty.
    public init(_ ranges: some Sequence<Range<PageIndex>>) {
        for range in ranges.filter({ !$0.isEmpty }).sorted(by: { $0.lowerBound < $1.lowerBound }) { append(range) }
    }

    /// Adds a range that begins at or behind all that were added before.
    public mutating func append(_ range: Range<PageIndex>) {
        guard !range.isEmpty else { return }
        if let last = ranges.last, range.lowerBound <= last.upperBound {
            precondition(range.lowerBound >= last.lowerBound, "ranges come in ascending order")
            ranges[ranges.count - 1] = last.lowerBound..<max(last.upperBound, range.upperBound)
        } else {
            ranges.append(range)
        }
    }

    /// One range.
    public init(_ range: Range<PageIndex>) { if !range.isEmpty { ranges = [range] } }

    public var isEmpty: Bool { ranges.isEmpty }
    /// Whether a page belongs to the set. O(log n).
    public func contains(_ page: PageIndex) -> Bool {
        let index = firstIndex(endingBehind: page)
        return index < ranges.count && ranges[index].contains(page)
    }
    /// How many pages.
    public var count: PageCount { ranges.reduce(into: PageCount.zero) { $0 += $1.upperBound - $1.lowerBound } }

    public func union(_ other: PageRanges) -> PageRanges {
        if isEmpty { return other }
        return other.isEmpty ? self : PageRanges(ranges + other.ranges)
    }

    /// The pages that `other` does not have.
    public func subtracting(_ other: PageRanges) -> PageRanges {
        var result = PageRanges()
        var next = 0
        for range in ranges {
            var start = range.lowerBound
            while next < other.ranges.count, other.ranges[next].upperBound <= start { next += 1 }
            var index = next
            while index < other.ranges.count, other.ranges[index].lowerBound < range.upperBound {
                result.append(start..<max(start, other.ranges[index].lowerBound))
                start = max(start, other.ranges[index].upperBound)
                index += 1
            }
            if start < range.upperBound { result.append(start..<range.upperBound) }
        }
        return result
    }

    /// The pages that `other` has as well.
    public func intersection(_ other: PageRanges) -> PageRanges { subtracting(subtracting(other)) }

    /// Cuts `range` at the borders of this set and calls `body` with each piece and whether it belongs to the set, ascending.
    public func split<E: Error>(_ range: Range<PageIndex>, _ body: (Range<PageIndex>, Bool) throws(E) -> Void) throws(E) {
        var start = range.lowerBound
        var index = firstIndex(endingBehind: start)
        while start < range.upperBound {
            guard index < ranges.count, ranges[index].lowerBound < range.upperBound else {
                return try body(start..<range.upperBound, false)
            }
            if start < ranges[index].lowerBound { try body(start..<ranges[index].lowerBound, false) }
            start = max(start, ranges[index].lowerBound)
            let end = min(ranges[index].upperBound, range.upperBound)
            try body(start..<end, true)
            start = end
            index += 1
        }
    }

    /// The long runs: ranges with a gap of at most `gap` between them count as one, with the gap; those of at least `minimum` pages are kept.
    public func longRuns(atLeast minimum: PageCount, bridging gap: PageCount) -> PageRanges {
        var merged: [Range<PageIndex>] = []
        for range in ranges {
            if let last = merged.last, range.lowerBound - last.upperBound <= gap {
                merged[merged.count - 1] = last.lowerBound..<range.upperBound
            } else {
                merged.append(range)
            }
        }
        return PageRanges(merged.filter { $0.upperBound - $0.lowerBound >= minimum })
    }

    /// The smallest set of whole units of `size` pages that covers this one.
    public func wholeUnits(of size: Int) -> PageRanges {
        var result = PageRanges()
        for range in ranges {
            result.append(PageIndex(range.lowerBound.int / size * size)..<PageIndex((range.upperBound.int + size - 1) / size * size))
        }
        return result
    }

    /// The index of the first range that ends behind `page`.
    public func firstIndex(endingBehind page: PageIndex) -> Int {
        var low = 0
        var high = ranges.count
        while low < high {
            let middle = (low + high) / 2
            if ranges[middle].upperBound <= page { low = middle + 1 } else { high = middle }
        }
        return low
    }
}
