// The log of writes around a stop that QEMU makes by itself.
//
// Invariants:
// - While the log is armed a write of the guest completes after it is in the log, or after the log has failed.
// - A log that failed or missed a write is never read: only a mirror that ends in agreement with its source vouches for it.

import CheckpointCore
import QMP
import Units

extension DiskCapture {
    /// How long a mirror may take to agree with its overlay, and to end, in milliseconds.
    private static let mirrorMilliseconds = 30_000

    /// Sends all writes to a log as well; returns when every disk's log agrees with its overlay.
    func startLog(_ note: CaptureNote) throws(EngineError) {
        let captured = state.withLock { $0.disks }
        let server = try WriteLogServer(
            disks: captured.map(\.disk.byteLength), socket: note.logSocket, folder: options.scratchFolder, files: files)
        state.withLock { $0.logServer = server }
        for (index, disk) in captured.enumerated() {
            let log = JSONValue.string(disk.names.log)
            try block.qmp.execute(
                "blockdev-add",
                [
                    "driver": "nbd", "node-name": log, "export": .string("\(index)"),
                    "server": ["type": "unix", "path": .string(note.logSocket)],
                ])
            try block.qmp.execute(
                "blockdev-mirror",
                [
                    "job-id": .string(disk.names.logJob), "device": .string(disk.names.overlay), "target": log, "sync": "top",
                    "copy-mode": "write-blocking", "on-target-error": "report", "auto-dismiss": false,
                    "filter-node-name": .string(disk.names.logFilter),
                ])
        }
        for disk in captured {
            let job = try block.wait(for: disk.names.logJob, statuses: ["ready"], milliseconds: Self.mirrorMilliseconds)
            guard job?.status == "ready" else { throw Self.logFailed(disk.disk, job?.error ?? "it took too long") }
        }
        state.withLock { $0.armedMicroseconds = Instant.wallClockMicroseconds }
    }

    /// Ends the log of a `.logged` capture: what was written after the guest was resumed is not part of the checkpoint.
    /// - Parameter timestampMicroseconds: of QEMU's RESUME event, since 1970.
    /// - Throws: `.ioFailed` when the log failed, or the host's clock was set meanwhile: taking the checkpoint again helps;
    ///   `.timeout`, `.corrupt`, what `execute` throws. The guest goes on in all cases.
    public func cut(resume timestampMicroseconds: Int64) throws(EngineError) {
        precondition(mode == .logged, "only a logged capture is cut")
        guard !disks.isEmpty else { return }
        let (captured, server, armed) = state.withLock { ($0.disks, $0.logServer, $0.armedMicroseconds) }
        guard let server else { preconditionFailure("prepare comes first, and cut once") }
        guard timestampMicroseconds >= armed else {
            throw EngineError(
                .invalidInput, "the guest was resumed before the log of its writes was armed, or the host's clock was set back",
                remedy: "Take the checkpoint again.")
        }
        // Not by force: a mirror that ends this way has made sure that its target has everything.
        for disk in captured {
            do throws(EngineError) {
                try block.qmp.execute("block-job-cancel", ["device": .string(disk.names.logJob)])
            } catch {
                // One that has failed can't be cancelled: why it failed is said below.
                if error.code != .refused { throw error }
            }
        }
        for disk in captured {
            let job = try block.wait(for: disk.names.logJob, statuses: [], milliseconds: Self.mirrorMilliseconds)
            guard let job, job.error == nil else { throw Self.logFailed(disk.disk, job?.error ?? "it does not end") }
            try block.dismiss(disk.names.logJob)
            try block.deleteNode(disk.names.log)
        }
        server.stop()
        let log = try server.writes(until: timestampMicroseconds)
        state.withLock { state in
            state.log = log
            state.logServer = nil
        }
    }

    private static func logFailed(_ disk: WritableDisk, _ reason: String) -> EngineError {
        EngineError(
            .ioFailed, "the log of the disk's writes failed: \(reason)",
            remedy: "The guest is not affected. Look for room in the scratch folder, then take the checkpoint again.", place: disk.name)
    }
}
