// Storing the disks while the guest runs.
//
// Invariants:
// - What is read stands still: the image below the overlay, which nobody writes to before `retire`.
// - Only a bitmap that counts from the parent makes a save incremental; a server that can't show it makes it a full one.

import CheckpointCore
import QMP
import Threading
import Units

/// How far the save of one disk is.
public struct DiskProgress: Sendable {
    /// The disk's name.
    public var disk: String
    /// Up to where it has been looked through.
    public var scanned: ByteCount
    /// Its length.
    public var total: ByteCount
}

/// What the save of one disk came to.
public struct DiskReport: Sendable, Equatable {
    /// The disk's name.
    public var disk: String
    /// What was read of it.
    public var bytesRead: ByteCount
    /// Whether only what has changed since the parent was read.
    public var isIncremental: Bool
    /// Writes between the switch and the stop that were taken from the log.
    public var loggedWrites: Int
}

extension DiskCapture {
    /// Puts all disks into a checkpoint, as regions named by `MachineRecord.diskRegion`; after `switchAtStop` or `cut`, while the
    /// guest runs.
    /// - Parameter progress: called from several threads.
    /// - Throws: `.ioFailed` when a disk can't be read, `.busy` when QEMU's NBD server is in use and the image can't be read without it,
    ///   what the sink throws. The guest goes on.
    public func save(
        into sink: any CheckpointSink, progress: (@Sendable (DiskProgress) -> Void)? = nil
    ) throws(EngineError) -> [DiskReport] {
        guard !disks.isEmpty else { return [] }
        let (captured, log) = state.withLock { state in
            precondition(state.isSwitched && (mode == .atStop || state.log != nil), "switchAtStop or cut comes first")
            return (state.disks, state.log)
        }
        let folder = options.scratchFolder + "/" + names.folder
        let server = try ImageServer(block: block, files: files, folder: folder)
        defer { server.stop() }
        var reports: [DiskReport] = []
        for (index, disk) in captured.enumerated() {
            let address = try server.serve(disk)
            let region = try sink.addRegion(
                MachineRecord.diskRegion(disk.disk.name), kind: .disk, byteLength: disk.disk.byteLength)
            let saver = DiskSaver(
                disk: disk.disk, index: index, address: address, log: log, region: region, progress: progress)
            reports.append(try saver.run())
        }
        try server.finish()
        return reports
    }
}
