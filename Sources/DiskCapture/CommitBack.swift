// Committing overlays back into their images while the guest writes.
//
// Invariants:
// - The guest sees one content throughout. When a commit has ended, well or not, its disk is whole: the image alone, or the
//   image with the overlay.
// - An overlay that has nothing below it is committed: QEMU takes it off the image in the same step in which the guest
//   continues on the image. That is what tells, in any process, whether it may be thrown away.
// - A guest that writes faster than the commit copies is slowed down, no longer than the commit takes.

import CheckpointCore
import QMP

/// The commit of one overlay.
struct CommitBack {
    private static let firstLimitBytes: Int64 = 64 << 20
    private static let lastLimitBytes: Int64 = 256 << 10
    /// How often to look whether it gets nearer to its end, in milliseconds.
    private static let pace = 1000

    let block: BlockLayer
    let disk: CaptureNote.Disk
    let deadline: Instant
    private var isCompleting = false
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

    /// Returns when the guest is back on the image.
    mutating func finish() throws(EngineError) {
        do throws(EngineError) {
            while try !isDone() { try step() }
        } catch {
            do throws(EngineError) { try limit(to: 0) } catch let second { if second.code == .exited { throw second } }
            throw error
        }
    }

    /// Whether the guest is on the image, and no job is left to say so.
    func isDone() throws(EngineError) -> Bool {
        guard try block.jobs(job).isEmpty else { return false }
        return try block.node(disk.overlayNode).map { $0.backingDepth == 0 } ?? true
    }

    private mutating func step() throws(EngineError) {
        guard try !block.jobs(job).isEmpty else { return try start() }
        let left = deadline - Instant.now
        guard left > 0 else { throw try giveUp() }
        let state = try block.wait(for: job, statuses: isCompleting ? [] : ["ready"], milliseconds: min(left, Self.pace))
        switch state?.status {
        case "concluded":
            try block.dismiss(job)
            isCompleting = false
            if let reason = state?.error { throw failed(.ioFailed, "it failed: \(reason)") }
        case "ready":
            try block.qmp.execute("job-complete", ["id": .string(job)])
            isCompleting = true
        default: try slowDownUnlessNearer()
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
        try block.qmp.execute(
            "qom-set",
            [
                "path": .string("/objects/" + disk.names.limits), "property": "limits",
                // Small writes at random places cost a commit 64 KiB each.
                "value": ["bps-write": .integer(bytes), "iops-write": .integer(bytes / 65536)],
            ])
        limitBytes = bytes
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
                The guest goes on with the overlay, which is part of its disk now. Clean up after the checkpoint later; if the machine \
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
