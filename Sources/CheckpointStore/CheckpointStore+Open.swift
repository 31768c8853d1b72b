// Opening a store.

import Media
import StoreFormat
import Units

extension CheckpointStore {
    /// Opens the store on `medium`, which the handle then owns.
    ///
    /// Constant time, whatever the size of the store. A store with features that only forbid writing is
    /// opened for reading, as is one on a read-only medium.
    ///
    /// - Parameter generation: an older state to look at, for reading only; nil: the newest.
    /// - Throws: `.notAStore`, `.corrupt`, `.truncated`, `.unsupported`, `.busy` (it is being
    ///   created or shrunk), `.notFound` (no such generation).
    public static func open(
        _ medium: any Medium, generation: Generation? = nil, environment: StoreEnvironment = StoreEnvironment()
    ) throws(StoreError) -> CheckpointStore {
        try takePresence(medium)
        let ring = try SlotRing.read(medium, generation: generation)
        if let lost = ring.lost, generation == nil, !environment.defects.contains(.overlooksLostSlots) {
            throw lostError(lost, ring: ring, medium)
        }
        do { try Feature.check(ring.slot) } catch {
            throw StoreError(
                .unsupported, "\(error)", remedy: "Use a newer ckstore to open it.", medium: medium.name)
        }
        let needed = ring.slot.geometry.requiredSize
        if try onMedium({ () throws(MediumError) in try medium.refreshSize() }) < needed {
            throw StoreError(
                .truncated, "the medium has \(medium.size) bytes, the store on it needs \(needed)",
                remedy: "Give it back its full size, or restore it from a replica.", medium: medium.name,
                offset: MediumOffset(medium.size.rawValue))
        }
        let store = CheckpointStore(
            medium: medium, slot: ring.slot,
            isReadOnly: medium.traits.isReadOnly || generation != nil || Feature.requiresReadOnly(ring.slot),
            pinnedGeneration: generation, environment: environment)
        if let generation { try store.addRegistration(generation) }
        if generation == nil, !store.has(.overlooksLostSlots) { try store.checkNothingBehindCatalog(ring) }
        return store
    }

    /// Shows that this process has the store open; others then can't replace or shrink it.
    static func takePresence(_ medium: any Medium) throws(StoreError) {
        let taken = try onMedium { () throws(MediumError) in try medium.locks.tryLock(LockLayout.presence, .shared) }
        guard taken else {
            let holders = medium.locks.holders(of: LockLayout.presence)
            throw StoreError(
                .busy, "it is being created or resized by \(LockHolder.list(holders))", remedy: "Try again when that is done.",
                medium: medium.name)
        }
    }

    /// Blocks of a generation that only a later slot can have committed show that slots were lost
    /// (format, 3.2 step 7).
    private func checkNothingBehindCatalog(_ ring: RingState) throws(StoreError) {
        let slot = ring.slot
        guard let segment = slot.catalogSegment else { return }
        var table = TableReader(store: self, slot: slot)
        // A table that can't be read is found by whoever needs it; the checkpoints may still be readable.
        guard let entry = try? table.entry(segment), entry.isUsed, entry.segmentClass == .catalog else { return }
        guard let birth = try newestBirth(behind: Int(entry.committedLength), segment, slot),
            birth >= slot.generation.rawValue + 2, try newestSlot().generation == slot.generation
        else { return }
        let lost =
            "superblock lost: there are catalog nodes of generation \(birth), but the newest slot is of generation "
            + "\(slot.generation)"
        throw Self.lostError(lost, ring: ring, medium)
    }

    /// The highest birth of the catalog and table nodes that follow on `start` in a catalog segment; nil when there
    /// are none newer than the slot.
    private func newestBirth(
        behind start: Int, _ segment: SegmentIndex, _ slot: Slot
    ) throws(StoreError) -> UInt64? {
        let unit = Int(slot.geometry.commitUnit)
        let size = Int(slot.geometry.segmentSize)
        var newest: UInt64?
        var position = start
        while size - position >= BlockHeader.encodedLength {
            let offset = slot.geometry.offset(of: segment) + ByteCount(position)
            let bytes = try medium.bytes(at: offset, count: min(size - position, ForwardingTable.maximumLength))
            let kinds = [BlockKind.catalogNode, .tableLeaf, .tableInner, .forwardingTable]
            if let header = unsafe try? Block.peek(bytes.span.bytes), kinds.contains(header.kind),
                header.birth.rawValue > slot.generation.rawValue
            {
                newest = max(newest ?? 0, header.birth.rawValue)
                position = roundUp(position + Int(header.storedLength), to: blockAlignment)
            } else if position % unit == 0 {
                break
            } else {
                position = roundUp(position, to: unit)
            }
        }
        return newest
    }

    private static func lostError(_ reason: String, ring: RingState, _ medium: any Medium) -> StoreError {
        StoreError(
            .corrupt, reason,
            remedy: "Open generation \(ring.slot.generation) for reading (--generation) if an older state will do.",
            medium: medium.name)
    }
}

extension LockHolder {
    /// The holders in words.
    static func list(_ holders: [LockHolder]) -> String {
        holders.isEmpty ? "another process" : holders.map(\.description).joined(separator: ", ")
    }
}
