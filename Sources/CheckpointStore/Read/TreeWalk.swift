// Walking through everything that checkpoints reach, all of them at once.
//
// Invariants:
// - A block belongs to one place of a region's tree (region, level, first page). So the trees of all checkpoints are gone down side
//   by side, and at each place every different block is met once, with all that it is reached by.
// - Memory is bounded by one way down: at each level the different children of one place, at most 128 for each checkpoint. There is no
//   record of the blocks that were met.

import StoreFormat
import Units

/// A block that checkpoints reach.
struct ReachedBlock {
    /// As trees name it.
    var pointer: BlockPointer
    /// Runs: the places that leaves list, as a set. Others: 0.
    var places: UInt16
    /// How many checkpoints reach it.
    var sharers: Int
}

/// Visits each block that checkpoints of one generation reach, once, in the order of their places in the trees.
struct TreeWalk {
    typealias Visit = (ReachedBlock) throws(StoreError) -> Void
    let blocks: BlockReader

    /// The blocks at one place and how many checkpoints reach each.
    private typealias Blocks = [BlockPointer: Int]

    /// What all regions of one name have in common.
    private struct Region {
        /// The longest of them: no tree reaches beyond its end.
        var longest: RegionRecord
        /// The roots, by the depth of their trees.
        var roots: [UInt8: Blocks] = [:]
    }

    /// Visits the records of `checkpoints` and all that their trees name. Reads every index block once, no run.
    ///
    /// - Parameter records: is given each record.
    /// - Throws: `.corrupt` when a block of the index can't be read; what `visit` throws.
    func walk(
        _ checkpoints: [(id: CheckpointID, value: CatalogValue)], records: (CheckpointRecord) -> Void = { _ in }, _ visit: Visit
    ) throws(StoreError) {
        var regions: [RegionKey: Region] = [:]
        for (id, value) in checkpoints {
            try visit(ReachedBlock(pointer: value.record, places: 0, sharers: 1))
            let record = try blocks.readRecord(value, id: id)
            records(record)
            for region in record.regions {
                guard let root = region.root else { continue }
                var known = regions[region.key] ?? Region(longest: region)
                if region.pageCount > known.longest.pageCount { known.longest = region }
                known.roots[region.depth, default: [:]][root, default: 0] += 1
                regions[region.key] = known
            }
        }
        for (_, region) in regions.sorted(by: { $0.key < $1.key }) {
            let top = region.roots.keys.max() ?? 0
            try walk(region.roots[top] ?? [:], region, level: top, first: SpanIndex(UInt64(0)), visit)
        }
    }

    /// In an order that is the same each time.
    private func sorted(_ blocks: Blocks) -> [(key: BlockPointer, value: Int)] {
        blocks.sorted { a, b in
            (a.key.segment, a.key.offset, a.key.birth.rawValue) < (b.key.segment, b.key.offset, b.key.birth.rawValue)
        }
    }

    private func walk(
        _ nodes: Blocks, _ region: Region, level: UInt8, first: SpanIndex, _ visit: Visit
    ) throws(StoreError) {
        guard level > 0 else { return try walkSpan(nodes, region, first, visit) }
        var children = [Blocks](repeating: [:], count: PageTree.fanout)
        for (pointer, sharers) in sorted(nodes) {
            try visit(ReachedBlock(pointer: pointer, places: 0, sharers: sharers))
            let node = try blocks.readInner(pointer, of: region.longest, firstPage: first.firstPage, level: level)
            for (index, child) in node.children.enumerated() {
                if let child { children[index][child, default: 0] += sharers }
            }
        }
        if first.rawValue == 0, let roots = region.roots[level - 1] { children[0].merge(roots, uniquingKeysWith: +) }
        for index in children.indices where !children[index].isEmpty {
            let start = SpanIndex(first.rawValue + UInt64(index) * PageTable.spansPerChild(level: level))
            try walk(children[index], region, level: level - 1, first: start, visit)
            children[index] = [:]
        }
    }

    /// All leaves of one span. A patch leaf's base keeps its own runs alive, changed pages included: descendants may read them through
    /// it.
    private func walkSpan(_ leaves: Blocks, _ region: Region, _ span: SpanIndex, _ visit: Visit) throws(StoreError) {
        var full: Blocks = [:]
        var runs: [BlockPointer: (places: UInt16, sharers: Int)] = [:]
        func list(_ run: BlockPointer, _ places: UInt16, _ sharers: Int) {
            let known = runs[run] ?? (0, 0)
            runs[run] = (known.places | places, known.sharers + sharers)
        }
        for (pointer, sharers) in sorted(leaves) {
            guard pointer.kind == .patchLeaf else {
                full[pointer, default: 0] += sharers
                continue
            }
            try visit(ReachedBlock(pointer: pointer, places: 0, sharers: sharers))
            let patch = try blocks.readPatch(pointer, key: region.longest.key, span: span)
            if !blocks.store.has(.forgetsPatchBases) { full[patch.base, default: 0] += sharers }
            for (number, run) in patch.runs.enumerated() {
                let places = patch.entries.reduce(UInt16(0)) { $1.run == UInt16(number) ? $0 | 1 << UInt16($1.pageOffset) : $0 }
                if places != 0 { list(run, places, sharers) }
            }
        }
        for (pointer, sharers) in sorted(full) {
            try visit(ReachedBlock(pointer: pointer, places: 0, sharers: sharers))
            let map = try blocks.readSpan(pointer, of: region.longest, span: span)
            var places = [UInt16](repeating: 0, count: map.runs.count)
            for page in 0..<pagesPerSpan where !map.isZero(page) { places[Int(map.runOf[page])] |= 1 << UInt16(map.offsetOf[page]) }
            for (run, listed) in zip(map.runs, places) where listed != 0 { list(run, listed, sharers) }
        }
        for (run, use) in runs.sorted(by: { ($0.key.segment, $0.key.offset) < ($1.key.segment, $1.key.offset) }) {
            try visit(ReachedBlock(pointer: run, places: use.places, sharers: use.sharers))
        }
    }
}
