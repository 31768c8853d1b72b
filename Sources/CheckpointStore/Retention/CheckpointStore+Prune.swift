// Deleting what a retention policy does not keep.
//
// Invariant: what is deleted is what was judged, by its identity: a checkpoint that came later under the same name is left alone, and so is one that
// a name was pointed at meanwhile.

import StoreFormat
import Units

/// What a policy says of the checkpoints of a store, and what was done about it.
public struct PruneResult: Sendable {
    /// What becomes of a checkpoint.
    public struct Verdict: Sendable {
        public var checkpoint: CheckpointInfo
        /// Why it is kept; empty: it can go.
        public var reasons: [RetentionPolicy.Reason]
    }
    /// By the time they were begun, the oldest first.
    public var verdicts: [Verdict]
    /// What deleting did; nil when that was not asked for.
    public var deletion: DeleteResult?
}

extension CheckpointStore {
    /// Most checkpoints that are deleted in one generation.
    private static let pruneBatch = 256

    /// Deletes the checkpoints that `policy` does not keep. Durable on return.
    ///
    /// In generations of at most 256 deletions each: a crash may leave some of them done.
    /// - Parameter isDryRun: only say what would be deleted; nothing is changed then.
    /// - Throws: what `delete` and reading throw; `.invalidInput` for a policy without rules.
    public func prune(_ policy: RetentionPolicy, isDryRun: Bool = false) throws(StoreError) -> PruneResult {
        guard !policy.isEmpty else {
            throw StoreError(.invalidInput, "a policy without rules keeps nothing", remedy: "Say what to keep.", medium: medium.name)
        }
        let (checkpoints, kept) = try judge(policy)
        var result = PruneResult(verdicts: checkpoints.map { PruneResult.Verdict(checkpoint: $0, reasons: kept[$0.id] ?? []) })
        guard !isDryRun else { return result }
        var total = DeleteResult()
        // The oldest go first: what an interruption leaves is the newer part.
        var doomed = checkpoints.filter { kept[$0.id] == nil }[...]
        while !doomed.isEmpty {
            let batch = doomed.prefix(Self.pruneBatch)
            doomed = doomed.dropFirst(batch.count)
            total.add(try delete(batch.map { Doomed(id: $0.id, name: $0.name) }))
        }
        result.deletion = total
        return result
    }

    /// All checkpoints, and why some of them are kept. The view that it takes ends with it: what is freed afterwards must not be kept for this.
    private func judge(
        _ policy: RetentionPolicy
    ) throws(StoreError) -> (checkpoints: [CheckpointInfo], kept: [CheckpointID: [RetentionPolicy.Reason]]) {
        let snapshot = try snapshot()
        var references: [CheckpointID: [String]] = [:]
        for reference in try snapshot.references() { references[reference.checkpoint, default: []].append(reference.name) }
        let checkpoints = try snapshot.checkpoints()
        let candidates = checkpoints.map { info in
            RetentionPolicy.Candidate(
                id: info.id, createdNanoseconds: info.createdNanoseconds, labels: info.labels, references: references[info.id] ?? [])
        }
        return (checkpoints, policy.kept(of: candidates, now: environment.nowNanoseconds()))
    }
}
