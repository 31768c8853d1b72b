// One commit: a new generation made from the newest one under the commit lock (format, 3.3 and 8).
//
// Invariants:
// - The transaction is based on the newest slot read under the lock, and changes are applied to that.
// - Order: nodes, flush, both twins of the slot, flush. Nothing the newest generation names is overwritten.
// - When the outcome of the last flush is unknown, the new slots are poisoned and the handle fails.

import Media
import PageCodec
import StoreFormat
import Units

/// What a commit does to the state it finds. Confined to the committing thread.
final class CommitTransaction {
    let store: CheckpointStore
    /// The state that this commit is based on.
    let base: Slot
    /// The generation being made.
    let generation: Generation
    let byID: CatalogEditor
    let byName: CatalogEditor
    let lineage: CatalogEditor
    let forwarding: CatalogEditor
    let table: TableEditor
    /// The tables below `forwarding`.
    let moves: ForwardingEditor
    /// The new state; roots are filled in at the end.
    var slot: Slot
    /// Whether the reserve may be used: for delete, compaction, abort.
    var mayUseReserve = false
    /// Segments of runs and index that blocks were released from.
    var lowered: Set<SegmentIndex> = []
    private var freshCatalogSegments: [SegmentClaim] = []

    init(store: CheckpointStore, base: Slot, segmentCount: UInt32? = nil) throws(StoreError) {
        self.store = store
        self.base = base
        generation = base.generation.next
        byID = CatalogEditor(store: store, tree: .byID, root: base.catalogByID)
        byName = CatalogEditor(store: store, tree: .byName, root: base.catalogByName)
        lineage = CatalogEditor(store: store, tree: .lineage, root: base.lineage)
        forwarding = CatalogEditor(store: store, tree: .forwarding, root: base.forwarding)
        moves = ForwardingEditor(store: store, tree: forwarding, root: base.forwarding)
        slot = base
        slot.generation = generation
        slot.baseGeneration = generation
        slot.kind = .commit
        slot.commitTimeNanoseconds = store.environment.nowNanoseconds()
        if let segmentCount {
            slot.geometry.segmentCount = segmentCount
            slot.reserveSegments = CheckpointStore.reserve(of: segmentCount)
            if slot.allocationHint.rawValue >= UInt64(segmentCount) { slot.allocationHint = SegmentIndex(UInt64(0)) }
        }
        table = try TableEditor(store: store, slot: base, segmentCount: slot.geometry.segmentCount)
    }

    // MARK: changes

    /// Adds a checkpoint whose record is stored. Its name must be free and its parent still there: the one that its trees were built
    /// over. (A received checkpoint's record may name another, that it had where it comes from.) `latest` and `references` move to it.
    func add(
        _ record: CheckpointRecord, at pointer: BlockPointer, over parent: CheckpointID?, references: [String] = []
    ) throws(StoreError) {
        if let parent, !store.has(.skipsParentCheck), try byID.value(of: CatalogTree.key(parent)) == nil {
            throw StoreError(
                .wrongBase, "its parent \(parent) has been deleted meanwhile",
                remedy: "Save again with another parent, or with none.", medium: store.medium.name, checkpoint: record.name)
        }
        let name = CatalogTree.key(record.name)
        let taken = (try byName.value(of: name), try byID.value(of: CatalogTree.key(record.id)))
        guard taken == (nil, nil) || store.has(.skipsNameCheck) else {
            throw CheckpointStore.nameTaken(record.name, store.medium)
        }
        let value = CatalogValue(record: pointer, generation: generation, flags: 0)
        try byID.insert(CatalogTree.key(record.id), value.encoded())
        try byName.insert(name, CatalogTree.value(record.id))
        let lineage = lineageTree
        guard try lineage.reference(record.name) == nil || store.has(.skipsNameCheck) else {
            throw CheckpointStore.nameTaken(record.name, store.medium)
        }
        guard try lineage.node(record.id) == nil else {
            throw StoreError(
                .exists, "there is a checkpoint of that id, or there was one that still joins branches",
                remedy: "Receive it into another store, or delete the branches first.", medium: store.medium.name, checkpoint: record.name)
        }
        try lineage.add(record.id, parent: parent)
        for reference in references { try point(reference, to: record.id) }
        // What has come in part is not a checkpoint to go on from.
        if !Names.isPartial(record.name) { try lineage.point(Reference.latest, to: record.id) }
        try raise(&slot.checkpointCount)
    }

