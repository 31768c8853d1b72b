// Checkpoints whose records are gone: what their index blocks and runs say themselves.
//
// Invariants:
// - The highest nodes that are left count; what they cover is theirs alone.
// - A page that two runs of one checkpoint hold is left out, unless one of them was put behind the other in the same segment: the
//   later one is what its writer meant.

import StoreFormat
import Units

extension SalvageSource {
    /// The regions of a checkpoint without a record. `known`: what other checkpoints say of regions, by their keys.
    func looseRegions(_ birth: BlockBirth, known: [RegionKey: RegionRecord]) -> [RegionRemains] {
        (inventory.loose[birth] ?? [:]).sorted { $0.key < $1.key }.compactMap { key, loose in
            let (tops, covered) = Self.tops(loose.nodes)
            let runs = Dictionary(grouping: loose.runs.filter { !Self.isCovered($0.span, above: 0, by: covered) }) { $0.span }
            let end = max(tops.map { endOfPages($0, key) }.max() ?? 0, runs.map { endOfPages($0.value, key, $0.key) }.max() ?? 0)
            guard end > 0 else { return nil }
            let record = known[key]
            let length = record.flatMap { $0.pageCount.rawValue >= end ? $0.byteLength : nil } ?? ByteCount(end * UInt64(pageSize))
            let isRooted = tops.count == 1 && runs.isEmpty && record?.depth == tops[0].level && tops[0].first.rawValue == 0
            return RegionRemains(
                name: record?.name ?? "region-\(key)", isNameKnown: record != nil, kind: record?.kind ?? .memory,
                byteLength: length, key: key, tops: tops, loose: runs,
                hasUnknownPages: !isRooted)
        }
    }

    /// A place in a region's tree.
    private struct NodePlace: Hashable {
        var level: UInt8
        var firstPage: PageIndex
    }

    /// Whether a node of `level` or above is there that holds `span`. O(levels).
    private static func isCovered(_ span: SpanIndex, above level: UInt8, by places: Set<NodePlace>) -> Bool {
        (level...PageTree.maximumDepth).contains { places.contains(NodePlace(level: $0, firstPage: PageTable.firstPage(of: span, level: $0))) }
    }

    /// The nodes that no other one covers, and their places; of several for one place the one that was written last.
    private static func tops(_ nodes: [SalvageInventory.LooseNode]) -> ([RegionRemains.Top], Set<NodePlace>) {
        var (tops, places): ([RegionRemains.Top], Set<NodePlace>) = ([], [])
        let order = nodes.sorted { a, b in
            (b.level, a.first, b.pointer.placeNumber) < (a.level, b.first, a.pointer.placeNumber)
        }
        for node in order where !isCovered(node.first, above: node.level, by: places) {
            tops.append(RegionRemains.Top(pointer: node.pointer, level: node.level, first: node.first))
            places.insert(NodePlace(level: node.level, firstPage: node.first.firstPage))
        }
        return (tops.sorted { $0.first < $1.first }, places)
    }

    /// The end of the last page below a node, as far as its index can be read.
    private func endOfPages(_ top: RegionRemains.Top, _ key: RegionKey) -> UInt64 {
        if top.level == 0 {
            guard let map = try? spanMap(top.pointer, key: key, span: top.first) else { return 0 }
            return (0..<pagesPerSpan).last { !map.isZero($0) }.map { top.first.firstPage.rawValue + UInt64($0) + 1 } ?? 0
        }
        guard let children = try? children(top.pointer, key: key, first: top.first, level: top.level) else { return 0 }
        for (index, child) in children.enumerated().reversed() {
            guard let child else { continue }
            let first = SpanIndex(top.first.rawValue + UInt64(index) * PageTable.spansPerChild(level: top.level))
            let end = endOfPages(RegionRemains.Top(pointer: child, level: top.level - 1, first: first), key)
            // A child that can't be read covers its whole range, so that what is lost of it is named.
            return end > 0 ? end : first.firstPage.rawValue + UInt64(pagesPerSpan)
        }
        return 0
    }

    private func endOfPages(_ runs: [SalvageInventory.LooseRun], _ key: RegionKey, _ span: SpanIndex) -> UInt64 {
        let map = looseMap(runs, key: key, span: span)
        return (0..<pagesPerSpan).last { !map.isZero($0) }.map { span.firstPage.rawValue + UInt64($0) + 1 } ?? 0
    }

    /// The pages of a span by the page lists of its runs alone; without hashes.
    func looseMap(_ runs: [SalvageInventory.LooseRun], key: RegionKey, span: SpanIndex) -> SpanMap {
        var (runOf, offsetOf) = (SpanMap.empty.runOf, SpanMap.empty.offsetOf)
        var ambiguous = PageSet()
        // No writer puts that many into a span; what else is there, is nobody's.
        let ordered = runs.sorted { $0.pointer.placeNumber < $1.pointer.placeNumber }.prefix(Int(SpanMap.zeroPage))
        for (number, run) in ordered.enumerated() {
            guard let pages = try? decode(run.pointer, { bytes throws(FormatError) in try PageRunHeader.decode(bytes).pages }) else { continue }
            for (offset, page) in pages.enumerated() {
                let before = runOf[Int(page)]
                if before != SpanMap.zeroPage, ordered[Int(before)].pointer.segment != run.pointer.segment { ambiguous.insert(Int(page)) }
                runOf[Int(page)] = UInt16(number)
                offsetOf[Int(page)] = UInt8(offset)
            }
        }
        ambiguous.forEach { runOf[$0] = SpanMap.zeroPage }
        return SpanMap(
            runs: ordered.map(\.pointer), runOf: runOf, offsetOf: offsetOf, hashes: [], base: nil, patched: PageSet())
    }
}
