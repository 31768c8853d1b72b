// What became of a moving name that came from another store, for people and programs.
//
// Invariant: a name that was kept out has a reason and a remedy.

import CheckpointStore

/// A moving name of another store, as JSON.
struct AdoptedName: Encodable {
    var name: String
    /// Where it leads in the other store.
    var checkpoint: String
    var checkpointID: String
    /// `unchanged`, `added`, `moved` or `kept-out`.
    var outcome: String
    /// Where it led before; absent when it has not been moved.
    var beforeID: String?
    /// Why it was kept out; absent when it was not.
    var conflict: FailureObject?

    /// - Parameter store: the one that has the name now.
    init(_ adoption: ReferenceAdoption, in store: CheckpointStore) throws(StoreError) {
        name = adoption.reference.name
        checkpoint = try store.snapshot().checkpoint(adoption.reference.checkpoint).name
        checkpointID = adoption.reference.checkpoint.description
        conflict = adoption.conflict(in: store).map(FailureObject.init)
        switch adoption.outcome {
        case .unchanged: outcome = "unchanged"
        case .added: outcome = "added"
        case .moved(let before):
            outcome = "moved"
            beforeID = before.description
        case .takenByCheckpoint, .takenByReference: outcome = "kept-out"
        }
    }

    /// A line that says where it leads now; nil: nothing has changed.
    var line: String? {
        guard outcome == "added" || outcome == "moved" else { return nil }
        return "\(printable(name)) leads to \(printable(checkpoint))" + (beforeID.map { ", no longer to checkpoint \($0)" } ?? "") + "\n"
    }
}
