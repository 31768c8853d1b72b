// Committing overlays back into their images while the guest writes.
//
// Invariants:
// - The guest sees one content throughout. When a commit has ended, well or not, its disk is whole: the image alone, or the
//   image with the overlay.
// - The move to the image is made while the guest is stopped, and the overlay deleted before it runs again: QEMU 7.2 aborts when a write
//   waits just while a commit moves to an image whose format passes permissions through, such as raw ("child->perm &
//   BLK_PERM_WRITE"), and an overlay that outlived its move would have older content than the image.
// - Whether an overlay is committed is told by the graph of QEMU's nodes, in any process: QEMU moves the guest from the
//   overlay to the image in one step, but leaves the overlay on the image, where committing it again would bring back old content.
// - A guest that writes faster than the commit copies is slowed down, no longer than the commit takes.

import CheckpointCore
import QMP

/// The commit of one overlay.
struct CommitBack {
    private static let firstLimitBytes: Int64 = 64 << 20
    private static let lastLimitBytes: Int64 = 256 << 10
    /// How often to look whether it gets nearer to its end, in milliseconds.
    private static let pace = 1000
    /// How often to ask again while the guest stands still.
    private static let movePace = 5

    let block: BlockLayer
    let disk: CaptureNote.Disk
    var deadline: Instant
    private var limitBytes: Int64?
    private var remaining: Int64?

    init(block: BlockLayer, disk: CaptureNote.Disk, deadline: Instant) {
        self.block = block
        self.disk = disk
        self.deadline = deadline
    }

    private var job: String { disk.names.commitJob }

    /// Starts, unless it is under way; several disks' commits run at once then.
    func start() throws(EngineError) {
        guard try block.jobs(job).isEmpty else { return }
        try block.qmp.execute(
            "block-commit",
            [
                "job-id": .string(job), "device": .string(disk.overlayNode), "base-node": .string(disk.baseNode),
                "auto-dismiss": false, "filter-node-name": .string(disk.names.commitFilter),
            ])
    }

    /// Whether the guest is on the image, and no job is left to say so.
    func isDone() throws(EngineError) -> Bool {
        guard try block.jobs(job).isEmpty else { return false }
        let (nodes, used) = try block.graph()
        guard nodes.contains(disk.overlayNode) else { return true }
        if used.contains(disk.overlayNode) { return false }
        if used.contains(disk.baseNode) { return true }
        // The device has been unplugged, from one or the other: QEMU makes what is below an overlay read-only, and writable again
        // when the overlay has been committed.
        return try block.nodes().first { $0.name == disk.baseNode }?.isReadOnly != true
    }

    /// Returns when all but `rest` bytes at most have been copied, and the commit can be completed; or when it is done.
    mutating func awaitReady(rest: Int64) throws(EngineError) {
        while try !isDone() {
            try start()
            let state = try awaitStep(["ready"])
            if state?.status == "ready", try block.remainingBytes(of: job) <= rest { return }
            // Ready, but with much to copy again: not asked again at once.
            if state?.status == "ready" { _ = try awaitStep([]) }
            try slowDownUnlessNearer()
        }
    }

    /// Lets the guest continue on the image once both agree.
    func complete() throws(EngineError) {
        guard try block.jobs(job).contains(where: { $0.status == "ready" }) else { return }
        // A job that is paused just now, for all I/O being drained, refuses: it is asked again.
        do throws(EngineError) { try block.qmp.execute("job-complete", ["id": .string(job)]) } catch where error.code == .refused {}
    }

    /// What is still to be copied, by the job's account.
    func remainingBytes() throws(EngineError) -> Int64 { try block.remainingBytes(of: job) }

    /// Returns when the guest is back on the image.
    mutating func finish() throws(EngineError) {
        while try !isDone() {
            // A commit that was cancelled by somebody ends well, and brings the guest nowhere.
            if try block.jobs(job).isEmpty { try awaitReady(rest: .max) }
            try complete()
            _ = try awaitStep([], milliseconds: Self.movePace)
        }
    }

