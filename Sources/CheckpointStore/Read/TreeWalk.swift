// Walking through everything that checkpoints reach, shared parts at most twice.

import StoreFormat
import Units

/// Visits the blocks that checkpoints reach. Not thread-safe.
///
/// A block is reported when the first checkpoint reaches it and when a second one does (it is shared
/// then); after that it and what is below it are passed by, so that the walk is O(blocks), not O(checkpoints * blocks).
struct TreeWalk {
    let store: CheckpointStore
    /// How often each block was reached, by its place.
    private var visits: [UInt64: UInt8] = [:]
    /// Which places of each run leaves list.
    private var places: [UInt64: UInt16] = [:]
    /// Called with each block, how many of its pages no leaf before has listed (runs only), and whether it is its second
    /// visit. When sharing is not reported, it is called again for a run of which another leaf lists more pages.
    private let visit: (BlockPointer, _ listedPages: Int, _ isShared: Bool) -> Void
    /// 1: stop at blocks that were reached before; 2: report sharing.
    private let limit: UInt8

    init(
        store: CheckpointStore, reportsSharing: Bool, visit: @escaping (BlockPointer, _ listedPages: Int, _ isShared: Bool) -> Void
    ) {
        self.store = store
        self.visit = visit
        limit = reportsSharing ? 2 : 1
    }

    /// Visits one checkpoint's record and all its regions.
    mutating func walk(_ value: CatalogValue, id: CheckpointID) throws(StoreError) {
        var seen = Set<UInt64>()
        _ = reach(value.record, pages: 0, &seen)
        let record = try store.readRecord(value, id: id)
        for region in record.regions {
            guard let root = region.root else { continue }
            try walk(root, region, level: region.depth, span: SpanIndex(UInt64(0)), &seen)
        }
    }

    /// Notes a visit; false when the block need not be looked into.
    private mutating func reach(_ pointer: BlockPointer, pages: Int, _ seen: inout Set<UInt64>) -> Bool {
        let key = pointer.segment.rawValue << 32 | UInt64(pointer.offset.rawValue)
        guard seen.insert(key).inserted else { return false }
        let count = visits[key, default: 0]
        guard count < limit else { return false }
        visits[key] = count + 1
        visit(pointer, pages, count == 1)
        return true
    }

    private mutating func reachRun(_ pointer: BlockPointer, _ listed: UInt16, _ seen: inout Set<UInt64>) {
        let key = pointer.segment.rawValue << 32 | UInt64(pointer.offset.rawValue)
        let known = places[key] ?? 0
        places[key] = known | listed
        let added = (listed & ~known).nonzeroBitCount
        if !reach(pointer, pages: added, &seen), limit == 1, added > 0 { visit(pointer, added, false) }
    }

    private mutating func walk(
        _ pointer: BlockPointer, _ region: RegionRecord, level: UInt8, span: SpanIndex, _ seen: inout Set<UInt64>
    ) throws(StoreError) {
        guard reach(pointer, pages: 0, &seen) else { return }
        if level == 0 {
            try walkLeaf(pointer, region, span, &seen)
            return
        }
        let node = try store.readInner(pointer, of: region, firstPage: span.firstPage, level: level)
        for (index, child) in node.children.enumerated() {
            guard let child else { continue }
            let start = SpanIndex(span.rawValue + UInt64(index) * PageTable.spansPerChild(level: level))
            try walk(child, region, level: level - 1, span: start, &seen)
        }
    }

    private mutating func walkLeaf(
        _ pointer: BlockPointer, _ region: RegionRecord, _ span: SpanIndex, _ seen: inout Set<UInt64>
    ) throws(StoreError) {
        let map = try store.readSpan(pointer, of: region, span: span)
        if pointer.kind == .patchLeaf, let base = map.base, !store.has(.forgetsPatchBases) {
            // The base keeps its own runs alive, changed pages included: descendants may read them through it.
            if reach(base, pages: 0, &seen) { try walkLeaf(base, region, span, &seen) }
        }
        var placesOf = [UInt16](repeating: 0, count: map.runs.count)
        for page in 0..<pagesPerSpan where !map.isZero(page) {
            placesOf[Int(map.runOf[page])] |= 1 << UInt16(map.offsetOf[page])
        }
        for (run, listed) in placesOf.enumerated() where listed != 0 { reachRun(map.runs[run], listed, &seen) }
    }
}
