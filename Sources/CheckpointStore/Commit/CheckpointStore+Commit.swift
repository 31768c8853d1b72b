// Taking the commit lock, and what has to be right before anything is committed.

import Media
import StoreFormat
import Threading
import Units

extension CheckpointStore {
    /// Runs `body` on a transaction under the commit lock and makes its result durable.
    ///
    /// - Throws: what `body` throws (nothing is changed then), `.busy` when another process holds
    ///   the lock for longer than the environment allows, `.storeFailed` when a flush failed.
    func commit<R>(_ body: (CommitTransaction) throws(StoreError) -> R) throws(StoreError) -> R {
        try underCommitLock { base throws(StoreError) in
            let transaction = try CommitTransaction(store: self, base: base)
            let result = try body(transaction)
            adopt(try transaction.finish())
            return result
        }
    }

    /// Makes a generation with the same roots, so that what the newest one freed may be used again.
    func advanceGeneration(beyond generation: Generation) throws(StoreError) {
        try underCommitLock { base throws(StoreError) in
            guard base.generation == generation else { return }
            adopt(try CommitTransaction(store: self, base: base).finishUnchanged())
        }
    }

    /// Brings the slots in order, as every commit does first, and commits nothing.
    func prepareToCommit() throws(StoreError) { try underCommitLock { _ in } }

    /// Takes a generation that this handle has made durable as the newest.
    func adopt(_ slot: Slot) {
        state.withLock { state in
            state.newest = slot
            state.settled = slot.generation
        }
    }

    /// Runs `body` on the state to build on, with the commit lock held.
    ///
    /// - Throws: what `body` throws, `.busy` when another process holds the lock for too long.
    func underCommitLock<R>(_ body: (Slot) throws(StoreError) -> R) throws(StoreError) -> R {
        try checkUsable(forWriting: true)
        return try commitGate.withLock { (_) throws(StoreError) in
            try onMedium { () throws(MediumError) in
                try medium.locks.lock(LockLayout.commit, .exclusive, timeout: environment.commitTimeout)
            }
            // An unlock that fails leaves the lock to the end of the process; others then say `busy`.
            defer { try? medium.locks.unlock(LockLayout.commit) }
            try checkUsable(forWriting: true)
            return try body(has(.commitsOnStaleBase) ? state.withLock { $0.newest } : try prepareBase())
        }
    }

    /// The state to build on: the newest, flushed, both twins whole, nothing torn behind it, verified when it was poisoned.
    private func prepareBase() throws(StoreError) -> Slot {
        let (slot, ring) = try agreedBase()
        for twin in ring.damagedTwins { try SlotRing.write(slot, twin: twin, to: medium) }
        if !ring.damagedTwins.isEmpty {
            do { try onMedium { () throws(MediumError) in try medium.flush() } } catch { throw fail(error) }
        }
        try wipeRemains(behind: slot)
        if slot.kind == .poisoned, !has(.trustsPoisonedStores) { try requireSound(slot) }
        return slot
    }

    /// The newest slot as this handle has settled it and as it stands on the medium: a slot that this handle had settled may have
    /// been poisoned since.
    private func agreedBase() throws(StoreError) -> (Slot, RingState) {
        for _ in 0..<3 {
            let slot = try settledSlot()
            let ring = try SlotRing.read(medium, generation: nil)
            var found = ring.slot
            found.twin = slot.twin
            if found == slot {
                try checkWritable(slot)
                return (slot, ring)
            }
            state.withLock { state in
                state.newest = ring.slot
                state.settled = Generation(UInt64(0))
            }
        }
        throw StoreError(
            .corrupt, "the newest superblock slot changes under the commit lock",
            remedy: "Something writes to the medium that does not keep to the store's locks.", medium: medium.name)
    }

    /// After a failed flush nothing is taken for granted: every block is read before anything is built on it.
    private func requireSound(_ slot: Slot) throws(StoreError) {
        let report = try verify(slot: slot, options: VerifyOptions())
        if let first = report.damages.first {
            throw StoreError(
                .corrupt, "a flush failed earlier, and the store has \(report.damages.count) damaged places: \(first)",
                remedy: "Restore the store from a replica, or read what is intact.", medium: medium.name)
        }
    }

    /// Runs `body` while nobody else deletes, compacts or repairs. Must not be called with the commit lock held.
    ///
    /// - Throws: what `body` throws, `.busy` when another process holds the lock for too long.
    func underReclaimLock<R>(_ body: () throws(StoreError) -> R) throws(StoreError) -> R {
        try checkUsable(forWriting: true)
        return try reclaimGate.withLock { (_) throws(StoreError) in
            try onMedium { () throws(MediumError) in
                try medium.locks.lock(LockLayout.reclaim, .exclusive, timeout: environment.commitTimeout)
            }
            // An unlock that fails leaves the lock to the end of the process; others then say `busy`.
            defer { try? medium.locks.unlock(LockLayout.reclaim) }
            return try body()
        }
    }

    static func nameTaken(_ name: String, _ medium: any Medium) -> StoreError {
        StoreError(
            .exists, "that name is taken already, by a checkpoint or as a name that moves", remedy: "Choose another name, or delete it first.",
            medium: medium.name, checkpoint: name)
    }

    /// Segments kept for delete, compaction and abort: at least 4, and 1%.
    static func reserve(of segmentCount: UInt32) -> UInt32 { max(4, segmentCount / 100) }
}
