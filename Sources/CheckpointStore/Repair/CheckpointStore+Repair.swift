// Repair: what is damaged is had from a replica, or from what else the store has.
//
// Invariants:
// - Nobody deletes, compacts or repairs meanwhile; others may read and save.
// - Every step leaves a store that is no worse: what is written over a damaged block are the bytes that were committed; all else is a
//   commit, durable when it counts, nothing when not.
// - Damage is never given a new checksum: what nobody has stays damaged, and is named.

import Media
import StoreFormat
import Units

extension CheckpointStore {
    /// Repairs what verifying finds, as far as that is possible, and says what stays.
    ///
    /// Blocks that the replica has byte for byte (a copy of the medium) are written again where they were. Blocks of the index are made
    /// again from what stands around them, with a replica or without: what has the checksum of the pointer is what was written. Runs are
    /// built anew from the pages of the replica's checkpoints of the same ids, each compared with the hash that this store's leaves name.
    /// Without a replica, too: superblock slots that lost their twins, counts of the segment table,
    /// segments in which nothing lives, and the trees that the store keeps of itself (`TreeRepairReport`).
    ///
    /// Reads everything that is stored twice when something is repaired. What was repaired is durable on return, and in part when this
    /// throws. Blocks; nobody can delete or compact for as long as blocks are being written.
    /// - Parameter replica: another store, best opened for reading only; stays open.
    /// - Throws: `.notFound` when there is no such checkpoint, `.readOnly`, `.busy`, `.storeFailed`. Damage is reported, not thrown.
    public func repair(from replica: CheckpointStore? = nil, options: RepairOptions = RepairOptions()) throws(StoreError) -> RepairReport {
        precondition(replica !== self, "a store is no replica of itself")
        try checkUsable(forWriting: !options.isDryRun)
        let repair = try Repair(self, replica, options)
        return try repair.run()
    }

    /// Verifies what `slot` reaches, or one of its checkpoints. The slot is registered.
    fileprivate func verify(_ checkpoint: String?, in slot: Slot, _ options: VerifyOptions) throws(StoreError) -> VerifyReport {
        guard let checkpoint else { return try verify(slot: slot, options: options) }
        guard let id = try checkpointID(of: checkpoint, in: slot), let value = try catalogValue(of: id, in: slot) else {
            throw noCheckpoint(checkpoint)
        }
        let verifier = Verifier(store: self, slot: slot, options: options)
        try verifier.trees.verify([CheckpointJob(id: id, name: nil, value: value)], in: slot)
        return verifier.report
    }
}

/// One repair of a store. Confined to one thread.
private final class Repair {
    private let store: CheckpointStore
    private let options: RepairOptions
    private let replica: CheckpointStore?
    private let donor: PageDonor?
    private var report: RepairReport
    /// Blocks of the index that could not be derived when it was tried last.
    private var underivable: [BlockPointer: DerivationFailure] = [:]

    /// Rebuilt runs for which a commit is made: at most 16 MiB of new runs.
    private static let runsPerCommit = 256
    /// Turns: one for each level of the index that may be damaged above another, and some more. A medium that forgets what was written
    /// to it is not written to for ever.
    private static let mostTurns = 16

    init(_ store: CheckpointStore, _ replica: CheckpointStore?, _ options: RepairOptions) throws(StoreError) {
        self.store = store
        self.options = options
        self.replica = replica
        let slot = try store.newestSlot()
        if let replica { donor = try PageDonor(replica, pageHashSeed: slot.pageHashSeed) } else { donor = nil }
        report = RepairReport(found: VerifyReport(generation: slot.generation))
    }

    /// Verifies and repairs by turns, until there is nothing left that can be repaired: what stands below a block of the index that was
    /// damaged is found when that can be read again.
    func run() throws(StoreError) -> RepairReport {
        for turn in 1...Self.mostTurns {
            let slot = try store.register()
            defer { store.unregister(slot.generation) }
            let verify = VerifyOptions(checksPages: options.checksPages, parallelism: options.parallelism, progress: options.progress)
            let found = try store.verify(options.checkpoint, in: slot, verify)
            if turn == 1 { report.found = found }
            underivable = [:]
            // When it is known what could be done about them.
            defer { report.remaining = found.damages.map { RemainingDamage(damage: $0, remedy: remedy(for: $0)) } }
            try noteMissing(found.damages)
            let before = report.changes
            do throws(StoreError) {
                if options.isDryRun { try dry(found.damages, slot) } else { try change(found.damages, slot) }
            } catch {
                guard error.code != .storeFailed, error.code != .readOnly else { throw error }
                if error.code == .cancelled { report.wasCancelled = true } else { report.obstacle = error }
                return report
            }
            if options.isDryRun || report.changes == before { break }
        }
        return report
    }

