// Blocks of the index that come back without a copy of the medium.
//
// Invariants:
// - Written is only what has the checksum of its pointer: over the damaged place or, where the medium does not take it there, at a new
//   one that the forwarding tables lead to.
// - The generation that names the blocks is registered, and nobody deletes or compacts.

import Media
import StoreFormat
import Units

/// Derives damaged blocks of the index and writes them. Confined to one thread.
struct IndexRepair {
    /// What came of it.
    struct Outcome {
        var derived: [DerivedBlock] = []
        var failures: [BlockPointer: DerivationFailure] = [:]
        var freedSegments = 0
    }

    let store: CheckpointStore
    let slot: Slot
    let donor: PageDonor?
    let options: RepairOptions

    /// Brings back what can be had of `losses`, all of them blocks of the index. Durable on return.
    /// - Parameter isCancelled: asked between blocks.
    /// - Throws: what ends the repair; damage is an outcome.
    func repair(_ losses: [BlockPointer: [DamageLoss]], checkNotCancelled: () throws(StoreError) -> Void) throws(StoreError) -> Outcome {
        var outcome = Outcome()
        var rest = losses.sorted { $0.key.placeNumber < $1.key.placeNumber }[...]
        while !rest.isEmpty {
            let batch = Dictionary(uniqueKeysWithValues: rest.prefix(IndexDerivation.blocksPerScan).map { ($0.key, $0.value) })
            rest = rest.dropFirst(IndexDerivation.blocksPerScan)
            try repair(batch, &outcome, checkNotCancelled)
        }
        return outcome
    }

    private func repair(
        _ batch: [BlockPointer: [DamageLoss]], _ outcome: inout Outcome, _ checkNotCancelled: () throws(StoreError) -> Void
    ) throws(StoreError) {
        let derivation: IndexDerivation
        do throws(StoreError) {
            derivation = try IndexDerivation(batch, in: slot, store, donor: donor, mostGuesses: options.mostGuesses)
        } catch {
            guard error.isDamage else { throw error }
            for block in batch.keys { outcome.failures[block] = .unreachable }
            return
        }
        let output = RepairOutput(store, .index)
        defer { output.close() }
        var moved: [RebuiltBlock] = []
        for block in batch.keys.sorted(by: { $0.placeNumber < $1.placeNumber }) {
            try checkNotCancelled()
            guard let place = try damagedPlace(block) else { continue }
            switch try derivation.derive(block) {
            case .failure(let failure): outcome.failures[block] = failure
            case .success(let bytes):
                let copy = options.isDryRun ? nil : try write(bytes, block, at: place, output)
                if let copy { moved.append(RebuiltBlock(pointer: block, copy: copy, listed: 1, kept: 1)) }
                outcome.derived.append(DerivedBlock(block: block, isForwarded: copy != nil))
            }
        }
        guard !options.isDryRun, !outcome.derived.isEmpty else { return }
        let uses = try output.finish()
        try store.flushRepaired()
        guard !uses.isEmpty else { return }
        outcome.freedSegments += try store.forward(moved, uses)
        store.remember(uses)
    }

    /// Where a block is as the generation has it; nil when it can be read after all, or nobody can say.
    private func damagedPlace(_ block: BlockPointer) throws(StoreError) -> BlockPointer? {
        guard let place = try? store.blocks(in: slot).resolve(block).pointer else { return nil }
        do throws(StoreError) {
            _ = try store.readInPlace(place)
            return nil
        } catch {
            guard error.isDamage else { throw error }
            return place
        }
    }

    /// Writes it in its place. Returns the pointer to another one when it had to go there.
    private func write(
        _ bytes: [UInt8], _ block: BlockPointer, at place: BlockPointer, _ output: RepairOutput
    ) throws(StoreError) -> BlockPointer? {
        try store.rewrite(bytes, at: place) ? nil : try output.appender.append(bytes)
    }
}
