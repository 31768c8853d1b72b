// What disks need of sets of pages: from bytes to pages, and into pieces for the store.

import Units

extension PageRanges {
    /// The pages that byte ranges, in any order, touch.
    init(coveringBytes bytes: some Sequence<Range<UInt64>>) {
        let size = UInt64(pageSize)
        self.init(
            bytes.filter { !$0.isEmpty }.map { PageIndex($0.lowerBound / size)..<PageIndex(($0.upperBound - 1) / size + 1) })
    }

    /// The same set cut where `unit` pages end, with gaps of up to `gap` pages within a piece filled.
    func pieces(of unit: PageCount, filling gap: PageCount) -> [Range<PageIndex>] {
        var result: [Range<PageIndex>] = []
        for range in ranges {
            var start = range.lowerBound
            while start < range.upperBound {
                let piece = start.rawValue / unit.rawValue
                let end = min(range.upperBound, PageIndex((piece + 1) * unit.rawValue))
                if let last = result.last, last.lowerBound.rawValue / unit.rawValue == piece, start - last.upperBound <= gap {
                    result[result.count - 1] = last.lowerBound..<end
                } else {
                    result.append(start..<end)
                }
                start = end
            }
        }
        return result
    }
}
