// Changing the size of a store.
//
// Invariant: whether a store grows or shrinks is decided under the commit lock, by the newest slot there; its medium is
// changed under it too.

import Media
import StoreFormat
import Threading
import Units

extension CheckpointStore {
    /// Makes the store as large as fits into `size` bytes. Durable on return.
    ///
    /// Enlarging grows the medium first where it can grow. Shrinking needs the segments behind the new end to be
    /// free and nobody else to have the store open; the medium is cut afterwards. A store that another handle makes larger
    /// than `size` while this one is about to enlarge it keeps that size.
    /// - Throws: `.invalidInput` when the size is not possible, `.busy` when others have the store open,
    ///   `.noSpace` when the medium can't grow or what is behind the new end is in use.
    public func resize(to size: ByteCount) throws(StoreError) {
        try checkUsable(forWriting: true)
        let layout = try newestSlot().geometry
        let segmentSize = UInt64(layout.segmentSize)
        let room = size.rawValue > layout.dataOffset.rawValue ? size.rawValue - layout.dataOffset.rawValue : 0
        let count = min(room / segmentSize, UInt64(UInt32.max - 1))
        guard count >= Self.minimumSegments else {
            throw StoreError(
                .invalidInput, "\(size) bytes are too small for the store",
                remedy: "Give it at least \(layout.dataOffset.rawValue + Self.minimumSegments * segmentSize) bytes.",
                medium: medium.name)
        }
        let isLarger = count >= UInt64(layout.segmentCount)
        try underCommitLock { base throws(StoreError) in
            if count >= UInt64(base.geometry.segmentCount) {
                try grow(base, to: size, segmentCount: UInt32(count))
            } else if !isLarger {
                try shrink(base, to: size, segmentCount: UInt32(count))
            }
            // Else somebody has made it larger than this meanwhile: as large as wanted it is.
        }
    }

    private func grow(_ base: Slot, to size: ByteCount, segmentCount: UInt32) throws(StoreError) {
        if try onMedium({ () throws(MediumError) in try medium.refreshSize() }) < size {
            try onMedium { () throws(MediumError) in try medium.resize(to: size) }
        }
        let transaction = try CommitTransaction(store: self, base: base, segmentCount: segmentCount)
        transaction.mayUseReserve = true
        adopt(try transaction.finish())
    }

    private func shrink(_ base: Slot, to size: ByteCount, segmentCount: UInt32) throws(StoreError) {
        let alone = try onMedium { () throws(MediumError) in try medium.locks.tryLock(LockLayout.presence, .exclusive) }
        guard alone else {
            throw StoreError(
                .busy, "the store is open in \(LockHolder.list(medium.locks.holders(of: LockLayout.presence)))",
                remedy: "A store can be made smaller only while nobody else uses it.", medium: medium.name)
        }
        defer { _ = try? medium.locks.tryLock(LockLayout.presence, .shared) }
        let users = state.withLock { !$0.registrations.isEmpty || !$0.claims.isEmpty }
        precondition(!users, "end all snapshots and writers before shrinking the store")
        let transaction = try CommitTransaction(store: self, base: base, segmentCount: segmentCount)
        transaction.mayUseReserve = true
        try checkEmpty(behind: segmentCount, transaction)
        adopt(try transaction.finish())
        // What this handle remembers may lie behind the new end.
        state.withLock { state in
            state.partlyFilled = [:]
            state.cursor = nil
            state.reserved = 0..<0
        }
        try onMedium { () throws(MediumError) in try medium.resize(to: size) }
    }

    private func checkEmpty(behind end: UInt32, _ transaction: CommitTransaction) throws(StoreError) {
        var table = TableReader(store: self, slot: transaction.base)
        var last: UInt64?
        for number in UInt64(end)..<UInt64(transaction.base.geometry.segmentCount) {
            if try table.entry(SegmentIndex(number)).isUsed { last = number }
        }
        guard let last else { return }
        let layout = transaction.base.geometry
        throw StoreError(
            .noSpace, "segment \(last) is in use behind the new end",
            remedy: "The smallest size now is \(layout.dataOffset.rawValue + (last + 1) * UInt64(layout.segmentSize)) bytes; "
                + "delete checkpoints to make more room.", medium: medium.name)
    }
}
