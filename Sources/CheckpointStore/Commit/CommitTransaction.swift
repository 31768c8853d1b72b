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
    /// Segments that were claimed for nodes.
    var freshCatalogSegments: [SegmentClaim] = []
    /// Segments of class 3 that this commit frees, since no node that is left stands in them.
    var freedCatalogSegments: [SegmentIndex] = []

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
            entry.written = entry.written.addingReportingOverflow(use.written).overflow ? .max : entry.written + use.written
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
}
