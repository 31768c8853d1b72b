// The leaf that a saved span gets: a patch of the one before, or a full one.
//
// Invariant: a leaf names the runs that it lists pages of, no others.

import StoreFormat
import Units

extension SpanBuilder {
    /// Most entries that a patch leaf has; past that a full leaf reads and costs less.
    static let maximumPatch = 64

    func storeLeaf(_ map: SpanMap, span: SpanIndex) throws(StoreError) -> BlockPointer? {
        guard map.storedPages > 0 else { return nil }
        let birth = BlockBirth(writer.id)
        // Neither a patch leaf nor its base may list pages behind the region's end: one that was made shorter gets a full leaf.
        let isShortened = !map.patched.subtracting(PageSet(0..<limit)).isEmpty
        if let base = map.base, map.patched.count <= SpanBuilder.maximumPatch, !isShortened {
            return try writer.appendIndex(patch(map, base, span).encoded(birth: birth))
        }
        return try writer.appendIndex(leaf(map, span).encoded(birth: birth))
    }

    private func patch(_ map: SpanMap, _ base: BlockPointer, _ span: SpanIndex) -> PatchLeaf {
        var used = UsedRuns(map.runs)
        var entries: [PatchEntry] = []
        map.patched.forEach { page in
            let run = map.isZero(page) ? nil : used.index(map.runOf[page])
            entries.append(
                PatchEntry(
                    page: UInt16(page), run: run, pageOffset: run == nil ? 0 : map.offsetOf[page],
                    hash: run == nil ? .zero : map.hashes[page]))
        }
        return PatchLeaf(regionKey: key, span: span, base: base, runs: used.runs, entries: entries)
    }

    private func leaf(_ map: SpanMap, _ span: SpanIndex) -> Leaf {
        var used = UsedRuns(map.runs)
        var extents: [Extent] = []
        var hashes: [Hash128] = []
        for page in 0..<pagesPerSpan where !map.isZero(page) {
            let run = used.index(map.runOf[page])
            hashes.append(map.hashes[page])
            if let last = extents.last, last.runIndex == run, Int(last.firstPage) + Int(last.pageCount) == page,
                last.pageOffset + last.pageCount == map.offsetOf[page]
            {
                extents[extents.count - 1].pageCount += 1
            } else {
                extents.append(
                    Extent(firstPage: UInt16(page), pageCount: 1, pageOffset: map.offsetOf[page], runIndex: run))
            }
        }
        return Leaf(regionKey: key, span: span, runs: used.runs, extents: extents, hashes: hashes)
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
