// Reading the blocks of a damaged store: where the pointer says, else where compaction has moved them.
//
// Invariant: what is returned has the checksum that its pointer, or the forwarding table's entry for it, holds.

import Media
import PageCodec
import StoreFormat
import Threading
import Units

/// A damaged store to read from. Thread-safe.
final class SalvageSource: Sendable {
    /// A handle over the medium that knows nothing but the layout; its roots are used by nobody but the catalog's reader.
    let store: CheckpointStore
    let layout: SalvageLayout
    let inventory: SalvageInventory
    private let births = Lock(Set<BlockBirth>())

    /// Births of the runs that leaves have named so far: they belong to checkpoints, whatever else is known of them.
    var namedBirths: Set<BlockBirth> { births.withLock { $0 } }

    init(store: CheckpointStore, layout: SalvageLayout, inventory: SalvageInventory) {
        self.store = store
        self.layout = layout
        self.inventory = inventory
    }

    /// Whether pages can be compared with their hashes: the seed is in the slots alone.
    var hasPageHashes: Bool { layout.slot != nil }

    /// Other places where the block of a pointer may be.
    private func alternatives(_ pointer: BlockPointer) -> [(pointer: BlockPointer, kept: UInt16?)] {
        let key = SalvageInventory.ForwardKey(segment: pointer.segment, offset: pointer.offset, birth: pointer.birth)
        var places: [(BlockPointer, UInt16?)] = (inventory.forwarded[key] ?? []).map { _, entry in
            var place = pointer
            (place.segment, place.offset, place.storedLength) = (entry.newSegment, entry.newOffset, entry.newStoredLength)
            (place.checksum, place.codec) = (entry.newChecksum, entry.codec)
            return (place, pointer.kind == .run ? entry.kept : nil)
        }
        if let whole = inventory.moved[SalvageInventory.MovedKey(birth: pointer.birth, checksum: pointer.checksum)], whole.kind == pointer.kind {
            places.append((whole, nil))
        }
        return places.filter { $0.0.storedLength <= $0.0.kind.maximumLength && $0.0.storedLength >= BlockHeader.encodedLength }
    }

    /// The verified bytes of an index block or a record.
    /// - Throws: what is wrong where the pointer points, when it is nowhere else either.
    func block(_ pointer: BlockPointer) throws(StoreError) -> [UInt8] {
        do throws(StoreError) { return try store.readInPlace(pointer) } catch {
            for (place, _) in alternatives(pointer) {
                if let bytes = try? store.readInPlace(place) { return bytes }
            }
            throw error
        }
    }

    func decode<T>(_ pointer: BlockPointer, _ body: (RawSpan) throws(FormatError) -> T) throws(StoreError) -> T {
        let bytes = try block(pointer)
        do { return unsafe try body(bytes.span.bytes) } catch { throw store.medium.corrupt(error, at: store.geometry.position(of: pointer)) }
    }

    func record(_ pointer: BlockPointer, id: CheckpointID) throws(StoreError) -> CheckpointRecord {
        let record = try decode(pointer) { bytes throws(FormatError) in try CheckpointRecord.decode(bytes) }
        guard record.id == id else { throw store.misplaced(pointer, "it is the record of \(record.id), not of \(id)") }
        return record
    }

    /// The children of an inner node, each with its first span.
    func children(_ pointer: BlockPointer, key: RegionKey, first: SpanIndex, level: UInt8) throws(StoreError) -> [BlockPointer?] {
        guard pointer.kind == .inner else { throw store.misplaced(pointer, "an inner node of level \(level) should be here") }
        return try decode(pointer) { bytes throws(FormatError) in
            let node = try InnerNode.decode(bytes)
            try node.checkPlace(regionKey: key, firstPage: first.firstPage, level: level)
            return node.children
        }
    }

    /// Where the pages of a span are, by its leaf.
    func spanMap(_ pointer: BlockPointer, key: RegionKey, span: SpanIndex) throws(StoreError) -> SpanMap {
        let map = try readMap(pointer, key: key, span: span)
        births.withLock { births in
            for run in map.runs { births.insert(run.birth) }
        }
        return map
    }

    private func readMap(_ pointer: BlockPointer, key: RegionKey, span: SpanIndex) throws(StoreError) -> SpanMap {
        guard pointer.kind == .patchLeaf else { return SpanMap(try leaf(pointer, key, span), at: pointer) }
        let patch = try decode(pointer) { bytes throws(FormatError) in
            let patch = try PatchLeaf.decode(bytes)
            try patch.checkPlace(regionKey: key, span: span)
            return patch
        }
        return SpanMap(patch, over: SpanMap(try leaf(patch.base, key, span), at: patch.base))
    }

    private func leaf(_ pointer: BlockPointer, _ key: RegionKey, _ span: SpanIndex) throws(StoreError) -> Leaf {
        guard pointer.kind == .leaf else { throw store.misplaced(pointer, "a leaf should be here") }
        return try decode(pointer) { bytes throws(FormatError) in
            let leaf = try Leaf.decode(bytes)
            try leaf.checkPlace(regionKey: key, span: span)
            return leaf
        }
    }

    /// Puts the `wanted` pages of a span at their places behind `base`, as far as they can be read. Returns those that can't.
    func place(
        _ wanted: PageSet, of map: SpanMap, key: RegionKey, span: SpanIndex, at base: UnsafeMutableRawPointer, _ decoder: RunDecoder
    ) -> PageSet {
        var lost = PageSet()
        map.forEachRun(among: wanted) { run, pages in
            if unsafe (try? decoder.place(pages, of: map, key: key, span: span, at: base)) != nil { return }
            lost = unsafe lost.union(placeMoved(map, run, pages, key: key, span: span, at: base, decoder))
        }
        guard let seed = layout.slot?.pageHashSeed, !map.hashes.isEmpty else { return lost }
        wanted.subtracting(lost).forEach { page in
            if !map.isZero(page), unsafe pageHash(UnsafeRawPointer(base + page * pageSize), seed: seed) != map.hashes[page] { lost.insert(page) }
        }
        return lost
    }

    /// The pages of a run that has been moved, perhaps without some of its pages. Returns those that can't be read.
    private func placeMoved(
        _ map: SpanMap, _ run: Int, _ pages: PageSet, key: RegionKey, span: SpanIndex, at base: UnsafeMutableRawPointer, _ decoder: RunDecoder
    ) -> PageSet {
        var lost = pages
        for (place, kept) in alternatives(map.runs[run]) where !lost.isEmpty {
            var (runOf, offsetOf, here) = (SpanMap.empty.runOf, SpanMap.empty.offsetOf, PageSet())
            lost.forEach { page in
                let old = UInt16(map.offsetOf[page])
                if let kept, kept >> old & 1 == 0 { return }
                here.insert(page)
                runOf[page] = 0
                offsetOf[page] = kept.map { UInt8(($0 & ((1 << old) - 1)).nonzeroBitCount) } ?? UInt8(old)
            }
            let moved = SpanMap(
                runs: [place], runOf: runOf, offsetOf: offsetOf, hashes: SpanMap.empty.hashes, base: nil, patched: PageSet())
            if !here.isEmpty, unsafe (try? decoder.place(here, of: moved, key: key, span: span, at: base)) != nil { lost = lost.subtracting(here) }
        }
        return lost
    }
}