    private func checkNotCancelled() throws(StoreError) {
        if options.isCancelled?() ?? false { throw StoreError(.cancelled, "repairing was cancelled", medium: store.medium.name) }
    }

    /// One turn: `slot` is what was verified, and registered.
    private func change(_ damages: [Damage], _ slot: Slot) throws(StoreError) {
        try store.underReclaimLock { () throws(StoreError) in
            // First what needs no commit: a store whose last flush failed takes none before it is sound.
            try blocks(damages, slot)
            guard options.checkpoint == nil else { return }
            try trees()
            report.rewrittenSlots += try store.rewriteTwins()
            let counted = try store.recount()
            report.recountedSegments += counted.recounted
            report.freedSegments += counted.freed
        }
    }

    /// The trees that the store keeps of itself.
    private func trees() throws(StoreError) {
        let (rebuilt, freed) = try store.rebuildTrees(from: replica)
        report.trees.add(rebuilt)
        report.freedSegments += freed
    }

    private func dry(_ damages: [Damage], _ slot: Slot) throws(StoreError) {
        try blocks(damages, slot)
        if options.checkpoint == nil { report.trees.add(try store.treesToRebuild(from: replica)) }
    }

    // MARK: blocks

    private func blocks(_ damages: [Damage], _ slot: Slot) throws(StoreError) {
        var losses: [BlockPointer: [DamageLoss]] = [:]
        for damage in damages { if let block = damage.block { losses[block, default: []] += damage.losses } }
        guard !losses.isEmpty else { return }
        try copies(&losses, slot)
        try derive(losses.filter { $0.key.kind != .run && $0.key.kind.isForwarded }, slot)
        if donor != nil { try runs(losses.filter { $0.key.kind == .run }) }
    }

    /// Writes again what the replica has a copy of, and takes it out of `losses`.
    private func copies(_ losses: inout [BlockPointer: [DamageLoss]], _ slot: Slot) throws(StoreError) {
        guard donor != nil else { return }
        let before = report.rewrittenBlocks
        for block in losses.keys.sorted(by: { $0.placeNumber < $1.placeNumber }) {
            try checkNotCancelled()
            if try copy(block, slot) {
                report.rewrittenBlocks += 1
                losses[block] = nil
            }
        }
        if report.rewrittenBlocks > before { try flush() }
    }

    private func derive(_ losses: [BlockPointer: [DamageLoss]], _ slot: Slot) throws(StoreError) {
        guard !losses.isEmpty else { return }
        let repair = IndexRepair(store: store, slot: slot, donor: donor, options: options)
        let outcome = try repair.repair(losses) { () throws(StoreError) in try checkNotCancelled() }
        report.derived += outcome.derived
        report.freedSegments += outcome.freedSegments
        underivable = outcome.failures
    }

    private func flush() throws(StoreError) {
        if !options.isDryRun { try store.flushRepaired() }
    }

    /// Writes the bytes that the replica has of a block that can't be read, if they are the very same.
    private func copy(_ pointer: BlockPointer, _ slot: Slot) throws(StoreError) -> Bool {
        let place: BlockPointer
        do throws(StoreError) {
            // As the generation has it that was verified: it is registered, so that nobody uses that place for anything else.
            place = try store.blocks(in: slot).resolve(pointer).pointer
            _ = try store.readInPlace(place)
            return false
        } catch {
            guard error.isDamage else { throw error }
        }
        guard let resolved = try? store.blocks(in: slot).resolve(pointer).pointer, let bytes = try donor?.block(pointer),
            unsafe (try? Block.verify(bytes.span.bytes, pointer: resolved)) != nil
        else { return false }
        return options.isDryRun ? true : try store.rewrite(bytes, at: resolved)
    }

    /// Rebuilds runs, batch by batch. Under the reclaim lock, so that what leaves list stays the same from here on.
    private func runs(_ losses: [BlockPointer: [DamageLoss]]) throws(StoreError) {
        guard !losses.isEmpty else { return }
        let slot = try store.register()
        defer { store.unregister(slot.generation) }
        let listings = try RunListings(of: Set(losses.keys), in: slot, store)
        var rest = listings.runs.values.sorted { ($0.pointer.segment, $0.pointer.offset) < ($1.pointer.segment, $1.pointer.offset) }[...]
        while !rest.isEmpty {
            try batch(rest.prefix(Self.runsPerCommit), losses, slot)
            rest = rest.dropFirst(Self.runsPerCommit)
        }
    }

