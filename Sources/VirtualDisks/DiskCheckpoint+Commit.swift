// The end of a checkpoint: its overlay goes back into the disk's image while the machine runs [system A, step 834; claims 4 and 5].
//
// While an overlay is merged, a new one on top of it takes the machine's writes. The merged one hides the image's groups that are being
// rewritten, so that what the machine sees does not change. Each round merges what was written during the round before; the last one, when it
// is small enough or there were enough of them, is done while requests wait.
//
// Invariants:
// - Overlays are merged from the lowest up. One is left out of the chain when all of it is durable in the image, and removed after that.
// - When anything fails, the chain is as it was, every request goes on, and the same can be tried again.

import CheckpointCore
import Glibc
import Threading
import Units

/// When the last round of a commit is due.
public struct CommitLimits: Sendable {
    /// As many groups at most are merged while requests wait, unless the rounds have come to their end.
    public var heldGroups: Int
    /// As many rounds at most are done while requests go on.
    public var rounds: Int

    public init(heldGroups: Int, rounds: Int) {
        self.heldGroups = heldGroups
        self.rounds = rounds
    }

    /// 1 MiB in groups of 64 KiB, and eight rounds.
    public static let standard = CommitLimits(heldGroups: 16, rounds: 8)
}

/// What a commit came to.
public struct CommitReport: Sendable {
    /// Overlays that were merged while requests went on.
    public var rounds = 0
    /// Block groups that were written into the image.
    public var mergedGroups = 0
    /// How long requests waited.
    public var heldMicroseconds: UInt64 = 0
    /// Why files of overlays are still there though the image has all of their content, if any are. They have to be removed before anybody
    /// recovers the disk: what could not be marked as merged may be older than the image.
    public var unremoved: [EngineError] = []

    mutating func remove(_ overlay: CowFile) {
        do throws(EngineError) { try overlay.remove() } catch { unremoved.append(error) }
    }
}

extension DiskCheckpoint {
    /// Makes an empty overlay over the one with this identity.
    public typealias HelperMaker = (_ parent: OverlayID) throws(EngineError) -> CowFile

    /// Step 834: brings the disk back to its image alone, and ends the checkpoint. Waits for what is pending before. Everything that was
    /// merged is durable on return. Called when the checkpoint is safe: the next one's `changedSince` counts from it. Not to be called by a
    /// completion. An overlay that has failed is brought back as well, all of it while requests wait.
    ///
    /// - Parameter makeHelper: makes the overlays that take writes meanwhile.
    /// - Throws: what merging throws, and `makeHelper`. The disk goes on with the overlays that it has: call this again, or `abort`. When
    ///   the program ends before, `CowFile.recover` finishes.
    @discardableResult
    public func commit(limits: CommitLimits = .standard, makeHelper: HelperMaker) throws(EngineError) -> CommitReport {
        disk.state.withLock { state in
            precondition(progress(state)?.isSwitched ?? false, "a checkpoint that was switched to, and has not ended")
            state.checkpoint?.memory = nil
        }
        waitForPending()
        return try mergeOverlays(limits, makeHelper)
    }

    /// Gives the checkpoint up, at any point; harmless when it has ended. The disk goes on as if it had never been. After the instant, the
    /// overlay is merged as by `commit`; without `makeHelper` all of it while requests wait. What the next incremental checkpoint has to
    /// read includes what this one had.
    ///
    /// - Throws: like `commit`.
    @discardableResult
    public func abort(limits: CommitLimits = .standard, makeHelper: HelperMaker? = nil) throws(EngineError) -> CommitReport {
        var report = CommitReport()
        let unused: CowFile? = disk.state.withLock { state in
            guard let checkpoint = progress(state) else { return nil }
            state.checkpoint?.memory = nil
            if !checkpoint.isSwitched { state.checkpoint = nil }
            return checkpoint.isSwitched ? nil : checkpoint.overlay
        }
        if let unused { report.remove(unused) }
        guard disk.state.withLock({ progress($0) != nil }) else { return report }
        waitForPending()
        disk.state.withLock { state in
            let before = state.checkpoint!.changedSince
            if let before { state.changed?.formUnion(before) } else { state.changed = nil }
        }
        guard let makeHelper else {
            return try mergeOverlays(CommitLimits(heldGroups: .max, rounds: 0)) { _ in preconditionFailure("no round without a helper") }
        }
        return try mergeOverlays(limits, makeHelper)
    }

