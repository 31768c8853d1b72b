// The leaf that says where the pages of a span are: one form for each map, so that who has the map has the bytes.
//
// Invariants:
// - A leaf names the runs that it lists pages of, no others, in the order of their first use.
// - Savers and repairers make leaves here alone: what repairing derives are the bytes that saving wrote.

import StoreFormat
import Units

extension SpanMap {
    /// What the map changes in `base`, a full leaf, as a patch leaf.
    func patchLeaf(over base: BlockPointer, key: RegionKey, span: SpanIndex) -> PatchLeaf {
        var used = UsedRuns(runs)
        var entries: [PatchEntry] = []
        patched.forEach { page in
            let run = isZero(page) ? nil : used.index(runOf[page])
            entries.append(
                PatchEntry(
                    page: UInt16(page), run: run, pageOffset: run == nil ? 0 : offsetOf[page], hash: run == nil ? .zero : hashes[page]))
        }
        return PatchLeaf(regionKey: key, span: span, base: base, runs: used.runs, entries: entries)
    }

    /// All of the map as a full leaf.
    func fullLeaf(key: RegionKey, span: SpanIndex) -> Leaf {
        var used = UsedRuns(runs)
        var extents: [Extent] = []
        var listed: [Hash128] = []
        for page in 0..<pagesPerSpan where !isZero(page) {
            let run = used.index(runOf[page])
            listed.append(hashes[page])
            if let last = extents.last, last.runIndex == run, Int(last.firstPage) + Int(last.pageCount) == page,
                last.pageOffset + last.pageCount == offsetOf[page]
            {
                extents[extents.count - 1].pageCount += 1
            } else {
                extents.append(Extent(firstPage: UInt16(page), pageCount: 1, pageOffset: offsetOf[page], runIndex: run))
            }
        }
        return Leaf(regionKey: key, span: span, runs: used.runs, extents: extents, hashes: listed)
    }

    /// Numbers the runs that are still used, in the order of their first use.
    private struct UsedRuns {
        private let all: [BlockPointer]
        private var numbers: [UInt16]
        private(set) var runs: [BlockPointer] = []
        private static let none = UInt16.max

        init(_ all: [BlockPointer]) {
            self.all = all
            numbers = Array(repeating: Self.none, count: all.count)
        }

        mutating func index(_ run: UInt16) -> UInt16 {
            let known = numbers[Int(run)]
            if known != Self.none { return known }
            let number = UInt16(runs.count)
            numbers[Int(run)] = number
            runs.append(all[Int(run)])
            return number
        }
    }
}
