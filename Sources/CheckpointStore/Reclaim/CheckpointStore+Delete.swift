// Deleting checkpoints.
//
// Invariants:
// - Nobody else deletes, compacts or repairs meanwhile; others may read and save.
// - All that are named go in one generation, or none.
// - Damage keeps space from coming back, never a checkpoint from being deleted.

import Media
import StoreFormat
import Threading
import Units

/// What a deletion did.
public struct DeleteResult: Sendable {
    /// The checkpoints that are gone, by their names.
    public var deleted: [String]
    /// Segments that became free.
    public var freedSegments: Int
    /// Index blocks that were read to find out what nobody else needs.
    public var nodesRead: Int
    /// Set when the checkpoints are gone but some of their space is not free: part of what they or their relatives have can't be read, so
    /// that what is still needed is unknown, or the freed space could not be given back.
    public var obstacle: StoreError?

    mutating func add(_ other: DeleteResult) {
        deleted += other.deleted
        freedSegments += other.freedSegments
        nodesRead += other.nodesRead
        obstacle = obstacle ?? other.obstacle
    }
}

extension CheckpointStore {
    /// Deletes checkpoints, all in one generation, and frees the segments in which nothing is alive any more. Durable on return.
    ///
    /// Works on a full store. Costs a read for each index block that dies and as many for each relative that is looked at beside it, however
    /// many checkpoints there are. Readers that have a snapshot go on reading; space they need comes back when they are done.
    /// - Parameter names: names of checkpoints, or moving names that lead to them.
    /// - Throws: `.notFound` when one of them is not there, `.referenced` when a moving name other than `latest` leads to one (nothing is
    ///   deleted then), `.busy` when another process deletes or compacts for too long.
    @discardableResult
    public func delete(_ names: [String]) throws(StoreError) -> DeleteResult {
        try delete { transaction throws(StoreError) in try doomed(names, transaction) }
    }

    /// Deletes those of `ids` that are still there and that no name keeps.
    func delete(_ ids: [CheckpointID]) throws(StoreError) -> DeleteResult {
        try delete { transaction throws(StoreError) in
            let kept = Set(try transaction.lineageTree.references().map(\.id))
            var doomed: [Doomed] = []
            for id in ids where !kept.contains(id) {
                guard let value = try catalogValue(of: id, in: transaction.base) else { continue }
                doomed.append(Doomed(id: id, name: try blocks(in: transaction.base).readRecord(value, id: id).name))
            }
            return doomed
        }
    }

    /// A checkpoint to be deleted.
    private struct Doomed {
        var id: CheckpointID
        var name: String
    }

    private func delete(_ choose: (CommitTransaction) throws(StoreError) -> [Doomed]) throws(StoreError) -> DeleteResult {
        var result = DeleteResult(deleted: [], freedSegments: 0, nodesRead: 0, obstacle: nil)
        var claims: [SegmentIndex] = []
        try underReclaimLock { () throws(StoreError) in
            defer { unclaim(claims) }
            let generation = try commit { transaction throws(StoreError) in
                transaction.mayUseReserve = true
                let reader = NodeReader(blocks(in: transaction.base))
                for doomed in try choose(transaction) {
                    result.deleted.append(doomed.name)
                    let obstacle = try delete(doomed.id, doomed.name, transaction, reader)
                    result.obstacle = result.obstacle ?? obstacle
                }
                claims = try transaction.freeEmptied()
                result.nodesRead = reader.count
                result.freedSegments = claims.count
                return transaction.generation
            }
            // One more generation makes this one old enough for its freed segments to be used again.
            // The deletion is durable: what goes wrong from here on only delays the use of the space.
            do throws(StoreError) {
                try advanceGeneration(beyond: generation)
                try discard(claims)
            } catch { result.obstacle = result.obstacle ?? error }
        }
        return result
    }

    /// Who is meant by `names`, each once.
    private func doomed(_ names: [String], _ transaction: CommitTransaction) throws(StoreError) -> [Doomed] {
        var doomed: [Doomed] = []
        let references = try transaction.lineageTree.references().filter { $0.name != Reference.latest }
        for name in names {
            guard let id = try checkpointID(of: name, in: transaction.base) else { throw noCheckpoint(name) }
            guard !doomed.contains(where: { $0.id == id }) else { continue }
            if let reference = references.first(where: { $0.id == id }) {
                throw StoreError(
                    .referenced, "the name '\(reference.name)' leads to it",
                    remedy: "Move that name to another checkpoint (`ckstore name set`) or remove it (`ckstore name remove`) first.",
                    medium: medium.name, checkpoint: name)
            }
            doomed.append(Doomed(id: id, name: try catalogName(of: id, called: name, in: transaction.base)))
        }
        return doomed
    }

    /// The checkpoint's own name, where it was called by one that moves.
    private func catalogName(of id: CheckpointID, called name: String, in slot: Slot) throws(StoreError) -> String {
        if try catalogID(of: name, in: slot) == id { return name }
        guard let value = try catalogValue(of: id, in: slot) else { throw noCheckpoint(name) }
        return try blocks(in: slot).readRecord(value, id: id).name
    }

    /// Deletes one checkpoint. Returns what kept its space from being freed, if anything did.
    private func delete(
        _ id: CheckpointID, _ name: String, _ transaction: CommitTransaction, _ reader: NodeReader
    ) throws(StoreError) -> StoreError? {
        let neighbours = try transaction.lineageTree.neighbours(of: id)
        var obstacle: StoreError?
        do throws(StoreError) {
            guard let value = try catalogValue(of: id, in: transaction.base) else {
                throw StoreError(
                    .corrupt, "the catalog's trees disagree", remedy: "Run `ckstore verify`.", medium: medium.name, checkpoint: name)
            }
            let deletion = Deletion(of: id, neighbours: neighbours, slot: transaction.base, reader: reader) { block, places throws(StoreError) in
                try transaction.release(block, places: places)
            }
            try deletion.run(value, id: id)
        } catch {
            guard [.corrupt, .truncated, .ioFailed].contains(error.code) else { throw error }
            obstacle = error
        }
        try transaction.remove(id, name: name)
        return obstacle
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
