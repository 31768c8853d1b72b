// Verification in the background, for months, beside writers and readers.
//
// Invariants:
// - A generation is registered for a slice at most: a few MiB read at full speed. The pauses that the rate asks for come between
//   slices, when nothing is registered; so freed space waits for a scrub no longer than that, and commits never do.
// - Where a pass has come to is kept in memory: what was found sound is not read again in the same pass, whatever is committed and
//   deleted meanwhile.
// - What vanished because its checkpoint was deleted is no damage: a loss is reported only for checkpoints that are still there, as they
//   were, when the pass is over.

import Media
import StoreFormat
import Threading
import Units

/// How to scrub.
public struct ScrubOptions: Sendable {
    /// Most bytes a second, in the long run. At least 1.
    public var bytesPerSecond: ByteCount
    /// Also decompress every run and compare every page with its hash.
    public var checksPages: Bool
    /// Called after each slice, with what the pass has found sound so far.
    public var progress: (@Sendable (VerifyProgress) -> Void)?
    /// The clock that the rate is kept by.
    package var clock = RateClock.monotonic
    /// Bytes that are read under one registration, about.
    package var sliceBytes = ByteCount.mebibytes(4)

    /// The rate when none is given: 32 MiB a second.
    public static let defaultBytesPerSecond = ByteCount.mebibytes(32)

    public init(
        bytesPerSecond: ByteCount = ScrubOptions.defaultBytesPerSecond, checksPages: Bool = false,
        progress: (@Sendable (VerifyProgress) -> Void)? = nil
    ) {
        precondition(bytesPerSecond > .zero)
        self.bytesPerSecond = bytesPerSecond
        self.checksPages = checksPages
        self.progress = progress
    }
}

/// What one pass found.
public struct ScrubPass: Sendable {
    /// Of the checkpoints that were there when the pass began and are still there; its generation is the one that the pass began with.
    public var report: VerifyReport
    /// Checkpoints that were deleted before or while they were looked at.
    public var vanishedCheckpoints: Int
    /// How often a generation was registered.
    public var slices: Int
    /// Whether what was reached could be compared with what the segment table and the forwarding count: nothing was committed during
    /// the pass. Else only `verify` compares it.
    public var comparesCounts: Bool
}

/// Scrubs a store. For one thread. Memory: what is known of each block, about 80 bytes for each run and 100 for each index node, during a pass.
public final class Scrubber {
    private let store: CheckpointStore
    private let options: ScrubOptions
    private let limit: RateLimit

    /// - Parameter store: may be open for reading only.
    public init(_ store: CheckpointStore, options: ScrubOptions = ScrubOptions()) {
        self.store = store
        self.options = options
        limit = RateLimit(bytesPerSecond: options.bytesPerSecond, clock: options.clock)
    }

    /// Verifies everything once: slots, segment table, catalog, and every checkpoint that is there now. Blocks, as long as the rate says.
    /// - Parameter shouldStop: asked after each slice.
    /// - Throws: `.cancelled` when `shouldStop` said so, `.storeFailed`. Damage is not thrown but reported.
    public func pass(shouldStop: () -> Bool = { false }) throws(StoreError) -> ScrubPass {
        let (verifier, found, isWhole) = try begin()
        var (vanished, slices) = (Set<CheckpointID>(), 1)
        for job in found.jobs {
            var isDone = false
            while !isDone {
                guard !shouldStop() else { throw StoreError(.cancelled, "scrubbing was stopped", medium: store.medium.name) }
                let before = verifier.trees.readBytes
                slices += 1
                switch try slice(job, verifier) {
                case .done: isDone = true
                case .vanished:
                    vanished.insert(job.id)
                    isDone = true
                case .stopped: break
                }
                let (bytes, expected) = verifier.trees.state.withLock { ($0.bytes, $0.expectedBytes) }
                options.progress?(VerifyProgress(bytes: bytes, expectedBytes: expected))
                limit.take(verifier.trees.readBytes - before)
            }
        }
        return try end(verifier, found, vanished, isWhole: isWhole, slices: slices)
    }

    /// The first slice: slots, segment table, catalog, lineage and forwarding.
    private func begin() throws(StoreError) -> (Verifier, CatalogFindings, isWhole: Bool) {
        let snapshot = try store.snapshot()
        // One thread, and no rate within a slice.
        let verifier = Verifier(store: store, slot: snapshot.slot, options: VerifyOptions(checksPages: options.checksPages, parallelism: 1))
        try verifier.slots()
        let isTableWhole = try verifier.table()
        let catalog = try verifier.catalog()
        try verifier.lineage(catalog)
        let isForwardingWhole = try verifier.forwarding()
        return (verifier, catalog, isTableWhole && isForwardingWhole)
    }

    private enum SliceEnd { case done, stopped, vanished }

    private func slice(_ job: CheckpointJob, _ verifier: Verifier) throws(StoreError) -> SliceEnd {
        let snapshot = try store.snapshot()
        guard try isThere(job, in: snapshot.slot) else { return .vanished }
        let trees = verifier.trees
        let end = trees.readBytes + options.sliceBytes
        let start = trees.found
        do throws(StoreError) {
            // A leaf at least with what it stands on, whatever the nodes above it took: each slice comes further.
            try trees.verify([job], in: snapshot.slot) { trees.readBytes < end || trees.found == start }
            return .done
        } catch {
            guard error.code == .cancelled else { throw error }
            return .stopped
        }
    }

    /// Whether the catalog still names the checkpoint's record. Where it can't be read, it did when the pass began.
    private func isThere(_ job: CheckpointJob, in slot: Slot) throws(StoreError) -> Bool {
        do throws(StoreError) { return try store.catalogValue(of: job.id, in: slot)?.record == job.value.record } catch {
            guard error.isDamage else { throw error }
            return true
        }
    }

    private func end(
        _ verifier: Verifier, _ found: CatalogFindings, _ vanishedBefore: Set<CheckpointID>, isWhole: Bool, slices: Int
    ) throws(StoreError) -> ScrubPass {
        var vanished = vanishedBefore
        let snapshot = try store.snapshot()
        for job in found.jobs where !vanished.contains(job.id) {
            if try !isThere(job, in: snapshot.slot) { vanished.insert(job.id) }
        }
        var kept = found
        kept.forget(vanished)
        try verifier.checkCatalog(kept)
        // Counts change with every commit: they are those of what was reached only if there was none.
        let comparesCounts = isWhole && snapshot.slot.generation == verifier.slot.generation
        if comparesCounts {
            try verifier.checkForwardedPlaces()
            try verifier.checkLive()
        }
        var report = verifier.report
        report.damages = report.damages.compactMap { Self.remaining($0, without: vanished) }
        return ScrubPass(report: report, vanishedCheckpoints: vanished.count, slices: slices, comparesCounts: comparesCounts)
    }

    /// A damage without the checkpoints that are gone; nil when nobody is left whom it concerns.
    private static func remaining(_ damage: Damage, without vanished: Set<CheckpointID>) -> Damage? {
        guard !vanished.isEmpty, !damage.concernsStore else { return damage }
        var damage = damage
        for index in damage.losses.indices { damage.losses[index].checkpoints.removeAll { vanished.contains($0.id) } }
        damage.losses.removeAll { $0.checkpoints.isEmpty }
        // Found in a checkpoint that was not looked at to its end.
        return damage.losses.isEmpty ? nil : damage
    }
}
