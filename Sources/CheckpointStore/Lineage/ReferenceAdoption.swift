// Names that move, taken over from another store together with the checkpoints that they lead to.
//
// Invariants:
// - A name is never taken away from a checkpoint that is called so, nor moved from one that has nothing to do with where it is to lead:
//   it is kept out, and that is told.
// - A name is judged and moved under one commit lock.

import StoreFormat
import Units

/// What became of a moving name of another store.
public struct ReferenceAdoption: Sendable, Hashable {
    /// What became of it.
    public enum Outcome: Sendable, Hashable {
        /// It led there before.
        case unchanged
        /// It is new.
        case added
        /// It led to another checkpoint that the other store knows, or that descends from where it leads now or from a common ancestor.
        case moved(from: CheckpointID)
        /// Kept out: a checkpoint here is called so.
        case takenByCheckpoint
        /// Kept out: it leads here to a checkpoint that has nothing to do with the other store.
        case takenByReference(to: CheckpointID)
    }
    /// The name, and where it leads in the other store.
    public var reference: Reference
    public var outcome: Outcome

    /// Whether the name leads elsewhere than before.
    public var isChange: Bool {
        switch outcome {
        case .added, .moved: true
        case .unchanged, .takenByCheckpoint, .takenByReference: false
        }
    }

    /// Why the name was kept out, with what to do; nil: it was not.
    public func conflict(in store: CheckpointStore) -> StoreError? {
        let (reason, remedy): (String, String)
        switch outcome {
        case .unchanged, .added, .moved: return nil
        case .takenByCheckpoint:
            reason = "a checkpoint here is called so"
            remedy = "Choose another name for it: `ckstore name set`. --no-names leaves names out."
        case .takenByReference(let other):
            reason = "it leads to checkpoint \(other) here, which has nothing to do with that one"
            remedy = "To move it all the same, use `ckstore name set`. --no-names leaves names out."
        }
        return StoreError(
            .exists, "the name '\(reference.name)' was not pointed at checkpoint \(reference.checkpoint): \(reason)", remedy: remedy,
            medium: store.medium.name)
    }
}

extension CheckpointStore {
    /// Points names at checkpoints as another store has them. Durable on return; commits nothing where nothing changes.
    ///
    /// - Parameters:
    ///   - references: each leads to a checkpoint of this store. Those of checkpoints that are deleted meanwhile are left out.
    ///   - isKnown: whether the other store knows a checkpoint, so that a name may be moved from it.
    /// - Throws: what `isKnown` and committing throw.
    package func adopt(
        _ references: [Reference], isKnown: @escaping (CheckpointID) throws(StoreError) -> Bool
    ) throws(StoreError) -> [ReferenceAdoption] {
        let snapshot = try snapshot()
        let judge = ReferenceJudge(
            lineage: LineageTree(store: self, slot: snapshot.slot), isKnown: isKnown,
            isCheckpoint: { name throws(StoreError) in try self.catalogID(of: name, in: snapshot.slot) != nil })
        var judged: [ReferenceAdoption] = []
        for reference in references { judged.append(try judge.judge(reference)) }
        guard judged.contains(where: \.isChange) else { return judged }
        return try commit { transaction throws(StoreError) in try transaction.adopt(references, isKnown: isKnown) }
    }
}

extension CommitTransaction {
    /// Points names of another store at checkpoints of the new generation, where nothing else has them.
    func adopt(
        _ references: [Reference], isKnown: @escaping (CheckpointID) throws(StoreError) -> Bool
    ) throws(StoreError) -> [ReferenceAdoption] {
        let judge = ReferenceJudge(
            lineage: lineageTree, isKnown: isKnown,
            isCheckpoint: { name throws(StoreError) in try self.byName.value(of: CatalogTree.key(name)) != nil })
        var adopted: [ReferenceAdoption] = []
        for reference in references where try byID.value(of: CatalogTree.key(reference.checkpoint)) != nil {
            let adoption = try judge.judge(reference)
            if adoption.isChange { try point(reference.name, to: reference.checkpoint) }
            adopted.append(adoption)
        }
        return adopted
    }
}

/// Judges whether a name of another store may be set. Confined to one thread.
private struct ReferenceJudge {
    let lineage: LineageTree
    let isKnown: (CheckpointID) throws(StoreError) -> Bool
    let isCheckpoint: (String) throws(StoreError) -> Bool

    func judge(_ reference: Reference) throws(StoreError) -> ReferenceAdoption {
        ReferenceAdoption(reference: reference, outcome: try outcome(reference))
    }

    private func outcome(_ reference: Reference) throws(StoreError) -> ReferenceAdoption.Outcome {
        if try isCheckpoint(reference.name) { return .takenByCheckpoint }
        guard let before = try lineage.reference(reference.name) else { return .added }
        if before == reference.checkpoint { return .unchanged }
        if try isKnown(before) { return .moved(from: before) }
        return try haveCommonAncestor(before, reference.checkpoint) ? .moved(from: before) : .takenByReference(to: before)
    }

    /// Whether one descends from the other, or both from a third. O(generations between them and their roots).
    private func haveCommonAncestor(_ a: CheckpointID, _ b: CheckpointID) throws(StoreError) -> Bool {
        !(try line(of: a)).isDisjoint(with: try line(of: b))
    }

    /// A checkpoint and its ancestors, deleted ones that still join branches among them.
    private func line(of id: CheckpointID) throws(StoreError) -> Set<CheckpointID> {
        var line: Set<CheckpointID> = []
        var next: CheckpointID? = id
        // A damaged lineage may go in circles.
        while let member = next, line.insert(member).inserted { next = try lineage.node(member)?.parent }
        return line
    }
}
