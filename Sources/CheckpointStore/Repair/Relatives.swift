// What stands in the store around damaged blocks of the index: what has the same place in other trees, and what they were made of.
//
// Invariants:
// - Blocks count only where their own checksums say that they are whole. Whether anything made of them is right, is for others to say.
// - Pointers are as trees name them: those of blocks that were moved lead to where they were first written.
// - Memory: what stands at the places of the damaged blocks and directly below them, in all checkpoints, living and deleted. No page.

import StoreFormat
import Units

/// A place in the page table of a region.
struct NodePosition: Hashable, Sendable {
    var key: RegionKey
    /// 0: a leaf.
    var level: UInt8
    var first: SpanIndex

    init(_ key: RegionKey, level: UInt8, first: SpanIndex) {
        (self.key, self.level, self.first) = (key, level, first)
    }

    init(_ node: TreeNode) { self.init(node.regionKey, level: node.level, first: node.first) }

    /// The place of the node that has this one's as a child; nil above the highest.
    var above: NodePosition? {
        guard level < PageTree.maximumDepth else { return nil }
        return NodePosition(key, level: level + 1, first: SpanIndex(of: PageTable.firstPage(of: first, level: level + 1)))
    }
}

/// A run as far as it is left.
struct RelatedRun: Sendable {
    struct Page: Sendable {
        /// Which page of the run as it was first written.
        var offset: UInt8
        /// Its number in the span.
        var page: UInt16
        var hash: Hash128
    }
    var pointer: BlockPointer
    var pages: [Page]
}

/// What was asked for.
struct RelativesWanted {
    /// The places of damaged nodes and leaves.
    var places: Set<NodePosition> = []
    /// The damaged blocks themselves: a copy may be left somewhere.
    var blocks: Set<BlockPointer> = []
    /// Regions of damaged records: everything that may be their root.
    var regions: Set<RegionKey> = []

    var wantsRuns: Bool { places.contains { $0.level == 0 } || !regions.isEmpty }
}

/// Everything that was found.
struct Relatives {
    private(set) var inner: [NodePosition: [(pointer: BlockPointer, node: InnerNode)]] = [:]
    private(set) var leaves: [NodePosition: [(pointer: BlockPointer, leaf: Leaf)]] = [:]
    private(set) var patches: [NodePosition: [(pointer: BlockPointer, patch: PatchLeaf)]] = [:]
    private(set) var runs: [NodePosition: [RelatedRun]] = [:]
    /// What stands below wanted places, in the order in which it was written as far as that shows.
    private(set) var children: [NodePosition: [BlockPointer]] = [:]
    private var childSets: [NodePosition: Set<BlockPointer>] = [:]
    /// Copies of the damaged blocks.
    private(set) var copies: [BlockPointer: [UInt8]] = [:]
    /// What may be a region's root.
    private(set) var roots: [RegionKey: [(pointer: BlockPointer, level: UInt8)]] = [:]
    private var stored: [BlockBirth: [RegionKey: [RunOrigin: StoredRun]]] = [:]

    /// Scans the store. Reads the segments of the index, and those of runs when leaves or records are wanted.
    /// - Parameter slot: a generation that is registered.
    /// - Throws: `.corrupt` when the forwarding tables can't be read.
    init(_ wanted: RelativesWanted, in slot: Slot, _ store: CheckpointStore) throws(StoreError) {
        var scan = RelativesScan(wanted, store, pageHashSeed: slot.pageHashSeed)
        scan.run(slot)
        try scan.lookUpOrigins(slot)
        for found in scan.found { add(found, wanted) }
        copies = scan.copies
        for place in runs.keys { namePointersOfRuns(at: place) }
        children = childSets.mapValues { $0.sorted(by: Self.isBefore) }
        childSets = [:]
        for place in runs.keys { runs[place]?.sort { Self.isBefore($0.pointer, $1.pointer) } }
    }

