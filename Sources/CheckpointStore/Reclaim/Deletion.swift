// What dies with a checkpoint: a walk of its trees and of its neighbours' side by side.
//
// Invariants:
// - A block, or a page of a run, is released when no neighbour names it at the same place (region, level, first page), and only then.
//   Sharing arises from parent to child alone, so that what no neighbour names, nobody does.
// - What a neighbour has by the same pointer is not looked into: the work is O(blocks that die), times the neighbours looked at.
// - What the checkpoint wrote itself can only be named by its descendants: the others are not asked about that.
// - What stands below a block that can't be read is taken for living, and all else is looked at.

import StoreFormat
import Units

/// One deletion. Confined to one thread.
struct Deletion {
    private let reader: NodeReader
    private let birth: BlockBirth
    private let neighbours: [NeighbourRecord]
    private let release: (BlockPointer, _ places: UInt16) throws(StoreError) -> Void
    private let skip: (StoreError) -> Void

    /// - Parameters:
    ///   - neighbours: see `LineageTree.neighbours`.
    ///   - slot: a generation in which all of them are.
    ///   - release: called once with every block that dies, and which of a run's pages do.
    ///   - skip: called with what is damaged, now and then more than once with the same.
    init(
        of id: CheckpointID, neighbours: [LineageTree.Neighbour], slot: Slot, reader: NodeReader,
        release: @escaping (BlockPointer, _ places: UInt16) throws(StoreError) -> Void, skip: @escaping (StoreError) -> Void
    ) {
        self.reader = reader
        self.release = release
        self.skip = skip
        birth = BlockBirth(id)
        self.neighbours = neighbours.map { NeighbourRecord($0, slot: slot, reader: reader) }
    }

    /// Releases all that dies with the checkpoint, as far as that can be read.
    func run(_ value: CatalogValue, id: CheckpointID) throws(StoreError) {
        var regions: [RegionRecord] = []
        try pastDamage { () throws(StoreError) in try release(value.record, 0) }
        try pastDamage { () throws(StoreError) in regions = try reader.record(value, id: id).regions }
        for region in regions {
            guard let root = region.root else { continue }
            var trees = neighbours.map { NeighbourTree($0, key: region.key, reader: reader) }
            try walk(root, region, level: region.depth, span: SpanIndex(UInt64(0)), &trees)
        }
    }

    /// Damage ends `body`, and nothing else.
    private func pastDamage(_ body: () throws(StoreError) -> Void) throws(StoreError) {
        do throws(StoreError) { try body() } catch {
            guard error.isDamage else { throw error }
            skip(error)
        }
    }

    private func walk(
        _ pointer: BlockPointer, _ region: RegionRecord, level: UInt8, span: SpanIndex, _ trees: inout [NeighbourTree]
    ) throws(StoreError) {
        var children: [BlockPointer?] = []
        try pastDamage { () throws(StoreError) in
            if try isShared(pointer, level: level, span: span, &trees) { return }
            guard level > 0 else { return try releaseSpan(pointer, region, span, trees) }
            children = try reader.inner(pointer, of: region, firstPage: span.firstPage, level: level).children
            try release(pointer, 0)
        }
        for (index, child) in children.enumerated() {
            guard let child else { continue }
            let start = SpanIndex(span.rawValue + UInt64(index) * PageTable.spansPerChild(level: level))
            try walk(child, region, level: level - 1, span: start, &trees)
        }
    }

    /// Whether a neighbour has the same node there. The one that has is asked first the next time.
    /// - Throws: damage, when none has and some can't be asked.
    private func isShared(
        _ pointer: BlockPointer, level: UInt8, span: SpanIndex, _ trees: inout [NeighbourTree]
    ) throws(StoreError) -> Bool {
        var damage: StoreError?
        for index in trees.indices where trees[index].isBelow || pointer.birth != birth {
            do throws(StoreError) {
                guard try trees[index].node(level: level, span: span) == pointer else { continue }
            } catch {
                guard error.isDamage else { throw error }
                damage = error
                continue
            }
            if index > 0 { trees.swapAt(0, index) }
            return true
        }
        if let damage { throw damage }
        return false
    }

    /// Releases what a leaf names and none of the neighbours' leaves of that span does.
    /// - Throws: damage, when what is left may be named by a neighbour's leaf that can't be read; nothing is released then.
    private func releaseSpan(
        _ pointer: BlockPointer, _ region: RegionRecord, _ span: SpanIndex, _ trees: [NeighbourTree]
    ) throws(StoreError) {
        let reader = reader
        let leaves = SpanListingReader(store: reader.store, key: region.key, span: span) { pointer throws(StoreError) in
            try reader.bytes(pointer)
        }
        var dying = try leaves.listing(pointer)
        var seen: Set<BlockPointer> = []
        var damage: StoreError?
        for tree in trees where !dying.isEmpty && (tree.isBelow || dying.names(blocksNotOf: birth)) {
            do throws(StoreError) {
                guard let other = try tree.node(level: 0, span: span), seen.insert(other).inserted else { continue }
                dying.subtract(try leaves.listing(other))
            } catch {
                guard error.isDamage else { throw error }
                damage = error
            }
        }
        if let damage, !dying.isEmpty { throw damage }
        try dying.forEach { (block, places) throws(StoreError) in try release(block, places) }
    }
}
