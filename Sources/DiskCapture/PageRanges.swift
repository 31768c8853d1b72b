// Sets of pages as sorted ranges.
//
// Invariant: ranges are in order, not empty, and neither overlap nor touch.

import Units

/// A set of pages of one disk.
struct PageRanges: Sendable, Equatable {
    private(set) var ranges: [Range<UInt64>] = []

    init() {}

    init(_ range: Range<UInt64>) { if !range.isEmpty { ranges = [range] } }

    /// The pages that byte ranges, in any order, touch.
    init(covering bytes: some Sequence<Range<UInt64>>) {
        let size = UInt64(pageSize)
        let pages = bytes.filter { !$0.isEmpty }.map { $0.lowerBound / size..<($0.upperBound - 1) / size + 1 }
        for range in pages.sorted(by: { $0.lowerBound < $1.lowerBound }) { append(range) }
    }

    /// Adds a range that begins at or behind the start of the last one.
    private mutating func append(_ range: Range<UInt64>) {
        if let last = ranges.last, range.lowerBound <= last.upperBound {
            ranges[ranges.count - 1] = last.lowerBound..<max(last.upperBound, range.upperBound)
        } else {
            ranges.append(range)
        }
    }

    func union(_ other: PageRanges) -> PageRanges {
        var result = PageRanges()
        for range in (ranges + other.ranges).sorted(by: { $0.lowerBound < $1.lowerBound }) { result.append(range) }
        return result
    }

    func intersection(_ other: PageRanges) -> PageRanges {
        var result = PageRanges()
        var (i, j) = (0, 0)
        while i < ranges.count, j < other.ranges.count {
            let (a, b) = (ranges[i], other.ranges[j])
            if a.overlaps(b) { result.append(a.clamped(to: b)) }
            if a.upperBound < b.upperBound { i += 1 } else { j += 1 }
        }
        return result
    }

    func subtracting(_ other: PageRanges) -> PageRanges {
        var result = PageRanges()
        var j = 0
        for range in ranges {
            var start = range.lowerBound
            while j < other.ranges.count, other.ranges[j].upperBound <= start { j += 1 }
            var k = j
            while k < other.ranges.count, other.ranges[k].lowerBound < range.upperBound {
                if other.ranges[k].lowerBound > start { result.append(start..<other.ranges[k].lowerBound) }
                start = max(start, other.ranges[k].upperBound)
                k += 1
            }
            if start < range.upperBound { result.append(start..<range.upperBound) }
        }
        return result
    }

    /// The same set cut where `unit` pages end, with gaps of up to `gap` pages within a piece filled.
    func pieces(of unit: UInt64, filling gap: UInt64) -> [Range<UInt64>] {
        var result: [Range<UInt64>] = []
        for range in ranges {
            var start = range.lowerBound
            while start < range.upperBound {
                let end = min(range.upperBound, (start / unit + 1) * unit)
                if let last = result.last, last.lowerBound / unit == start / unit, start - last.upperBound <= gap {
                    result[result.count - 1] = last.lowerBound..<end
                } else {
                    result.append(start..<end)
                }
                start = end
            }
        }
        return result
    }

    var count: PageCount { PageCount(ranges.reduce(UInt64(0)) { $0 + UInt64($1.count) }) }
}
