// Checking everything that a store's newest generation reaches: the ways in.
//
// Invariant: damage is reported, not thrown; what is thrown is the end of verifying.

import Media
import StoreFormat
import Units

extension CheckpointStore {
    /// Verifies one checkpoint, or all of them with the slots, the segment table and the catalog.
    ///
    /// Reads every stored byte once, on several threads, wherever it is shared. The generation that is newest when this begins stays
    /// registered until it returns. Blocks, as long as the rate says.
    /// - Throws: `.notFound` when there is no such checkpoint, `.storeFailed`. Damage is not thrown but reported.
    public func verify(
        checkpoint name: String? = nil, options: VerifyOptions = VerifyOptions()
    ) throws(StoreError) -> VerifyReport {
        let snapshot = try snapshot()
        guard let name else { return try verify(slot: snapshot.slot, options: options) }
        guard let id = try checkpointID(of: name, in: snapshot.slot), let value = try catalogValue(of: id, in: snapshot.slot) else {
            throw try notFound(snapshot, name)
        }
        let verifier = Verifier(store: self, slot: snapshot.slot, options: options)
        try verifier.trees.verify([CheckpointJob(id: id, name: nil, value: value)], in: snapshot.slot)
        return verifier.report
    }

    private func notFound(_ snapshot: Snapshot, _ name: String) throws(StoreError) -> StoreError {
        do {
            _ = try snapshot.checkpoint(named: name)
            return StoreError(.corrupt, "the catalog's trees disagree", medium: medium.name, checkpoint: name)
        } catch { return error }
    }

    /// Verifies everything that `slot` reaches. Registers nothing: for use under the commit lock too.
    func verify(slot: Slot, options: VerifyOptions) throws(StoreError) -> VerifyReport {
        let verifier = Verifier(store: self, slot: slot, options: options)
        try verifier.everything()
        return verifier.report
    }
}

/// The verification of one generation. For one thread; the trees' work is spread over several.
final class Verifier {
    let store: CheckpointStore
    let slot: Slot
    let trees: TreeVerifier

    init(store: CheckpointStore, slot: Slot, options: VerifyOptions) {
        self.store = store
        self.slot = slot
        trees = TreeVerifier(store: store, pageHashSeed: slot.pageHashSeed, options: options)
    }

    /// What has been found so far.
    var report: VerifyReport { trees.report(generation: slot.generation) }

    /// The slots, the segment table, the catalog both ways, every checkpoint, and whether the table fits all of it.
    func everything() throws(StoreError) {
        try slots()
        let isTableWhole = try table()
        let catalog = try catalog()
        try trees.verify(catalog.jobs, in: slot)
        try checkCatalog(catalog)
        try lineage(catalog)
        let isForwardingWhole = try forwarding()
        if isForwardingWhole { try checkForwardedPlaces() }
        if isTableWhole, isForwardingWhole { try checkLive() }
    }

    /// Damage of the store as a whole.
    func noteStore(_ reason: String, at offset: MediumOffset? = nil) throws(StoreError) {
        var error = StoreError(.corrupt, reason, medium: store.medium.name)
        error.offset = offset
        _ = try trees.note(error, block: nil)
    }
}
