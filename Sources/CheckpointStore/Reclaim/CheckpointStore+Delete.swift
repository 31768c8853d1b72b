// Deleting checkpoints.
//
// Invariants:
// - Nobody else deletes, compacts or repairs meanwhile; others may read and save, and don't wait for a walk through the trees but in the end,
//   when they have added relatives again and again.
// - All that are named go in one generation, or none.
// - Damage keeps space from coming back, never a checkpoint from being deleted.

import Media
import StoreFormat
import Threading
import Units

/// What a deletion did.
public struct DeleteResult: Sendable {
    /// The checkpoints that are gone, by their names.
    public var deleted: [String] = []
    /// Segments that became free.
    public var freedSegments = 0
    /// Index blocks that were read to find out what nobody else needs.
    public var nodesRead = 0
    /// Damage that was met, as the errors that say where: blocks of what was deleted or of its relatives that can't be read, ascending by
    /// place. Whatever stands below them (how much, only they could say) counts as used until `repair` has counted anew.
    public var unreadable: [StoreError] = []
    /// Set when the checkpoints are gone but some of their space is not free, since something is `unreadable` or the freed space could
    /// not be given back.
    public var obstacle: StoreError?

    mutating func add(_ other: DeleteResult) {
        deleted += other.deleted
        freedSegments += other.freedSegments
        nodesRead += other.nodesRead
        // One that several batches have met is one.
        unreadable += other.unreadable.filter { error in !unreadable.contains { $0.description == error.description } }
        obstacle = obstacle ?? other.obstacle
    }
}

extension CheckpointStore {
    /// Deletes checkpoints, all in one generation, and frees the segments in which nothing is alive any more. Durable on return.
    ///
    /// Works on a full store. Costs a read for each index block that dies and as many for each relative that is looked at beside it, however
    /// many checkpoints there are. Others may save meanwhile: they wait for the commit alone. Readers that have a snapshot go on reading;
    /// space they need comes back with the first deletion or compaction after they are done.
    /// - Parameter names: names of checkpoints, or moving names that lead to them.
    /// - Throws: `.notFound` when one of them is not there, `.referenced` when a moving name other than `latest` leads to one (nothing is
    ///   deleted then), `.busy` when another process deletes or compacts for too long.
    @discardableResult
    public func delete(_ names: [String]) throws(StoreError) -> DeleteResult {
        try delete { slot throws(StoreError) in try doomed(names, in: slot) }
    }

    /// Deletes those of `checkpoints` that are still there and that no moving name other than `latest` leads to; a checkpoint that has got
    /// the name of one since is another one, and stays. Otherwise as `delete` of names.
    @discardableResult
    package func delete(_ checkpoints: [CheckpointInfo]) throws(StoreError) -> DeleteResult {
        try delete { slot throws(StoreError) in
            let named = try LineageTree(store: self, slot: slot).references().filter { !Names.equal($0.name, Reference.latest) }
            let kept = Set(named.map(\.id))
            var doomed: [Doomed] = []
            for info in checkpoints where !kept.contains(info.id) {
                if try catalogValue(of: info.id, in: slot) != nil { doomed.append(Doomed(id: info.id, name: info.name)) }
            }
            return doomed
        }
    }

    /// Deletes those of `checkpoints` that are still there and that no name keeps.
    func delete(_ checkpoints: [Doomed]) throws(StoreError) -> DeleteResult {
        try delete { slot throws(StoreError) in
            let kept = Set(try LineageTree(store: self, slot: slot).references().map(\.id))
            var doomed: [Doomed] = []
            for one in checkpoints where !kept.contains(one.id) {
                if try catalogValue(of: one.id, in: slot) != nil { doomed.append(one) }
            }
            return doomed
        }
    }

    /// Walks beside saves as often as relatives have appeared meanwhile; then once more with the commit lock held, so that it ends.
    private static let walksBesideSaves = 4

