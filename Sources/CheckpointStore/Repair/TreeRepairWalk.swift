// Everything that checkpoints reach, counted, whatever of it can't be read.
//
// Invariants:
// - Each block is counted once, where it is.
// - What stands below a block that can't be read is not counted, and `isWhole` says so.
// - Memory: some 32 bytes for each node and 64 for each run.

import StoreFormat
import Units

/// What checkpoints reach. Confined to one thread.
struct TreeRepairWalk {
    private let blocks: BlockReader
    private let moves: RecoveredMoves
    private var seen: Set<NodeIdentity> = []
    /// The places of each run that leaves list.
    private var places: [BlockPointer: UInt16] = [:]
    /// Runs that lost forwarding tables may have known.
    private var listed: [BlockPointer: ListedRun] = [:]
    /// By segment: what lives there, counted as in the table.
    private(set) var live: [SegmentIndex: UInt64] = [:]
    /// By segment: the end of the last block that is reached.
    private(set) var ends: [SegmentIndex: Int] = [:]
    /// Moved blocks that are reached; of runs, the places that leaves list.
    private(set) var reached: [ForwardingKey: UInt16] = [:]
    private(set) var isWhole = true
    /// What could not be found again of what lost tables knew.
    private(set) var unfound: [BlockPointer] = []

    /// Walks through `checkpoints`. Reads the whole index, and runs only where forwarding tables are lost.
    init(
        _ checkpoints: [CheckpointID: CatalogValue], _ blocks: BlockReader, _ moves: RecoveredMoves, pageHashSeed: UInt64
    ) throws(StoreError) {
        self.blocks = blocks
        self.moves = moves
        for (id, value) in checkpoints.sorted(by: { $0.key < $1.key }) {
            guard let record = try readable(value.record, { () throws(StoreError) in try blocks.readRecord(value, id: id) }) else { continue }
            try count(value.record, 0)
            for region in record.regions {
                guard let root = region.root else { continue }
                try walk(TreeNode(pointer: root, regionKey: region.key, first: SpanIndex(UInt64(0)), level: region.depth))
            }
        }
        for run in listed.values.sorted(by: { ($0.pointer.segment, $0.pointer.offset) < ($1.pointer.segment, $1.pointer.offset) })
        where try !moves.find(run, pageHashSeed: pageHashSeed) { unfound.append(run.pointer) }
        for (run, places) in places {
            do throws(StoreError) { try count(run, places) } catch {
                guard error.isDamage else { throw error }
                isWhole = false
            }
        }
    }

    private mutating func readable<T>(_ pointer: BlockPointer, _ body: () throws(StoreError) -> T) throws(StoreError) -> T? {
        do throws(StoreError) { return try body() } catch {
            guard error.isDamage else { throw error }
            isWhole = false
            if moves.isLost(pointer), (try? moves.resolve(pointer)) == nil { unfound.append(pointer) }
            return nil
        }
    }

    private mutating func count(_ pointer: BlockPointer, _ places: UInt16) throws(StoreError) {
        let block = try blocks.resolve(pointer)
        live[block.pointer.segment, default: 0] += UInt64(CommitTransaction.liveUnits(of: block.pointer, places: places & (block.kept ?? .max)))
        let end = block.pointer.offset.int + Int(block.pointer.storedLength)
        ends[block.pointer.segment] = max(ends[block.pointer.segment] ?? 0, end)
        reached[pointer.forwardingKey] = places
    }

    private mutating func walk(_ node: TreeNode) throws(StoreError) {
        guard seen.insert(node.identity).inserted else { return }
        let blocks = blocks
        guard node.level > 0 else { return try leaf(node) }
        let children = try readable(node.pointer) { () throws(StoreError) in try blocks.children(of: node) }
        guard let children else { return }
        try count(node.pointer, 0)
        for child in children { try walk(child) }
    }

    private mutating func leaf(_ node: TreeNode) throws(StoreError) {
        let blocks = blocks
        guard node.pointer.kind == .patchLeaf else {
            let leaf = try readable(node.pointer) { () throws(StoreError) in try blocks.readLeaf(node) }
            guard let leaf else { return }
            try count(node.pointer, 0)
            var number = 0
            for extent in leaf.extents {
                for index in 0..<Int(extent.pageCount) {
                    let page = ListedHash(page: extent.firstPage + UInt16(index), hash: leaf.hashes[number])
                    list(leaf.runs[Int(extent.runIndex)], Int(extent.pageOffset) + index, page, node)
                    number += 1
                }
            }
            return
        }
        let patch = try readable(node.pointer) { () throws(StoreError) in
            try blocks.readPatch(node.pointer, key: node.regionKey, span: node.first)
        }
        guard let patch else { return }
        try count(node.pointer, 0)
        for entry in patch.entries {
            guard let run = entry.run else { continue }
            list(patch.runs[Int(run)], Int(entry.pageOffset), ListedHash(page: entry.page, hash: entry.hash), node)
        }
        try walk(TreeNode(pointer: patch.base, regionKey: node.regionKey, first: node.first, level: 0))
    }

    private mutating func list(_ run: BlockPointer, _ place: Int, _ page: ListedHash, _ node: TreeNode) {
        places[run, default: 0] |= 1 << UInt16(place)
        guard moves.isLost(run) else { return }
        var known = listed[run] ?? ListedRun(run, key: node.regionKey, span: node.first)
        if known.key != node.regionKey || known.span != node.first { known.noteContradiction() }
        known.list(place, page)
        listed[run] = known
    }
}
