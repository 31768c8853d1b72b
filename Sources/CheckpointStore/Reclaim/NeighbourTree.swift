// The trees of the checkpoints that one being deleted may share blocks with.
//
// Invariant: nothing of a neighbour is read before it is asked for: with many branches the first one that is asked mostly settles it.

import StoreFormat
import Units

/// Reads index blocks and counts them. What can't be read is tried once. Confined to one thread.
final class NodeReader {
    let blocks: BlockReader
    private(set) var count = 0
    private var damaged: [BlockPointer: StoreError] = [:]

    init(_ blocks: BlockReader) { self.blocks = blocks }

    var store: CheckpointStore { blocks.store }

    func bytes(_ pointer: BlockPointer) throws(StoreError) -> [UInt8] {
        try once(pointer) { () throws(StoreError) in try blocks.readBlock(pointer) }
    }

    func record(_ value: CatalogValue, id: CheckpointID) throws(StoreError) -> CheckpointRecord {
        try once(value.record) { () throws(StoreError) in try blocks.readRecord(value, id: id) }
    }

    func inner(_ pointer: BlockPointer, of region: RegionRecord, firstPage: PageIndex, level: UInt8) throws(StoreError) -> InnerNode {
        try once(pointer) { () throws(StoreError) in try blocks.readInner(pointer, of: region, firstPage: firstPage, level: level) }
    }

    private func once<T>(_ pointer: BlockPointer, _ read: () throws(StoreError) -> T) throws(StoreError) -> T {
        if let known = damaged[pointer] { throw known }
        count += 1
        do throws(StoreError) { return try read() } catch {
            if error.isDamage { damaged[pointer] = error }
            throw error
        }
    }
}

/// A neighbour, its record read when it is first needed. Confined to one thread.
final class NeighbourRecord {
    let isBelow: Bool
    private let id: CheckpointID
    private let slot: Slot
    private let reader: NodeReader
    private var regions: [RegionKey: RegionRecord]?

    init(_ neighbour: LineageTree.Neighbour, slot: Slot, reader: NodeReader) {
        isBelow = neighbour.isBelow
        id = neighbour.id
        self.slot = slot
        self.reader = reader
    }

    func region(_ key: RegionKey) throws(StoreError) -> RegionRecord? {
        if let regions { return regions[key] }
        guard let value = try reader.store.catalogValue(of: id, in: slot) else {
            throw StoreError(
                .corrupt, "the lineage counts \(id) as living, the catalog does not have it", remedy: "Run `ckstore verify`.",
                medium: reader.store.medium.name)
        }
        let record = try reader.record(value, id: id)
        let read = Dictionary(record.regions.map { ($0.key, $0) }) { first, _ in first }
        regions = read
        return read[key]
    }
}

/// A neighbour's page table of one region. Confined to one thread.
final class NeighbourTree {
    var isBelow: Bool { record.isBelow }
    private let record: NeighbourRecord
    private let key: RegionKey
    private let reader: NodeReader
    /// The node read last at each level: the walk that asks goes through the spans in their order.
    private var path: [UInt8: (pointer: BlockPointer, node: InnerNode)] = [:]

    init(_ record: NeighbourRecord, key: RegionKey, reader: NodeReader) {
        self.record = record
        self.key = key
        self.reader = reader
    }

    /// Its node of `level` (0: a leaf) whose range begins with `span`; nil where it has none.
    func node(level: UInt8, span: SpanIndex) throws(StoreError) -> BlockPointer? {
        guard let region = try record.region(key), level <= region.depth, span.rawValue < PageTable.spanCount(region.pageCount),
            var pointer = region.root
        else { return nil }
        for upper in stride(from: region.depth, to: level, by: -1) {
            let node = try inner(pointer, region, firstPage: PageTable.firstPage(of: span, level: upper), level: upper)
            guard let child = node.children[PageTable.childIndex(span, level: upper)] else { return nil }
            pointer = child
        }
        return pointer
    }

    private func inner(
        _ pointer: BlockPointer, _ region: RegionRecord, firstPage: PageIndex, level: UInt8
    ) throws(StoreError) -> InnerNode {
        if let known = path[level], known.pointer == pointer { return known.node }
        let node = try reader.inner(pointer, of: region, firstPage: firstPage, level: level)
        path[level] = (pointer, node)
        return node
    }
}