    private func batch(_ runs: ArraySlice<ListedRun>, _ losses: [BlockPointer: [DamageLoss]], _ slot: Slot) throws(StoreError) {
        let repair = RunRepair(store, slot, donor: donor, isDryRun: options.isDryRun)
        defer { repair.close() }
        var rebuilt: [RebuiltBlock] = []
        var (rewritten, restored) = (0, PageCount.zero)
        for run in runs {
            try checkNotCancelled()
            let lost = losses[run.pointer] ?? []
            switch try repair.repair(run, sources: { Self.sources(of: $0, lost) }) {
            case .sound, .nothing: break
            case .rewritten(let pages):
                rewritten += 1
                restored += pages
            case .forwarded(let run, let pages):
                rebuilt.append(run)
                restored += pages
            }
        }
        let uses = options.isDryRun ? [] : try repair.finish()
        if rewritten > 0 || !uses.isEmpty { try flush() }
        if !uses.isEmpty {
            report.freedSegments += try store.forward(rebuilt, uses)
            store.remember(uses)
        }
        report.rewrittenBlocks += rewritten
        report.forwardedRuns += rebuilt.count
        report.restoredPages += restored
    }

    /// The checkpoints that lose the page; nil, for one that only bases of patch leaves still name: any may have it.
    private static func sources(of page: PageIndex, _ losses: [DamageLoss]) -> [CheckpointID]? {
        let named = losses.filter { $0.pages.contains(page) }.flatMap { $0.checkpoints.map(\.id) }
        return named.isEmpty ? nil : named
    }

    // MARK: what stays

    private func noteMissing(_ damages: [Damage]) throws(StoreError) {
        guard let donor else { return }
        let affected = Set(damages.flatMap { $0.losses.flatMap(\.checkpoints) })
        report.missingInReplica = []
        for checkpoint in affected where try !donor.has(checkpoint.id) { report.missingInReplica.append(checkpoint) }
        report.isReplicaForeign = !affected.isEmpty && report.missingInReplica.count == affected.count
    }

    /// Why damage stays when this ends, and what else can be done.
    private func remedy(for damage: Damage) -> String {
        let newStore = "bring the checkpoints from a replica into a new store (`ckstore sync`), or save what can be read (`ckstore salvage`)"
        switch damage.block?.kind {
        case .run? where damage.losses.isEmpty && donor != nil:
            return "No checkpoint needs these pages, and the replica does not have them: it goes when the checkpoints over them are deleted."
        case .run?:
            return donor == nil
                ? "Give a replica that holds the checkpoints: `ckstore repair --from`."
                : "The replica does not have these pages: try another one, or delete the checkpoints."
        case .leaf?, .patchLeaf?, .inner?, .checkpointRecord?:
            return damage.block.map(indexRemedy) ?? newStore
        case .catalogNode?, .tableLeaf?, .tableInner?, .forwardingTable?:
            return "A tree that the store keeps of itself: repairing rebuilds it (`ckstore repair`)."
        case nil where damage.losses.isEmpty:
            return "Checkpoints can be read without it, but writing is not safe. Run `ckstore repair`; if it stays, \(newStore)."
        default: return "It can't be put right in place: \(newStore)."
        }
    }

    /// Why a block of the index stays damaged.
    private func indexRemedy(for block: BlockPointer) -> String {
        let newStore =
            "Otherwise bring the checkpoints from a replica into a new store (`ckstore sync`), or save what can be read (`ckstore salvage`)."
        switch underivable[block] {
        case nil where report.derived.contains(where: { $0.block == block }): return "It can be derived from other blocks: `ckstore repair` does it."
        case nil: return "Repairing did not come to it: run `ckstore repair` again."
        case .unreachable?:
            return "What stands around it could not be read. A copy of this medium has it (`ckstore repair --from` that). \(newStore)"
        case .needsReplica?:
            return "A record comes back with a replica that holds the checkpoint, or a copy of this medium: `ckstore repair --from`. \(newStore)"
        case .noGuessIsRight?:
            let replica = donor == nil ? "With a replica that holds the checkpoints more can be derived: `ckstore repair --from`. " : ""
            if options.isDryRun, !report.derived.isEmpty { return "It may be derived when others are there again: `ckstore repair` shows it." }
            let reason = "It can't be derived: what it was made of is gone too, or too much is possible."
            return "\(reason) \(replica)A copy of this medium has it. \(newStore)"
        }
    }
}
