// What a leaf keeps alive.
//
// Invariant: pages of a base that a patch leaf hides count as listed: descendants may read them through the base.

import StoreFormat
import Units

/// The blocks that a leaf names: itself, its base, and of each run the places that it lists, hidden ones included.
struct SpanListing {
    private(set) var blocks: Set<BlockPointer> = []
    /// Of each run: bit i is set when page i of it is listed.
    private(set) var places: [BlockPointer: UInt16] = [:]

    var isEmpty: Bool { blocks.isEmpty && places.isEmpty }

    /// Whether some block was written by another checkpoint than `birth`.
    func names(blocksNotOf birth: BlockBirth) -> Bool {
        blocks.contains { $0.birth != birth } || places.keys.contains { $0.birth != birth }
    }

    mutating func add(_ leaf: Leaf, at pointer: BlockPointer) {
        blocks.insert(pointer)
        for extent in leaf.extents {
            places[leaf.runs[Int(extent.runIndex)], default: 0] |= ((1 << UInt16(extent.pageCount)) &- 1) << UInt16(extent.pageOffset)
        }
    }

    mutating func add(_ patch: PatchLeaf, at pointer: BlockPointer) {
        blocks.insert(pointer)
        for entry in patch.entries {
            guard let run = entry.run else { continue }
            places[patch.runs[Int(run)], default: 0] |= 1 << UInt16(entry.pageOffset)
        }
    }

    /// Takes out what `other` names too.
    mutating func subtract(_ other: SpanListing) {
        blocks.subtract(other.blocks)
        for (run, listed) in other.places {
            guard let mine = places[run] else { continue }
            let left = mine & ~listed
            places[run] = left == 0 ? nil : left
        }
    }

    /// Calls `body` with each block that was written by `birth` (nil: by anybody), and the places in it.
    func forEach(of birth: BlockBirth? = nil, _ body: (BlockPointer, UInt16) throws(StoreError) -> Void) throws(StoreError) {
        for block in blocks where birth == nil || block.birth == birth { try body(block, 0) }
        for (run, listed) in places where birth == nil || run.birth == birth { try body(run, listed) }
    }
}

/// Reads what leaves of one span list. Bases are read once, however many patch leaves stand over them. Confined to one thread.
final class SpanListingReader {
    private let store: CheckpointStore
    private let key: RegionKey
    private let span: SpanIndex
    private let read: (BlockPointer) throws(StoreError) -> [UInt8]
    private var leaves: [BlockPointer: Leaf] = [:]

    /// - Parameter read: gives the verified bytes of a block.
    init(
        store: CheckpointStore, key: RegionKey, span: SpanIndex, read: @escaping (BlockPointer) throws(StoreError) -> [UInt8]
    ) {
        self.store = store
        self.key = key
        self.span = span
        self.read = read
    }

    /// - Throws: `.corrupt` when the leaf or its base is damaged or belongs elsewhere.
    func listing(_ pointer: BlockPointer) throws(StoreError) -> SpanListing {
        var listing = SpanListing()
        guard pointer.kind == .patchLeaf else {
            listing.add(try leaf(pointer), at: pointer)
            return listing
        }
        let (key, span) = (key, span)
        let patch = try decode(pointer) { bytes throws(FormatError) in
            let patch = try PatchLeaf.decode(bytes)
            try patch.checkPlace(regionKey: key, span: span)
            return patch
        }
        listing.add(patch, at: pointer)
        if !store.has(.forgetsPatchBases) { listing.add(try leaf(patch.base), at: patch.base) }
        return listing
    }

    private func leaf(_ pointer: BlockPointer) throws(StoreError) -> Leaf {
        if let known = leaves[pointer] { return known }
        let (key, span) = (key, span)
        let leaf = try decode(pointer) { bytes throws(FormatError) in
            let leaf = try Leaf.decode(bytes)
            try leaf.checkPlace(regionKey: key, span: span)
            return leaf
        }
        leaves[pointer] = leaf
        return leaf
    }

    private func decode<T>(_ pointer: BlockPointer, _ decode: (RawSpan) throws(FormatError) -> T) throws(StoreError) -> T {
        let bytes = try read(pointer)
        do { return unsafe try decode(bytes.span.bytes) } catch {
            throw store.medium.corrupt(error, at: store.geometry.position(of: pointer))
        }
    }
}
