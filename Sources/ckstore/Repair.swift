// `ckstore repair`.

import ArgumentParser
import CheckpointStore
import Media
import Units

struct RepairCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "repair",
        abstract: "Put right what is damaged, with what another store has of it.",
        discussion: """
            Verifies the store and brings back what can't be read. Blocks of the index (nodes and leaves) are derived from \
            what stands around them: the trees of related checkpoints and the pages that were stored. What has the checksum of \
            the lost block is that block, byte for byte; nothing else is written. Superblock slots that lost their twins come \
            back too, and space that is counted as in use though nothing needs it. All this needs no other store.

            The trees that the store keeps of itself, too: the catalogs by id and by name, the lineage, the segment table and the \
            forwarding tables are rebuilt, in one commit, from each other, from records and from what the segments hold. What could \
            not be had again of them is named: names that move (`ckstore name`), mostly, which are had from --from. Others can't \
            save while trees are being rebuilt, which reads the whole medium once.

            With --from it gets pages from a store that holds the same checkpoints, as `ckstore sync` and `ckstore receive` \
            make them, or whole blocks from a copy of this store's medium. Every page is compared with the hash that this store \
            has of it, so that a replica that is damaged itself, or a wrong one, does no harm. What a replica has also makes \
            more of the index derivable: the records of checkpoints, and leaves in which pages became zero.

            Others can read and save meanwhile, but not delete or compact. Interrupted, it stops after the block under way; \
            what was repaired stays. Exits with 3 when something stays damaged or was lost, with 5 when the replica has none of the \
            checkpoints that have lost something.

            Example:
              ckstore repair vm.ck
              ckstore repair vm.ck --dry-run
              ckstore repair vm.ck --from raw:/dev/sdb1 --dry-run
              ckstore repair vm.ck --from replica.ck --checkpoint monday
            """)

    @OptionGroup var target: StoreArgument
    @Option(
        help: ArgumentHelp("The store that has what is damaged here.", valueName: "store"), completion: .file(),
        transform: { text in try Locator(text) })
    var from: Locator?
    @Option(help: ArgumentHelp("Repair only what this checkpoint needs.", valueName: "name"))
    var checkpoint: String?
    @Flag(help: "Also unpack every page and compare it with its hash.")
    var deep = false
    @Flag(help: "Only say what could be repaired.")
    var dryRun = false
    @OptionGroup var jobs: JobsOption
    @OptionGroup var output: OutputOptions

    func run() throws {
        Interruption.begin()
        let store = try target.open(dryRun ? .readOnly : .readWrite)
        defer { store.close() }
        let replica = try from.map { try CheckpointStore.open(try openMedium($0, access: .readOnly)) }
        defer { replica?.close() }
        // The first signal is seen at the next block; a second one ends at once.
        Interruption.setCancel {}
        let progress = Progress(isShown: output.showsProgress, total: nil)
        let options = RepairOptions(
            checkpoint: checkpoint, checksPages: deep, parallelism: jobs.value, isDryRun: dryRun,
            progress: { done in
                progress.expect(done.expectedBytes)
                progress.update(done.bytes)
            }, isCancelled: { Interruption.received != nil })
        let report: RepairReport
        do {
            defer { progress.clear() }
            report = try store.repair(from: replica, options: options)
        }
        try tell(report, store)
        try end(report)
    }

    private func tell(_ report: RepairReport, _ store: CheckpointStore) throws {
        if !output.json {
            for one in report.remaining.prefix(Self.shown) {
                standardError("ckstore: \(dryRun ? "damaged" : "stays damaged"): \(printable(one.damage.description)). \(one.remedy)\n")
            }
            if report.remaining.count > Self.shown { standardError("and \(report.remaining.count - Self.shown) more (--json lists all)\n") }
            for checkpoint in report.missingInReplica.sorted(by: { $0.name < $1.name }).prefix(Self.shown) {
                standardError("ckstore: the replica does not have checkpoint \(printable(checkpoint.name)) (\(checkpoint.id))\n")
            }
            for one in report.derived.prefix(Self.shown) {
                let elsewhere = one.isForwarded ? ", at another place" : ""
                standardError("ckstore: \(dryRun ? "can be derived" : "derived"): \(one.block)\(elsewhere)\n")
            }
            if report.derived.count > Self.shown { standardError("and \(report.derived.count - Self.shown) more (--json lists all)\n") }
            for tree in report.trees.trees {
                standardError(
                    "ckstore: \(dryRun ? "would rebuild" : "rebuilt") \(tree.name) (\(counted(tree.damagedNodes, "damaged node"))) from \(tree.source)\n")
            }
            for loss in report.trees.losses.prefix(Self.shown) { standardError("ckstore: \(printable(loss))\n") }
            if report.trees.losses.count > Self.shown { standardError("and \(report.trees.losses.count - Self.shown) more (--json lists all)\n") }
            if let obstacle = report.obstacle { standardError("ckstore: \(obstacle)\n") }
        }
        let result = Result(report, store, isDryRun: dryRun)
        try output.report(result, summary: result.summary)
    }

    /// How many entries of a list people get to see.
    private static let shown = 10

    private func end(_ report: RepairReport) throws {
        if report.wasCancelled { throw ExitCode(Interruption.received.map { 128 + $0 } ?? ExitStatus.failed) }
        if let obstacle = report.obstacle { throw ExitCode(ExitStatus.code(for: obstacle)) }
        guard !report.remaining.isEmpty || !report.trees.losses.isEmpty else { return }
        throw ExitCode(report.isReplicaForeign ? ExitStatus.notFound : ExitStatus.corrupt)
    }

    private struct Result: Encodable {
        struct Remaining: Encodable {
            var damage: DamageObject
            var remedy: String
        }
        struct Derived: Encodable {
            var kind: String
            var segment: UInt64
            var segmentOffsetBytes: UInt32
            /// Whether it had to go to another place.
            var isForwarded: Bool
        }
        struct Tree: Encodable {
            var name: String
            var damagedNodes: Int
            var source: String
        }
        struct Missing: Encodable {
            var name: String
            var id: String
        }

        var medium: String
        var isDryRun: Bool
        var wasInterrupted: Bool
        /// Damaged places that were found at first.
        var foundDamages: Int
        /// Copied from the replica, or runs made of its pages.
        var rewrittenBlocks: Int
        /// Blocks of the index that were made again from others, byte for byte.
        var derivedBlocks: [Derived]
        var forwardedRuns: Int
        var restoredPages: UInt64
        var rewrittenSlots: Int
        var recountedSegments: Int
        var freedSegments: Int
        /// The trees that the store keeps of itself that were written anew, and what could not be had again of them.
        var rebuiltTrees: [Tree]
        var losses: [String]
        /// What stays damaged; of a dry run, everything that was found.
        var remaining: [Remaining]
        /// Checkpoints that lost something and that the replica does not have.
        var missingInReplica: [Missing]
        /// Why it could not go on; absent when all is well.
        var obstacle: FailureObject?

        init(_ report: RepairReport, _ store: CheckpointStore, isDryRun: Bool) {
            medium = store.medium.name
            self.isDryRun = isDryRun
            wasInterrupted = report.wasCancelled
            foundDamages = report.found.damages.count
            rewrittenBlocks = report.rewrittenBlocks
            derivedBlocks = report.derived.map {
                Derived(
                    kind: $0.block.kind.name, segment: $0.block.segment.rawValue, segmentOffsetBytes: $0.block.offset.rawValue,
                    isForwarded: $0.isForwarded)
            }
            forwardedRuns = report.forwardedRuns
            restoredPages = report.restoredPages.rawValue
            rewrittenSlots = report.rewrittenSlots
            recountedSegments = report.recountedSegments
            freedSegments = report.freedSegments
            rebuiltTrees = report.trees.trees.map { Tree(name: $0.name, damagedNodes: $0.damagedNodes, source: $0.source) }
            losses = report.trees.losses
            remaining = report.remaining.map { Remaining(damage: DamageObject($0.damage), remedy: $0.remedy) }
            missingInReplica = report.missingInReplica.map { Missing(name: $0.name, id: $0.id.description) }
            obstacle = report.obstacle.map(FailureObject.init)
        }

        var summary: String {
            if foundDamages == 0, rewrittenSlots + recountedSegments + freedSegments + rebuiltTrees.count == 0 { return "\(medium): sound, nothing to repair\n" }
            let done =
                "\(counted(rewrittenBlocks, "block")) in place, \(counted(derivedBlocks.count, "block")) derived, "
                + "\(counted(forwardedRuns, "run")) anew, "
                + "\(counted(rebuiltTrees.count, "tree")), \(counted(rewrittenSlots, "slot")), \(counted(recountedSegments, "count")), freed \(counted(freedSegments, "segment"))"
            if isDryRun { return "\(medium): \(counted(foundDamages, "damaged place")); would repair \(done)\n" }
            let whole = losses.isEmpty ? "everything is sound now" : "all is sound now, \(counted(losses.count, "thing")) lost"
            let end = remaining.isEmpty ? whole : "\(counted(remaining.count, "damaged place")) left"
            return "\(medium): repaired \(done); \(wasInterrupted ? "interrupted" : end)\n"
        }
    }
}
