// What a repair commits: blocks that were written anew, and counts of what lives.

import Media
import StoreFormat
import Units

extension CheckpointStore {
    /// Makes rebuilt blocks count, all in one generation: their pointers lead to the new places from then on. Durable on return. Under the
    /// reclaim lock.
    ///
    /// - Parameter uses: what was written for them, flushed.
    /// - Returns: how many segments became free, since nothing lives in them any more.
    func forward(_ rebuilt: [RebuiltBlock], _ uses: [SegmentUse]) throws(StoreError) -> Int {
        var freed: [SegmentIndex] = []
        defer { unclaim(freed) }
        let generation = try commit { transaction throws(StoreError) in
            transaction.mayUseReserve = true
            for use in uses { try transaction.append(use) }
            for block in rebuilt { try transaction.replace(block) }
            freed = try transaction.freeEmptied()
            return transaction.generation
        }
        try giveBack(freed, generation)
        return freed.count
    }

    /// Counts anew what lives in each segment, and frees those in which nothing does. Reads the whole index, no page data. Under the
    /// reclaim lock. Where the index can't be read, nothing is changed: what is not seen may live.
    ///
    /// - Returns: how many segments were counted wrongly, and how many became free.
    func recount() throws(StoreError) -> (recounted: Int, freed: Int) {
        let slot = try register()
        defer { unregister(slot.generation) }
        let surplus: [SegmentIndex: Int64]
        var idle: [SegmentIndex] = []
        do throws(StoreError) {
            let live = try LiveCounts(of: slot, self)
            surplus = live.surplus
            try forEachUsedSegment(slot) { (segment, entry) throws(StoreError) in
                if Int64(entry.live) - (surplus[segment] ?? 0) == 0, entry.segmentClass != .catalog, try lockClaim(segment) {
                    unclaim([segment])
                    idle.append(segment)
                }
            }
        } catch {
            guard error.isDamage else { throw error }
            return (0, 0)
        }
        guard !surplus.isEmpty || !idle.isEmpty else { return (0, 0) }
        return try commit(surplus, idle)
    }

    private func commit(_ surplus: [SegmentIndex: Int64], _ idle: [SegmentIndex]) throws(StoreError) -> (recounted: Int, freed: Int) {
        var freed: [SegmentIndex] = []
        var recounted = 0
        defer { unclaim(freed) }
        let generation = try commit { transaction throws(StoreError) in
            transaction.mayUseReserve = true
            for (segment, units) in surplus.sorted(by: { $0.key < $1.key }) where try transaction.lower(segment, by: units) { recounted += 1 }
            transaction.lowered.formUnion(idle)
            freed = try transaction.freeEmptied()
            // Entries that nothing needs any more must not lead to what is written there next.
            try transaction.forgetMoves(into: Set(freed))
            return transaction.generation
        }
        try giveBack(freed, generation)
        return (recounted, freed.count)
    }

    /// Makes one more generation, so that freed segments may be used again, and gives them back to the medium.
    func giveBack(_ freed: [SegmentIndex], _ generation: Generation) throws(StoreError) {
        guard !freed.isEmpty else { return }
        try advanceGeneration(beyond: generation)
        _ = try discard(freed)
    }
}

extension CommitTransaction {
    /// Leads the block's pointers to its copy. What its old place still counted goes: the copy counts for all of it that is to be had.
    fileprivate func replace(_ block: RebuiltBlock) throws(StoreError) {
        if let entry = try moves.entry(of: block.pointer) {
            try lowerLive(of: entry.newSegment, by: Self.liveUnits(of: entry.target, places: entry.live))
        } else {
            try lowerLive(of: block.pointer.segment, by: Self.liveUnits(of: block.pointer, places: block.listed))
        }
        try moves.set(ForwardingEntry(from: block.pointer, to: block.copy, kept: block.kept, live: block.kept), of: block.pointer.segment)
    }

    /// Takes `units` (of either sign) off what the table counts in a segment. False when that has been freed, or counts less, meanwhile.
    fileprivate func lower(_ segment: SegmentIndex, by units: Int64) throws(StoreError) -> Bool {
        let entry = try table.entry(segment)
        guard entry.isUsed, let live = UInt32(exactly: Int64(entry.live) - units) else { return false }
        try table.update(segment) { entry in
            entry.live = live
            entry.written = max(entry.written, live)
        }
        if entry.segmentClass != .catalog {
            lowered.insert(segment)
        } else if live == 0, slot.catalogSegment != segment {
            try free(segment)
        }
        return true
    }
}

/// What the segment table counts, compared with what is reachable.
private struct LiveCounts {
    /// By segment: what the table counts too much; negative: too little. Segments that are counted right are left out.
    private(set) var surplus: [SegmentIndex: Int64] = [:]

    /// Walks through everything that `slot` reaches, which is registered.
    /// - Throws: `.corrupt` when something can't be read.
    init(of slot: Slot, _ store: CheckpointStore) throws(StoreError) {
        var live: [SegmentIndex: Int64] = [:]
        func count(_ pointer: BlockPointer, _ places: UInt16 = 0) {
            live[pointer.segment, default: 0] += Int64(CommitTransaction.liveUnits(of: pointer, places: places))
        }
        let blocks = store.blocks(in: slot)
        try TreeWalk(blocks: blocks).walk(try store.catalogValues(in: slot)) { (reached) throws(StoreError) in
            let block = try blocks.resolve(reached.pointer)
            count(block.pointer, reached.places & (block.kept ?? .max))
        }
        let trees: [(BlockPointer?, CatalogTree)] = [(slot.catalogByID, .byID), (slot.catalogByName, .byName), (slot.lineage, .lineage)]
        for (root, tree) in trees {
            try store.forEachInCatalog(root, tree: tree, visiting: { count($0) }) { (_, _) throws(StoreError) in }
        }
        try store.forEachForwardingTable(slot.forwarding, visiting: { count($0) }) { (named, _) throws(StoreError) in count(named.pointer) }
        if let root = slot.segmentTable {
            try store.forEachTableNode(root, level: slot.geometry.tableDepth, first: SegmentIndex(UInt64(0))) { count($0) }
        }
        var surplus: [SegmentIndex: Int64] = [:]
        try store.forEachUsedSegment(slot) { segment, entry in
            let difference = Int64(entry.live) - (live[segment] ?? 0)
            if difference != 0 { surplus[segment] = difference }
        }
        self.surplus = surplus
    }
}

extension CheckpointStore {
    /// Calls `body` with the pointer to each node of the segment table below `pointer`.
    fileprivate func forEachTableNode(
        _ pointer: BlockPointer, level: UInt8, first: SegmentIndex, _ body: (BlockPointer) -> Void
    ) throws(StoreError) {
        body(pointer)
        guard level > 0 else { return }
        let node = try readTableInner(pointer, level: level, containing: first)
        for (index, child) in node.children.enumerated() {
            guard let child else { continue }
            let start = SegmentIndex(first.rawValue + UInt64(index) * SegmentTable.segmentsPerNode(level: level - 1))
            try forEachTableNode(child, level: level - 1, first: start, body)
        }
    }
}