    /// Records what a checkpoint appended to a segment that its writer has claimed. Where it wrote nothing that it still reaches, what it
    /// wrote is left behind as that of an aborted writer is.
    func append(_ use: SegmentUse) throws(StoreError) {
        guard use.live > 0 else { return }
        var isNew = false
        try table.update(use.segment) { entry in
            isNew = !entry.isUsed
            if isNew { entry = .neverUsed }
            entry.isUsed = true
            entry.segmentClass = use.segmentClass
            entry.committedLength = UInt32(use.committedLength)
            entry.live = entry.live.addingReportingOverflow(use.live).overflow ? .max : entry.live + use.live
            entry.written = entry.written.addingReportingOverflow(use.live).overflow ? .max : entry.written + use.live
            entry.birth = use.birth
        }
        if isNew { try raise(&slot.usedSegments) }
        slot.allocationHint = use.segment
    }

    /// Frees a used segment that no tree of the new generation names.
    func free(_ segment: SegmentIndex) throws(StoreError) {
        let freedGeneration = generation
        // What can fail comes first: entry and counter change together.
        try table.touch(segment)
        try lower(&slot.usedSegments)
        try table.update(segment) { entry in
            entry = SegmentEntry(
                isUsed: false, segmentClass: entry.segmentClass, committedLength: 0, live: 0, written: 0, birth: entry.birth,
                freedGeneration: freedGeneration)
        }
    }

    /// Counters come from the medium: one that would leave its range was wrong before.
    func raise<Counter: FixedWidthInteger>(_ counter: inout Counter, by added: Counter = 1) throws(StoreError) {
        let (sum, overflow) = counter.addingReportingOverflow(added)
        guard !overflow else { throw inconsistent("a counter of the store is too high to be right") }
        counter = sum
    }

    func lower<Counter: FixedWidthInteger>(_ counter: inout Counter) throws(StoreError) {
        guard counter > 0 else { throw inconsistent("a counter of the store is too low to be right") }
        counter -= 1
    }

    func inconsistent(_ reason: String) -> StoreError {
        StoreError(.corrupt, reason, remedy: "Run `ckstore verify`.", medium: store.medium.name)
    }

    // MARK: finishing

    /// Writes everything and makes it durable. On return the new generation is the store's newest.
    func finish() throws(StoreError) -> Slot {
        defer { store.release(freshCatalogSegments) }
        try writeNodes()
        if !mayUseReserve, slot.usedSegments > base.usedSegments,
            UInt64(slot.usedSegments) + UInt64(slot.reserveSegments) > UInt64(slot.geometry.segmentCount)
        {
            throw store.fullError(slot)
        }
        if !store.has(.skipsNodeFlush) {
            do { try onMedium { () throws(MediumError) in try store.medium.flush() } } catch { throw store.fail(error) }
        }
        try publish()
        return slot
    }

    /// A generation with the same roots: it makes the one before it older, and nothing else.
    func finishUnchanged() throws(StoreError) -> Slot {
        try publish()
        return slot
    }

    private func publish() throws(StoreError) {
        // A slot that no reader accepts would cost the store: rather this commit.
        do { try slot.check() } catch { throw inconsistent("the new superblock slot would contradict itself (\(error))") }
        do {
            for twin in store.has(.writesOneTwin) ? [UInt8(0)] : [0, 1] { try SlotRing.write(slot, twin: twin, to: store.medium) }
            try onMedium { () throws(MediumError) in try store.medium.flush() }
        } catch {
            if store.has(.ignoresFlushFailures) { return }
            if store.has(.retriesFlushes), (try? store.medium.flush()) != nil { return }
            poison()
            throw store.fail(error)
        }
    }

    /// Takes the new slots back as far as the medium still listens: whether they had become durable is
    /// unknown, and later openers must verify before they write. Failures here change nothing about that.
    private func poison() {
        var poisoned = base
        poisoned.kind = .poisoned
        poisoned.generation = generation
        poisoned.baseGeneration = base.baseGeneration
        for twin in [UInt8(0), 1] { try? SlotRing.write(poisoned, twin: twin, to: store.medium) }
        try? store.medium.flush()
    }

    // MARK: catalog and table nodes

    private struct Placement {
        var node: any CommitNode
        var segment: SegmentIndex
        var offset: Int
    }

