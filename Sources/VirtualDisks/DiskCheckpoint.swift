// A checkpoint of a disk in use: its content at one instant stays readable while the machine goes on writing [system A; claims 1 to 8,
// 19 to 28].
//
// Order: `VirtualDisk.beginCheckpoint` (802), `machineHasStopped` (804), memory marked, `switchOver` (810), `waitForPending` if `mustWaitBeforeResuming` (812),
// `memoryIsResumed` (814), `waitForPendingReads` (822) before memory is saved, `memoryIsSaved` (828), `waitForPendingWrites` (830) before
// the disk is read, `commit` (834) or, at any point, `abort`.
//
// Invariants [claim 23]:
// - A write that was pending at the instant reaches the checkpointed and the ongoing disk; a later one the ongoing disk alone.
// - A read that was pending fills the checkpointed and the ongoing memory; a later one the ongoing memory alone.

import CheckpointCore
import Threading
import Units

extension VirtualDisk {
    /// Prepares a checkpoint while the machine runs: step 802, claim 2. Nothing changes for the machine.
    ///
    /// - Parameters:
    ///   - overlay: new and empty, over the disk's image. It is the disk's from now on.
    ///   - onFailure: told, once and on any thread, that an overlay has failed, for lack of space perhaps. The machine's requests wait then,
    ///     and none fails; so `abort` is called soon, which brings everything back to the image and lets them go on. It must not be called
    ///     from here. Without it such requests fail.
    /// - Throws: `.busy` when a checkpoint is being taken, or one has left overlays that are not committed; `.mismatch` when the overlay is
    ///   not made for this disk.
    public func beginCheckpoint(
        overlay: CowFile, onFailure: (@Sendable (EngineError) -> Void)? = nil
    ) throws(EngineError) -> DiskCheckpoint {
        guard overlay.geometry == geometry, overlay.groupCount == 0, overlay.parent == nil, overlay.mergeState == .open else {
            throw EngineError(
                .mismatch, "the copy-on-write file is not an empty one of this disk", remedy: "Create a new one with the disk's geometry.",
                place: overlay.name)
        }
        var progress = CheckpointProgress(overlay, geometry, onFailure: onFailure)
        try state.withLock { (state) throws(EngineError) in
            guard state.checkpoint == nil, state.overlays.isEmpty else {
                throw EngineError(.busy, "another checkpoint of the disk is under way", remedy: "Commit it or give it up first.", place: name)
            }
            state.checkpointCount += 1
            progress.number = state.checkpointCount
            state.checkpoint = progress
        }
        return DiskCheckpoint(self, number: progress.number)
    }
}

/// A checkpoint of a disk, until it is committed or aborted: one that is dropped before leaves the disk on its overlay. Its functions are
/// called in the order that is described above, by one thread at a time. Its waits have no limit: a backend completes every request, in
/// the end.
public final class DiskCheckpoint: Sendable {
    public let disk: VirtualDisk
    private let number: Int

    init(_ disk: VirtualDisk, number: Int) {
        self.disk = disk
        self.number = number
    }

    /// What the disk knows of this checkpoint; nil when it has ended.
    func progress(_ state: DiskState) -> CheckpointProgress? { state.checkpoint?.number == number ? state.checkpoint : nil }

    /// The machine stands still, and its memory is about to be marked: step 804. What is under way is pending from here on, so that a read that
    /// completes before `switchOver` reaches the checkpoint's copy as well, where devices' writes trap and so have made one.
    public func machineHasStopped(memory: any CheckpointedMemory) {
        disk.state.withLock { state in
            guard var checkpoint = progress(state), !checkpoint.isSwitched else { preconditionFailure("a checkpoint is switched to once") }
            checkpoint.memory = memory
            for request in state.requests { request.isPending = true }
            state.checkpoint = checkpoint
        }
    }

    /// The instant: step 810. From here on requests are new, and what is under way is pending. The machine stands still, and nobody submits
    /// requests meanwhile; completions may come. Takes microseconds.
    ///
    /// - Parameter memory: the machine's memory, marked copy-on-write already.
    public func switchOver(memory: any CheckpointedMemory) {
        disk.state.withLock { state in
            guard var checkpoint = progress(state), !checkpoint.isSwitched else { preconditionFailure("a checkpoint is switched to once") }
            checkpoint.isSwitched = true
            checkpoint.memory = memory
            checkpoint.pending = state.requests
            for request in state.requests { request.isPending = true }
            checkpoint.changedSince = state.changed
            state.changed = checkpoint.fresh
            state.overlays = [checkpoint.overlay]
            state.checkpoint = checkpoint
        }
    }

