// What dies with a checkpoint: a walk of its trees and of its neighbours' side by side.
//
// Invariants:
// - A block, or a page of a run, is released when no neighbour names it at the same place (region, level, first page), and only then.
//   Sharing arises from parent to child alone, so that what no neighbour names, nobody does.
// - What a neighbour has by the same pointer is not looked into: the work is O(blocks that die), times the neighbours looked at.
// - What the checkpoint wrote itself can only be named by its descendants: the others are not asked about that.

import StoreFormat
import Units

/// One deletion. Confined to one thread.
struct Deletion {
    private let reader: NodeReader
    private let birth: BlockBirth
    private let neighbours: [NeighbourRecord]
    private let release: (BlockPointer, _ places: UInt16) throws(StoreError) -> Void

    /// - Parameters:
    ///   - neighbours: see `LineageTree.neighbours`.
    ///   - slot: a generation in which all of them are.
    ///   - release: called once with every block that dies, and which of a run's pages do.
    init(
        of id: CheckpointID, neighbours: [LineageTree.Neighbour], slot: Slot, reader: NodeReader,
        release: @escaping (BlockPointer, _ places: UInt16) throws(StoreError) -> Void
    ) {
        self.reader = reader
        self.release = release
        birth = BlockBirth(id)
        self.neighbours = neighbours.map { NeighbourRecord($0, slot: slot, reader: reader) }
    }

    /// Releases all that dies with the checkpoint. When this throws, part of it has been released.
    func run(_ value: CatalogValue, id: CheckpointID) throws(StoreError) {
        let record = try reader.record(value, id: id)
        try release(value.record, 0)
        for region in record.regions {
            guard let root = region.root else { continue }
            var trees = neighbours.map { NeighbourTree($0, key: region.key, reader: reader) }
            try walk(root, region, level: region.depth, span: SpanIndex(UInt64(0)), &trees)
        }
    }

    private func walk(
        _ pointer: BlockPointer, _ region: RegionRecord, level: UInt8, span: SpanIndex, _ trees: inout [NeighbourTree]
    ) throws(StoreError) {
        if try isShared(pointer, level: level, span: span, &trees) { return }
        guard level > 0 else { return try releaseSpan(pointer, region, span, trees) }
        let node = try reader.inner(pointer, of: region, firstPage: span.firstPage, level: level)
        try release(pointer, 0)
        for (index, child) in node.children.enumerated() {
            guard let child else { continue }
            let start = SpanIndex(span.rawValue + UInt64(index) * PageTable.spansPerChild(level: level))
            try walk(child, region, level: level - 1, span: start, &trees)
        }
    }

    /// Whether a neighbour has the same node there. The one that has is asked first the next time.
    private func isShared(
        _ pointer: BlockPointer, level: UInt8, span: SpanIndex, _ trees: inout [NeighbourTree]
    ) throws(StoreError) -> Bool {
        for index in trees.indices where trees[index].isBelow || pointer.birth != birth {
            guard try trees[index].node(level: level, span: span) == pointer else { continue }
            if index > 0 { trees.swapAt(0, index) }
            return true
        }
        return false
    }

    /// Releases what a leaf names and none of the neighbours' leaves of that span does.
    private func releaseSpan(
        _ pointer: BlockPointer, _ region: RegionRecord, _ span: SpanIndex, _ trees: [NeighbourTree]
    ) throws(StoreError) {
        let reader = reader
        let leaves = SpanListingReader(store: reader.store, key: region.key, span: span) { pointer throws(StoreError) in
            try reader.bytes(pointer)
        }
        var dying = try leaves.listing(pointer)
        var seen: Set<BlockPointer> = []
        for tree in trees where !dying.isEmpty && (tree.isBelow || dying.names(blocksNotOf: birth)) {
            guard let other = try tree.node(level: 0, span: span), seen.insert(other).inserted else { continue }
            dying.subtract(try leaves.listing(other))
        }
        try dying.forEach { (block, places) throws(StoreError) in try release(block, places) }
    }
}