    /// Finds places for all edited nodes (which segments are touched decides which table nodes are edited, and so
    /// on until nothing is added), then writes them.
    private func writeNodes() throws(StoreError) {
        try moves.settle()
        var placements: [Placement]
        var ends: [(segment: SegmentIndex, start: Int, end: Int)]
        while true {
            let before = (table.numberOfDirtyNodes, freshCatalogSegments.count)
            let nodes = editedNodes()
            for origin in replaced(by: nodes) { try table.touch(origin.segment) }
            (placements, ends) = try place(nodes)
            for end in ends { try table.touch(end.segment) }
            if before == (table.numberOfDirtyNodes, freshCatalogSegments.count) { break }
        }
        try account(placements, ends: ends)
        try write(placements, ends: ends)
        slot.catalogByID = byID.rootPointer
        slot.catalogByName = byName.rootPointer
        slot.lineage = lineage.rootPointer
        slot.forwarding = forwarding.rootPointer
        slot.segmentTable = table.rootPointer
        settleFeatures()
    }

    /// Brings the features and their names in line with the roots.
    func settleFeatures() {
        slot.incompat = slot.forwarding == nil ? slot.incompat & ~Feature.forwarding : slot.incompat | Feature.forwarding
        // Names of features that this version does not know stay as they are.
        let known = Feature.names.map { ($0.mask.rawValue, $0.bit) }
        slot.featureNames =
            Feature.names(incompat: slot.incompat, readOnlyCompat: slot.readOnlyCompat, compat: slot.compat)
            + slot.featureNames.filter { name in !known.contains { $0 == (name.mask.rawValue, name.bit) } }
    }

    private func editedNodes() -> [any CommitNode] {
        moves.changedTables as [any CommitNode] + byID.dirtyNodes() + byName.dirtyNodes() + lineage.dirtyNodes() + forwarding.dirtyNodes() + table.dirtyNodes()
    }

    private func replaced(by nodes: [any CommitNode]) -> [BlockPointer] {
        nodes.compactMap(\.origin) + moves.dropped + byID.dropped + byName.dropped + lineage.dropped + forwarding.dropped + table.dropped
    }

    /// Lays the nodes out behind what is committed, claiming segments as needed.
    private func place(
        _ nodes: [any CommitNode]
    ) throws(StoreError) -> ([Placement], [(segment: SegmentIndex, start: Int, end: Int)]) {
        let size = Int(slot.geometry.segmentSize)
        let unit = Int(slot.geometry.commitUnit)
        var ends: [(segment: SegmentIndex, start: Int, end: Int)] = []
        if let current = base.catalogSegment {
            let start = Int(try committedLength(of: current))
            ends.append((current, start, start))
        }
        var fresh = freshCatalogSegments[...]
        var placements: [Placement] = []
        for node in nodes {
            let length = roundUp(node.encodedLength, to: blockAlignment)
            if ends.isEmpty || roundUp(ends[ends.count - 1].end + length, to: unit) > size {
                if fresh.isEmpty {
                    freshCatalogSegments.append(try claimCatalogSegment())
                    fresh = freshCatalogSegments.suffix(1)
                }
                let claim = fresh.removeFirst()
                ends.append((claim.segment, 0, SegmentHeader.encodedLength))
            }
            placements.append(Placement(node: node, segment: ends[ends.count - 1].segment, offset: ends[ends.count - 1].end))
            ends[ends.count - 1].end += length
        }
        return (placements, ends.filter { $0.end > $0.start })
    }

    /// A segment of the base's that is there in the new generation too.
    private func claimCatalogSegment() throws(StoreError) -> SegmentClaim {
        let limit = min(base.geometry.segmentCount, slot.geometry.segmentCount)
        return try store.claimSegment(.catalog, base: base, below: limit, mayUseReserve: true)
    }

    private func committedLength(of segment: SegmentIndex) throws(StoreError) -> UInt32 {
        var reader = TableReader(store: store, slot: base)
        let entry = try reader.entry(segment)
        guard entry.isUsed, entry.segmentClass == .catalog, entry.committedLength <= base.geometry.segmentSize,
            entry.committedLength % base.geometry.commitUnit == 0
        else { throw inconsistent("segment \(segment), where commits append, is no segment that a catalog can be in") }
        return entry.committedLength
    }

