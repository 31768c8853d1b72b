// What all trees say of certain blocks: where nodes and leaves stand, which pages of runs are listed, and what these must hash to.
//
// Invariants:
// - Nodes that can't be read are passed over: what stands below them is not known, and can't be read either.
// - Each node is read once, however many checkpoints share it. Memory: some 32 bytes for each node.

import StoreFormat
import Units

/// A page that a leaf lists at a place of a run.
struct ListedHash: Equatable, Sendable {
    /// Its number in the span.
    var page: UInt16
    var hash: Hash128
}

/// A run as leaves name it.
struct ListedRun: Sendable {
    /// As trees name it.
    let pointer: BlockPointer
    let key: RegionKey
    let span: SpanIndex
    /// By place in the run as it was first written; nil: no leaf lists that place.
    private(set) var pages = [ListedHash?](repeating: nil, count: pagesPerRun)
    /// Leaves say different things of one place: none of them can be trusted.
    private(set) var isContradictory = false

    init(_ pointer: BlockPointer, key: RegionKey, span: SpanIndex) {
        self.pointer = pointer
        self.key = key
        self.span = span
    }

    /// The places that leaves list, as a set.
    var places: UInt16 { pages.indices.reduce(0) { pages[$1] == nil ? $0 : $0 | 1 << UInt16($1) } }

    mutating func list(_ place: Int, _ page: ListedHash) {
        if let known = pages[place], known != page { isContradictory = true }
        pages[place] = page
    }

    mutating func noteContradiction() { isContradictory = true }
}

/// Finds what trees say of damaged blocks. Confined to one thread.
struct RunListings {
    private let blocks: BlockReader
    private let wanted: Set<BlockPointer>
    private var seen: Set<NodeIdentity> = []
    /// Runs of those wanted that some leaf lists.
    private(set) var runs: [BlockPointer: ListedRun] = [:]
    /// Nodes and leaves of those wanted, where trees have them.
    private(set) var nodes: [BlockPointer: TreeNode] = [:]

    /// Walks through all checkpoints of the generation of `slot`, which the caller keeps registered. Reads the whole index, no page data.
    /// - Throws: `.corrupt` when the catalog can't be read; what the medium throws.
    init(of wanted: Set<BlockPointer>, in slot: Slot, _ store: CheckpointStore) throws(StoreError) {
        blocks = store.blocks(in: slot)
        self.wanted = wanted
        for (id, value) in try store.catalogValues(in: slot) {
            guard let record = try readable({ () throws(StoreError) in try blocks.readRecord(value, id: id) }) else { continue }
            for region in record.regions {
                guard let root = region.root else { continue }
                try walk(TreeNode(pointer: root, regionKey: region.key, first: SpanIndex(UInt64(0)), level: region.depth))
            }
        }
    }

    /// What `body` reads; nil where that is damaged.
    private func readable<T>(_ body: () throws(StoreError) -> T) throws(StoreError) -> T? {
        do throws(StoreError) { return try body() } catch {
            guard error.isDamage else { throw error }
            return nil
        }
    }

    private mutating func walk(_ node: TreeNode) throws(StoreError) {
        guard seen.insert(node.identity).inserted else { return }
        if wanted.contains(node.pointer) { nodes[node.pointer] = node }
        guard node.level > 0 else { return try leaf(node) }
        let blocks = blocks
        let children = try readable { () throws(StoreError) in try blocks.children(of: node) }
        guard let children else { return }
        for child in children { try walk(child) }
    }

    private mutating func leaf(_ node: TreeNode) throws(StoreError) {
        let blocks = blocks
        guard node.pointer.kind != .patchLeaf else {
            let patch = try readable { () throws(StoreError) in
                try blocks.readPatch(node.pointer, key: node.regionKey, span: node.first)
            }
            guard let patch else { return }
            for entry in patch.entries {
                guard let run = entry.run else { continue }
                list(patch.runs[Int(run)], Int(entry.pageOffset), ListedHash(page: entry.page, hash: entry.hash), node)
            }
            return try walk(TreeNode(pointer: patch.base, regionKey: node.regionKey, first: node.first, level: 0))
        }
        let leaf = try readable { () throws(StoreError) in try blocks.readLeaf(node) }
        guard let leaf else { return }
        var number = 0
        for extent in leaf.extents {
            for index in 0..<Int(extent.pageCount) {
                let page = ListedHash(page: extent.firstPage + UInt16(index), hash: leaf.hashes[number])
                list(leaf.runs[Int(extent.runIndex)], Int(extent.pageOffset) + index, page, node)
                number += 1
            }
        }
    }

    private mutating func list(_ run: BlockPointer, _ place: Int, _ page: ListedHash, _ node: TreeNode) {
        guard wanted.contains(run) else { return }
        var listed = runs[run] ?? ListedRun(run, key: node.regionKey, span: node.first)
        if listed.key != node.regionKey || listed.span != node.first { listed.noteContradiction() }
        listed.list(place, page)
        runs[run] = listed
    }
}