    /// Waits a while for the job to have one of `statuses`, and dismisses it when it has ended. Lifts the limits before an error.
    private mutating func awaitStep(
        _ statuses: Set<String>, milliseconds: Int = CommitBack.pace
    ) throws(EngineError) -> BlockLayer.Job? {
        do throws(EngineError) {
            guard try !block.jobs(job).isEmpty else { return nil }
            let left = deadline - Instant.now
            guard left > 0 else { throw try giveUp() }
            let state = try block.wait(for: job, statuses: statuses, milliseconds: min(left, milliseconds))
            guard let state, state.status == "concluded" else { return state }
            try block.dismiss(job)
            if let reason = state.error { throw failed(.ioFailed, "it failed: \(reason)") }
            return state
        } catch {
            // What broke the connection breaks this too, and says no more.
            try? limit(to: 0)
            throw error
        }
    }

    /// Halves what the guest may write when as much is left to be copied as the last time.
    private mutating func slowDownUnlessNearer() throws(EngineError) {
        let left = try block.remainingBytes(of: job)
        defer { remaining = left }
        guard let remaining, left > remaining / 10 * 9 else { return }
        try limit(to: max(Self.lastLimitBytes, (limitBytes ?? Self.firstLimitBytes * 2) / 2))
    }

    /// Limits what the guest may write, in bytes a second; 0: no limit.
    private mutating func limit(to bytes: Int64) throws(EngineError) {
        guard bytes != limitBytes ?? 0 else { return }
        try setLimit(bytes)
        limitBytes = bytes
    }

    /// Takes off whatever limit there is, be it of a process that has been killed.
    func liftLimit() throws(EngineError) { try setLimit(0) }

    private func setLimit(_ bytes: Int64) throws(EngineError) {
        try block.qmp.execute(
            "qom-set",
            [
                "path": .string("/objects/" + disk.names.limits), "property": "limits",
                // Small writes at random places cost a commit 64 KiB each.
                "value": ["bps-write": .integer(bytes), "iops-write": .integer(bytes / 65536)],
            ])
    }

    /// Ends the job, so that it does not go on unobserved, and says what is left.
    private func giveUp() throws(EngineError) -> EngineError {
        try block.cancel(job)
        return failed(.timeout, "it was not done in time")
    }

    private func failed(_ code: EngineError.Code, _ reason: String) -> EngineError {
        EngineError(
            code, "the overlay could not be committed back: \(reason)",
            remedy: """
                The guest goes on with the overlay, which is part of its disk now. `ckstore vm rescue` commits it back later; if the machine \
                ends before, `qemu-img commit \(disk.overlayPath)` brings the writes into the image.
                """, place: disk.overlayPath)
    }
}

extension BlockLayer {
    /// What a job still has to copy, by its own account.
    func remainingBytes(of id: String) throws(EngineError) -> Int64 {
        let jobs = try qmp.execute("query-jobs").array ?? []
        guard let job = jobs.first(where: { $0["id"]?.string == id }) else { return 0 }
        return (job["total-progress"]?.integer ?? 0) - (job["current-progress"]?.integer ?? 0)
    }

    /// Ends a mirror or commit without waiting for agreement, and forgets it.
    func cancel(_ id: String, breaking node: String? = nil) throws(EngineError) {
        guard var job = try jobs(id).first(where: { $0.id == id }) else { return }
        if job.status != "concluded" {
            do throws(EngineError) {
                try qmp.execute("block-job-cancel", ["device": .string(id), "force": true])
            } catch { if error.code != .refused { throw error } }
            var ended = try wait(for: id, statuses: [], milliseconds: node == nil ? 30_000 : 3000)
            if ended == nil, let node {
                // Its requests hang: they fail when the connection does.
                try qmp.execute("yank", ["instances": [["type": "block-node", "node-name": .string(node)]]])
                ended = try wait(for: id, statuses: [], milliseconds: 30_000)
            }
            guard let ended else {
                throw EngineError(.timeout, "QEMU does not end the job", remedy: "Clean up again.", place: id)
            }
            job = ended
        }
        try dismiss(job.id)
    }
}
