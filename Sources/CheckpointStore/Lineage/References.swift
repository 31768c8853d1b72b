// Names that move: `latest`, which every commit moves to its last checkpoint, and those that users point at checkpoints.
//
// Invariants:
// - A moving name leads to a living checkpoint and is never a checkpoint's name.
// - A name is looked up in the catalog first, everywhere by one function.

import StoreFormat
import Units

/// A name that leads to a checkpoint and can be moved to another one.
public struct Reference: Sendable, Hashable {
    public var name: String
    /// The checkpoint that it leads to.
    public var checkpoint: CheckpointID

    public init(name: String, checkpoint: CheckpointID) {
        self.name = name
        self.checkpoint = checkpoint
    }

    /// The name that every commit of checkpoints moves to the last one of them.
    public static let latest = "latest"
}

extension CheckpointStore {
    /// Points a moving name at a checkpoint, whether the name is new or not. Durable on return.
    ///
    /// - Parameter checkpoint: a checkpoint's name, or a moving name that leads to it.
    /// - Throws: `.notFound` when there is no such checkpoint; `.exists` when a checkpoint has that name; `.invalidInput` for a bad name and for
    ///   `latest`, which the store moves itself.
    public func setReference(_ name: String, to checkpoint: String) throws(StoreError) {
        try checkReference(name)
        try commit { transaction throws(StoreError) in
            guard let id = try checkpointID(of: checkpoint, in: transaction.base) else { throw noCheckpoint(checkpoint) }
            try transaction.point(name, to: id)
        }
    }

    /// Takes a moving name away; the checkpoint stays. Durable on return.
    ///
    /// - Throws: `.notFound` when there is no such name; `.invalidInput` for `latest`.
    public func removeReference(_ name: String) throws(StoreError) {
        try checkReference(name)
        try commit { transaction throws(StoreError) in
            guard try transaction.lineageTree.removeReference(name) else {
                throw StoreError(
                    .notFound, "there is no moving name '\(name)'", remedy: "`ckstore name STORE` lists those that there are.",
                    medium: medium.name)
            }
        }
    }

    /// Throws unless `name` is one that users may move.
    func checkReference(_ name: String) throws(StoreError) {
        do { try Names.check(name) } catch {
            throw StoreError(.invalidInput, "\(error)", remedy: "Choose another name.", medium: medium.name)
        }
        guard !Names.equal(name, Reference.latest) else {
            throw StoreError(
                .invalidInput, "the name '\(name)' is moved by the store itself, to the newest checkpoint", remedy: "Choose another name.",
                medium: medium.name)
        }
    }

    /// The checkpoint that `name` means in the generation of `slot`: the one called so, or the one that a moving name of these letters leads to.
    /// Nil when there is neither. O(log n).
    func checkpointID(of name: String, in slot: Slot) throws(StoreError) -> CheckpointID? {
        if let id = try catalogID(of: name, in: slot) { return id }
        return try LineageTree(store: self, slot: slot).reference(name)
    }

    func noCheckpoint(_ name: String) -> StoreError {
        StoreError(
            .notFound, "there is no checkpoint of that name", remedy: "`ckstore list` shows those that there are.", medium: medium.name,
            checkpoint: name)
    }
}

extension Snapshot {
    /// The names that move, ascending bytewise, and what they lead to.
    public func references() throws(StoreError) -> [Reference] {
        try LineageTree(store: store, slot: slot).references().map { Reference(name: $0.name, checkpoint: $0.id) }
    }

    /// Who descends from whom: for each checkpoint, and for each deleted one that still joins branches, its parent in the lineage, which
    /// may be an older ancestor than the one it was saved over. O(n / nodes) reads. In a store made before format 1 it is empty.
    public func lineage() throws(StoreError) -> [CheckpointID: LineageMember] {
        var members: [CheckpointID: LineageMember] = [:]
        try LineageTree(store: store, slot: slot).forEach { entry in
            guard case .node(let id, let parent, let state) = entry else { return }
            members[id] = LineageMember(parent: parent, isDeleted: state == .tombstone)
        }
        return members
    }
}

/// A member of the lineage.
public struct LineageMember: Sendable, Hashable {
    /// Its nearest ancestor that is still in the lineage; nil: it is a root.
    public var parent: CheckpointID?
    /// Whether it is a deleted checkpoint that is only there because it joins branches.
    public var isDeleted: Bool
}
