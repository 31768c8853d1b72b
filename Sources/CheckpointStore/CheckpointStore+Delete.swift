// Deleting checkpoints, and freeing what no tree names any more.

import Media
import StoreFormat
import Threading
import Units

/// What a deletion did.
public struct DeleteResult: Sendable {
    /// The checkpoints that are gone.
    public var deleted: [String]
    /// Segments that became free.
    public var freedSegments: Int
    /// Set when the checkpoints are gone but their space is not free yet: part of what remains can't be read, so that what is still
    /// needed is unknown, or the freed space could not be given back.
    public var obstacle: StoreError?
}

extension CheckpointStore {
    /// Deletes checkpoints, all in one generation, and frees the segments that nothing names any more. Durable on return.
    ///
    /// Works on a full store. Reads the index of every remaining checkpoint (no page data): O(index).
    /// Readers that have a snapshot go on reading; space they need comes back when they are done.
    /// - Throws: `.notFound` when one of them is not there (nothing is deleted then).
    @discardableResult
    public func delete(_ names: [String]) throws(StoreError) -> DeleteResult {
        var result = DeleteResult(deleted: names, freedSegments: 0, obstacle: nil)
        var claims: [SegmentIndex] = []
        defer { unclaim(claims) }
        let generation = try underReclaimLock { () throws(StoreError) in
            try commit { transaction throws(StoreError) in
            transaction.mayUseReserve = true
            var doomed = Set<CheckpointID>()
            for name in names {
                guard let id = try catalogID(of: name, in: transaction.base) else {
                    throw StoreError(
                        .notFound, "there is no checkpoint of that name", remedy: "`ckstore list` shows those that there are.",
                        medium: medium.name, checkpoint: name)
                }
                guard doomed.insert(id).inserted else { continue }
                try transaction.remove(id, name: name)
            }
            do throws(StoreError) {
                let live = try liveUnits(in: transaction.base, without: doomed)
                claims = try sweep(transaction, live: live)
                try transaction.forgetMoves(into: Set(claims))
                result.freedSegments = claims.count
            } catch {
                guard [.corrupt, .truncated, .ioFailed].contains(error.code) else { throw error }
                result.obstacle = error
            }
            return transaction.generation
            }
        }
        // One more generation makes this one old enough for its freed segments to be used again.
        // The deletion is durable: what goes wrong from here on only delays the use of the space.
        do throws(StoreError) {
            try advanceGeneration(beyond: generation)
            try discard(claims)
        } catch { result.obstacle = result.obstacle ?? error }
        return result
    }

    /// For each segment of runs and index: how much of it the remaining checkpoints reach.
    private func liveUnits(
        in slot: Slot, without doomed: Set<CheckpointID>
    ) throws(StoreError) -> [SegmentIndex: UInt32] {
        var live: [SegmentIndex: UInt32] = [:]
        let blocks = blocks(in: slot)
        let rest = try catalogValues(in: slot).filter { !doomed.contains($0.id) }
        try TreeWalk(blocks: blocks).walk(rest) { (block) throws(StoreError) in
            let pointer = try blocks.resolve(block.pointer).pointer
            live[pointer.segment, default: 0] += CommitTransaction.liveUnits(of: pointer, places: block.places)
        }
        return live
    }

    /// Frees every used segment of runs and index that nothing reaches and nobody is writing to. Returns those, still
    /// claimed by this handle.
    private func sweep(
        _ transaction: CommitTransaction, live: [SegmentIndex: UInt32]
    ) throws(StoreError) -> [SegmentIndex] {
        var freed: [SegmentIndex] = []
        do {
            var table = TableReader(store: self, slot: transaction.base)
            for number in 0..<UInt64(transaction.base.geometry.segmentCount) {
                let segment = SegmentIndex(number)
                let entry = try table.entry(segment)
                guard entry.isUsed, entry.segmentClass != .catalog else { continue }
                if let units = live[segment] {
                    if units != entry.live { try transaction.table.update(segment) { $0.live = units } }
                } else if try lockClaim(segment) {
                    // Nobody is appending to it.
                    freed.append(segment)
                    try transaction.free(segment)
                }
            }
        } catch {
            unclaim(freed)
            throw error
        }
        return freed
    }

    /// Gives claims of segments up that this handle holds to free them.
    func unclaim(_ segments: [SegmentIndex]) {
        state.withLock { state in
            guard !state.isClosed else { return }
            for segment in segments where state.claims.remove(segment) != nil {
                try? medium.locks.unlock(LockLayout.claim(segment))
            }
        }
    }

    /// Gives the medium back what was freed, unless somebody may still read it in an older generation.
    func discard(_ claimed: [SegmentIndex]) throws(StoreError) {
        guard !claimed.isEmpty else { return }
        let slot = try settledSlot()
        var table = TableReader(store: self, slot: slot)
        for segment in claimed {
            let entry = try table.entry(segment)
            guard !entry.isUsed, try obstacle(to: entry, slot) == nil else { continue }
            let offset = slot.geometry.offset(of: segment)
            state.withLock { $0.reserved = 0..<0 }
            try onMedium { () throws(MediumError) in
                try medium.discard(at: offset, ByteCount(UInt64(slot.geometry.segmentSize)))
            }
        }
    }
}