    /// - Parameter choose: who is to go, in the generation of a slot; asked again when the commit lock is held.
    private func delete(_ choose: (Slot) throws(StoreError) -> [Doomed]) throws(StoreError) -> DeleteResult {
        var result = DeleteResult()
        let plan = DeletionPlan(self)
        var claims: [SegmentIndex] = []
        try underReclaimLock { () throws(StoreError) in
            defer { unclaim(claims) }
            var committed: Generation?
            for walk in 1...Self.walksBesideSaves where committed == nil {
                try updateBesideSaves(plan, choose)
                committed = try commit(plan, choose, mayWalk: walk == Self.walksBesideSaves, &claims)
            }
            guard let committed else { preconditionFailure("a plan that was made with the commit lock held is carried out") }
            result.deleted = plan.names
            result.nodesRead = plan.nodesRead
            result.freedSegments = claims.count
            result.unreadable = plan.damages
            result.obstacle = obstacle(of: result)
            // One more generation makes this one old enough for its freed segments to be used again.
            // The deletion is durable: what goes wrong from here on only delays the use of the space.
            do throws(StoreError) {
                try advanceGeneration(beyond: committed)
                _ = try discard(claims)
            } catch {
                state.withLock { $0.leftovers.areExpected = true }
                result.obstacle = result.obstacle ?? error
            }
        }
        do throws(StoreError) { _ = try giveBackLeftovers() } catch { result.obstacle = result.obstacle ?? error }
        return result
    }

    private func updateBesideSaves(_ plan: DeletionPlan, _ choose: (Slot) throws(StoreError) -> [Doomed]) throws(StoreError) {
        let slot = try register()
        defer { unregister(slot.generation) }
        try plan.update(try choose(slot), in: slot)
    }

    /// Carries the plan out. Returns nil, with nothing changed, when it has to be updated and this must not.
    private func commit(
        _ plan: DeletionPlan, _ choose: (Slot) throws(StoreError) -> [Doomed], mayWalk: Bool, _ claims: inout [SegmentIndex]
    ) throws(StoreError) -> Generation? {
        try underCommitLock { base throws(StoreError) in
            let doomed = try choose(base)
            var transaction = try CommitTransaction(store: self, base: base)
            if try !plan.apply(doomed, to: transaction) {
                guard mayWalk else { return nil }
                try plan.update(doomed, in: base)
                transaction = try CommitTransaction(store: self, base: base)
                guard try plan.apply(doomed, to: transaction) else { throw treesDisagree(doomed.first?.name ?? "") }
            }
            transaction.mayUseReserve = true
            claims = try transaction.freeEmptied()
            adopt(try transaction.finish())
            return transaction.generation
        }
    }

    /// What of the deletion's space is not free, and how it comes back.
    private func obstacle(of result: DeleteResult) -> StoreError? {
        guard let first = result.unreadable.first else { return nil }
        let count = result.unreadable.count
        return StoreError(
            first.code,
            "\(count == 1 ? "a block" : "\(count) blocks") can't be read (\(first.reason)); what stands below still counts as used",
            remedy: "`ckstore repair` counts anew and frees it, once the index of the checkpoints that are left can be read.",
            medium: medium.name, offset: first.offset)
    }

    /// Who is meant by `names`, each once.
    private func doomed(_ names: [String], in slot: Slot) throws(StoreError) -> [Doomed] {
        var doomed: [Doomed] = []
        let references = try LineageTree(store: self, slot: slot).references().filter { $0.name != Reference.latest }
        for name in names {
            guard let id = try checkpointID(of: name, in: slot) else { throw noCheckpoint(name) }
            guard !doomed.contains(where: { $0.id == id }) else { continue }
            if let reference = references.first(where: { $0.id == id }) {
                throw StoreError(
                    .referenced, "the name '\(reference.name)' leads to it",
                    remedy: "Move that name to another checkpoint (`ckstore name set`) or remove it (`ckstore name remove`) first.",
                    medium: medium.name, checkpoint: name)
            }
            doomed.append(Doomed(id: id, name: try catalogName(of: id, called: name, in: slot)))
        }
        return doomed
    }

    /// The checkpoint's own name, where it was called by one that moves.
    private func catalogName(of id: CheckpointID, called name: String, in slot: Slot) throws(StoreError) -> String {
        if try catalogID(of: name, in: slot) == id { return name }
        guard let value = try catalogValue(of: id, in: slot) else { throw noCheckpoint(name) }
        return try blocks(in: slot).readRecord(value, id: id).name
    }
}