    /// What was under way at the instant, in issue order, with what has become of it. It belongs into the saved device state: a restored
    /// machine is told these outcomes, and nothing is done again.
    public var pendingRequests: [PendingRequest] { disk.state.withLock { progress($0)?.pending.map(\.summary) ?? [] } }

    /// Step 812, claim 16: whether the machine must not go on before `waitForPending` has returned.
    public var mustWaitBeforeResuming: Bool {
        disk.state.withLock { state in
            disk.rules.mustWaitBeforeResuming((progress(state)?.pending ?? []).filter(\.isUnderWay).map(\.ruled))
        }
    }

    /// Waits until everything that was pending is done. Not to be called by a completion.
    public func waitForPending() { wait { _ in true } }

    /// Waits until whoever submitted what was pending has been told of its outcome. The machine runs, so that no completion has to wait for
    /// it. Not to be called by a completion.
    public func waitForOutcomes() {
        disk.state.waitFor { state in (progress(state)?.pending ?? []).contains { $0.phase != .delivered } ? nil : () }
    }

    /// Step 814: the machine goes on, or is about to within microseconds.
    /// - Parameter waited: whether `waitForPending` was called.
    public func memoryIsResumed(waited: Bool) {
        precondition(waited || !mustWaitBeforeResuming, "the machine has to wait for its pending requests")
        let reads = disk.state.withLock { state in
            (progress(state)?.pending ?? []).filter { $0.operation == .read && $0.isUnderWay }
        }
        precondition(!waited || reads.isEmpty, "nothing is pending after waiting")
        for read in reads { disk.considerReissue(read, at: .machineResumes) }
    }

    /// Step 822, claim 8: waits until every pending read has filled both memories; then the checkpoint's memory can be saved. Not to be called
    /// by a completion.
    ///
    /// - Throws: what kept a read from being issued again: the checkpoint's memory lacks its bytes, and the checkpoint has to be aborted.
    public func waitForPendingReads() throws(EngineError) {
        wait { $0.operation == .read }
        if let failure = disk.state.withLock({ progress($0)?.reissueFailure }) { throw failure }
    }

    /// Step 828: the checkpoint's memory has been saved, and reads need no more care.
    public func memoryIsSaved() {
        disk.state.withLock { state in
            guard let pending = progress(state)?.pending else { return }
            precondition(pending.allSatisfy { $0.operation != .read || $0.isDone }, "reads are pending")
            state.checkpoint?.memory = nil
        }
    }

    /// Step 830: waits until every pending write has reached the parent. Not to be called by a completion.
    public func waitForPendingWrites() { wait { $0.operation == .write } }

    private func wait(for isMeant: (ActiveRequest) -> Bool) {
        disk.state.waitFor { state in (progress(state)?.pending ?? []).contains { isMeant($0) && !$0.isDone } ? nil : () }
    }

    /// The disk at the instant, from `waitForPendingWrites` until `commit` or `abort`: claim 3.
    public var parentReader: ParentReader {
        let changed = disk.state.withLock { state in
            guard let checkpoint = progress(state), checkpoint.isSwitched else { preconditionFailure("the disk at no instant") }
            precondition(checkpoint.pending.allSatisfy { $0.operation != .write || $0.isDone }, "writes are pending")
            return checkpoint.changedSince
        }
        return ParentReader(parent: disk.parent, geometry: disk.geometry, changedSince: changed?.ranges)
    }
}

/// Reads a disk as it was at a checkpoint's instant. Thread-safe; calls block.
public struct ParentReader: Sendable {
    private let parent: any DiskBackend
    public let geometry: DiskGeometry
    /// The block groups that may differ from the disk at the checkpoint before this one, ascending, joined where they touch; nil when
    /// there was none since the disk was made: all may.
    public let changedSince: [Range<BlockGroup>]?

    init(parent: any DiskBackend, geometry: DiskGeometry, changedSince: [Range<BlockGroup>]?) {
        self.parent = parent
        self.geometry = geometry
        self.changedSince = changedSince
    }

    /// Reads as many bytes as `buffer` has; whole sectors within the disk.
    /// - Throws: what the image's medium throws.
    public func read(_ offset: DiskOffset, into buffer: UnsafeMutableRawBufferPointer) throws(EngineError) {
        precondition(offset.rawValue + UInt64(buffer.count) <= geometry.diskLength.rawValue, "a range of the disk")
        let bytes = PrivateBytes(buffer.count)
        try parent.readNow(at: offset, into: bytes.transferAll)
        unsafe buffer.copyMemory(from: UnsafeRawBufferPointer(bytes.bytes))
    }
}