    /// Brings the entries of the catalog's segments up to date: what is written, what it replaces.
    private func account(
        _ placements: [Placement], ends: [(segment: SegmentIndex, start: Int, end: Int)]
    ) throws(StoreError) {
        let unit = Int(slot.geometry.commitUnit)
        let birth = BlockBirth(generation)
        for end in ends {
            var isNew = false
            try table.update(end.segment) { entry in
                isNew = !entry.isUsed
                if isNew { entry = .neverUsed }
                entry.isUsed = true
                entry.segmentClass = .catalog
                entry.committedLength = UInt32(roundUp(end.end, to: unit))
                entry.birth = birth
            }
            if isNew { try raise(&slot.usedSegments) }
        }
        for placement in placements {
            let units = Self.liveUnits(placement.node.encodedLength)
            var entry = try table.entry(placement.segment)
            try raise(&entry.live, by: units)
            try raise(&entry.written, by: units)
            let updated = entry
            try table.update(placement.segment) { $0 = updated }
        }
        if let last = ends.last { slot.catalogSegment = last.segment }
        for origin in replaced(by: placements.map(\.node)) {
            let units = Self.liveUnits(Int(origin.storedLength))
            var entry = try table.entry(origin.segment)
            guard entry.isUsed, entry.live >= units else {
                throw StoreError(
                    .corrupt, "the segment table counts less than is live in segment \(origin.segment)",
                    remedy: "Run `ckstore verify`.", medium: store.medium.name)
            }
            entry.live -= units
            let updated = entry
            try table.update(origin.segment) { $0 = updated }
            if updated.live == 0, slot.catalogSegment != origin.segment { try free(origin.segment) }
        }
    }

    /// The share of a block in its segment's `live`: a run's listed pages; else its bytes in steps of 64.
    static func liveUnits(of pointer: BlockPointer, places: UInt16) -> UInt32 {
        pointer.kind == .run ? UInt32(places.nonzeroBitCount) : liveUnits(Int(pointer.storedLength))
    }

    /// The share of a block that is no run in its segment's `live`: its bytes in steps of 64.
    static func liveUnits(_ length: Int) -> UInt32 { UInt32(roundUp(length, to: blockAlignment) / blockAlignment) }

    private func write(
        _ placements: [Placement], ends: [(segment: SegmentIndex, start: Int, end: Int)]
    ) throws(StoreError) {
        let unit = Int(slot.geometry.commitUnit)
        var remaining = placements[...]
        for end in ends {
            let buffer = AlignedBuffer(count: roundUp(end.end, to: unit) - end.start)
            buffer.clear(0..<buffer.count)
            if end.start == 0 { unsafe buffer.bytes.copyBytes(from: header(of: end.segment)) }
            while let placement = remaining.first, placement.segment == end.segment {
                remaining.removeFirst()
                let bytes = placement.node.encoded(birth: BlockBirth(generation))
                unsafe UnsafeMutableRawBufferPointer(rebasing: buffer.bytes[(placement.offset - end.start)...])
                    .copyBytes(from: bytes)
                placement.node.stored = try pointer(to: bytes, placement)
            }
            let offset = slot.geometry.offset(of: end.segment) + ByteCount(end.start)
            try onMedium { () throws(MediumError) in
                unsafe try store.medium.write(at: offset, UnsafeRawBufferPointer(buffer.bytes))
            }
            if end.start == 0 { try clear(end.segment, from: buffer.count) }
        }
    }

    /// Makes the rest of a fresh segment zero: nodes of an earlier store there would look like those of commits whose slots
    /// were lost. What is zero already is left as it is.
    func clear(_ segment: SegmentIndex, from start: Int) throws(StoreError) {
        let size = Int(slot.geometry.segmentSize)
        guard start < size else { return }
        let buffer = AlignedBuffer(count: min(size - start, Self.clearedBytes))
        for position in stride(from: start, to: size, by: buffer.count) {
            let piece = unsafe UnsafeMutableRawBufferPointer(rebasing: buffer.bytes[..<min(buffer.count, size - position)])
            let offset = slot.geometry.offset(of: segment) + ByteCount(position)
            // Bytes that can't be read are not zero; writing them may heal them.
            let isReadable = unsafe (try? store.medium.read(at: offset, into: piece)) != nil
            if unsafe isReadable && isZero(UnsafeRawBufferPointer(piece)) { continue }
            buffer.clear(0..<piece.count)
            try onMedium { () throws(MediumError) in
                unsafe try store.medium.write(at: offset, UnsafeRawBufferPointer(rebasing: buffer.bytes[..<piece.count]))
            }
        }
    }

    private static let clearedBytes = 1 << 20

    private func pointer(to bytes: [UInt8], _ placement: Placement) throws(StoreError) -> BlockPointer {
        guard let header = unsafe try? Block.peek(bytes.span.bytes) else { preconditionFailure("encoders seal their blocks") }
        return BlockPointer(
            segment: placement.segment, offset: SegmentOffset(placement.offset), storedLength: header.storedLength,
            kind: header.kind, codec: .raw, keyID: 0, birth: header.birth, checksum: header.checksum)
    }

    func header(of segment: SegmentIndex) -> [UInt8] {
        SegmentHeader(
            storeUUID: slot.uuid, segment: segment, segmentClass: .catalog, baseGeneration: base.generation,
            segmentSize: slot.geometry.segmentSize, birth: BlockBirth(generation)
        ).encoded()
    }
}