    /// The other blocks that were written nearest to one, a bounded number: what it was made on is likely among the first.
    static func nearest(to block: BlockPointer, of others: [BlockPointer]) -> [BlockPointer] {
        func distance(_ other: BlockPointer) -> UInt64 {
            max(other.placeNumber, block.placeNumber) - min(other.placeNumber, block.placeNumber)
        }
        let order = others.filter { $0 != block }.sorted { (distance($0), $0.placeNumber) < (distance($1), $1.placeNumber) }
        return Array(order.prefix(mostRelatives))
    }

    private static let mostRelatives = 1024

    private static func isBefore(_ a: BlockPointer, _ b: BlockPointer) -> Bool { a.placeNumber < b.placeNumber }

    private mutating func add(_ found: RelativesScan.Found, _ wanted: RelativesWanted) {
        let (place, pointer) = (found.place, found.pointer)
        let isRoot = place.first.rawValue == 0 && wanted.regions.contains(place.key) && pointer.kind != .run
        if isRoot { roots[place.key, default: []].append((pointer, place.level)) }
        if pointer.kind != .run, let above = place.above, wanted.places.contains(above) { addChild(pointer, at: place) }
        switch found.content {
        case .place: break
        case .inner(let node):
            inner[place, default: []].append((pointer, node))
            // It may name what can't be read.
            for (index, child) in node.children.enumerated() {
                let first = SpanIndex(place.first.rawValue + UInt64(index) * PageTable.spansPerChild(level: place.level))
                if let child { addChild(child, at: NodePosition(place.key, level: place.level - 1, first: first)) }
            }
        case .leaf(let leaf): leaves[place, default: []].append((pointer, leaf))
        case .patch(let patch): patches[place, default: []].append((pointer, patch))
        case .run(let pages):
            runs[place, default: []].append(RelatedRun(pointer: pointer, pages: pages))
            count(pointer, place.key, pages.count)
        case .countedRun(let pages): count(pointer, place.key, pages)
        }
    }

    private mutating func addChild(_ child: BlockPointer, at place: NodePosition) {
        childSets[place, default: []].insert(child)
    }

    /// Of a run as it was and the run as it was moved that counts which has more pages.
    private mutating func count(_ run: BlockPointer, _ key: RegionKey, _ pages: Int) {
        let origin = RunOrigin(run)
        if let known = stored[run.birth]?[key]?[origin], known.pages >= pages { return }
        stored[run.birth, default: [:]][key, default: [:]][origin] = StoredRun(pages: pages, bytes: Int(run.storedLength))
    }

    /// A run that was moved without some of its pages is named in leaves by what it was before; these know.
    private mutating func namePointersOfRuns(at place: NodePosition) {
        var named: [RunOrigin: BlockPointer] = [:]
        for (_, leaf) in leaves[place] ?? [] { for run in leaf.runs { named[RunOrigin(run)] = run } }
        for (_, patch) in patches[place] ?? [] { for run in patch.runs { named[RunOrigin(run)] = run } }
        var merged: [RunOrigin: RelatedRun] = [:]
        for run in runs[place] ?? [] {
            let origin = RunOrigin(run.pointer)
            let pointer = named[origin] ?? run.pointer
            // Of the run as it was, and as it is now, that counts which has more pages.
            if let known = merged[origin], known.pages.count >= run.pages.count { continue }
            merged[origin] = RelatedRun(pointer: pointer, pages: run.pages)
        }
        runs[place] = Array(merged.values)
    }

    /// What `birth` stored in runs of a region that was wanted.
    func stored(by birth: BlockBirth, in key: RegionKey) -> (pages: PageCount, bytes: ByteCount) {
        let runs = stored[birth]?[key] ?? [:]
        return (PageCount(runs.values.reduce(0) { $0 + $1.pages }), ByteCount(runs.values.reduce(0) { $0 + $1.bytes }))
    }

    private struct StoredRun {
        var pages: Int
        var bytes: Int
    }

    private struct RunOrigin: Hashable {
        var place: UInt64
        var birth: BlockBirth
        init(_ pointer: BlockPointer) { (place, birth) = (pointer.placeNumber, pointer.birth) }
    }
}