    private func mergeOverlays(_ limits: CommitLimits, _ makeHelper: HelperMaker) throws(EngineError) -> CommitReport {
        var report = CommitReport()
        while true {
            let (overlays, failure) = disk.state.withLock { ($0.overlays, $0.checkpoint?.overlayFailure) }
            if failure != nil || overlays.contains(where: { $0.failure != nil }) {
                try salvage(&report)
                return report
            }
            let isLast = overlays.count == 1 && (overlays[0].groupCount <= limits.heldGroups || report.rounds >= limits.rounds)
            if isLast {
                try mergeWhileHeld(&report)
                report.remove(overlays[0])
                return report
            }
            if overlays.count == 1 { try push(try makeHelper(overlays[0].id)) }
            try mergeLowest(&report)
        }
    }

    /// New writes go to `helper`.
    private func push(_ helper: CowFile) throws(EngineError) {
        let below = disk.state.withLock { $0.overlays[0] }
        guard helper.geometry == disk.geometry, helper.groupCount == 0, helper.parent == below.id else {
            throw EngineError(
                .mismatch, "the copy-on-write file is not an empty one over the disk's newest",
                remedy: "Create a new one with the disk's geometry.", place: helper.name)
        }
        disk.state.withLock { $0.overlays.insert(helper, at: 0) }
    }

    /// Merges the lowest overlay, which is not the only one, and leaves it out of the chain.
    private func mergeLowest(_ report: inout CommitReport) throws(EngineError) {
        let overlays = disk.state.withLock { $0.overlays }
        let lowest = overlays[overlays.count - 1]
        // Writes that were under way to it when the one above it came.
        disk.state.waitFor { state in state.requests.contains { $0.phase == .issued && $0.target === lowest } ? nil : () }
        report.mergedGroups += try lowest.merge(into: disk.parent)
        try overlays[overlays.count - 2].layOnImage()
        disk.state.withLock { _ = $0.overlays.removeLast() }
        report.remove(lowest)
        report.rounds += 1
    }

    /// Merges the only overlay while requests wait, and ends the checkpoint.
    private func mergeWhileHeld(_ report: inout CommitReport) throws(EngineError) {
        let last = disk.state.withLock { $0.overlays[0] }
        // Most of what has to become durable does so before anybody waits for it.
        try last.flush()
        var start = timespec()
        unsafe clock_gettime(CLOCK_MONOTONIC, &start)
        disk.state.withLock { $0.isHeld = true }
        defer { letGo() }
        disk.state.waitFor { state in state.requests.contains { $0.phase == .issued } ? nil : () }
        // With nothing in it there is nothing to make durable, which would take many times as long as all else.
        if last.groupCount > 0 { report.mergedGroups += try last.merge(into: disk.parent) }
        disk.state.withLock { state in
            state.overlays = []
            state.checkpoint = nil
        }
        var end = timespec()
        unsafe clock_gettime(CLOCK_MONOTONIC, &end)
        report.heldMicroseconds = UInt64((end.tv_sec - start.tv_sec) * 1_000_000 + (end.tv_nsec - start.tv_nsec) / 1000)
    }

    private func letGo() {
        disk.act { state in
            state.isHeld = false
            return disk.startable(&state)
        }
    }

    /// Brings everything back to the image while requests wait, when an overlay can't be written any more: what it holds can still be read.
    ///
    /// Files go when all of it is durable in the image. A crash before that finds the state of their last flush, and no flush has been
    /// acknowledged to the machine since. While they go, none may be merged again over what those above it have brought: each is marked as
    /// merged, and one that can't be marked goes first, so that what lies on it is refused, and not merged in the wrong order.
    private func salvage(_ report: inout CommitReport) throws(EngineError) {
        disk.state.withLock { $0.isHeld = true }
        defer { letGo() }
        disk.state.waitFor { state in state.requests.contains { $0.phase == .issued } ? nil : () }
        let overlays = disk.state.withLock { $0.overlays }
        for overlay in overlays.reversed() { report.mergedGroups += try overlay.copyGroups(into: disk.parent) }
        try disk.parent.flushNow()
        // From here on the image alone is the disk: whatever becomes of the files, they are not written again.
        disk.state.withLock { state in
            state.overlays = []
            state.checkpoint = nil
        }
        var marked: [CowFile] = []
        for overlay in overlays.reversed() {
            // That one can't be written is why this is done at all.
            do throws(EngineError) {
                try overlay.markMerged()
                marked.append(overlay)
            } catch { report.remove(overlay) }
        }
        for overlay in marked.reversed() { report.remove(overlay) }
    }
}
