// What a checkpoint of a running machine is asked to be, and what it came to.

import CheckpointCore
import DiskCapture
import Units

/// How guest memory is captured.
public enum CaptureEngine: String, Sendable, CaseIterable {
    /// QEMU's own background snapshot: works with every machine whose memory is not in a file on disk.
    case background
    /// Memory read and tracked from outside: for machines whose memory is shared (memory-backend-memfd,share=on).
    case external
    /// External where the machine allows it, else background.
    case auto
}

/// A checkpoint to be taken.
public struct CheckpointRequest: Sendable {
    /// The new checkpoint's name.
    public var name: String
    /// The checkpoint whose equal pages are not stored again.
    public var parent: String?
    public var engine: CaptureEngine
    /// The path of the machine's monitor socket (-qmp unix:PATH,server=on,wait=off).
    public var monitorPath: String
    /// Where the overlays of disks are put meanwhile; nil: beside each disk's image.
    public var overlayFolder: String?
    /// Whether QEMU goes on counting which blocks of its disks change, so that the next checkpoint reads only those.
    public var tracksDisks: Bool
    /// The command that becomes the guard: an executable and its first arguments. It must call `Guard.run`.
    public var guardCommand: [String]
    /// Threads that compress and write.
    public var parallelism: Int

    public init(
        name: String, parent: String?, engine: CaptureEngine, monitorPath: String, overlayFolder: String? = nil,
        tracksDisks: Bool = true, guardCommand: [String], parallelism: Int
    ) {
        self.name = name
        self.parent = parent
        self.engine = engine
        self.monitorPath = monitorPath
        self.overlayFolder = overlayFolder
        self.tracksDisks = tracksDisks
        self.guardCommand = guardCommand
        self.parallelism = parallelism
    }
}

/// What a checkpoint came to.
public struct CheckpointReport: Sendable {
    /// What was captured of the machine.
    public var machine: MachineRecord
    /// How long the guest stood still, by QEMU's own events.
    public var stopMicroseconds: Int64
    /// How long it stood still besides: while disks with direct I/O were drained (external engine), and while it went back from its
    /// overlays to its images.
    public var otherStopsMicroseconds: Int64
    /// From the command to the durable checkpoint.
    public var totalMicroseconds: Int64
    /// From QEMU's first work on the checkpoint to its last.
    public var migrationMicroseconds: Int64
    /// Pages of memory that were looked at.
    public var pages: PageCount
    /// Pages, of memory and disks, that were stored because the parent has them not.
    public var newPages: PageCount
    /// Bytes that they took.
    public var storedBytes: ByteCount
    /// How each disk was read.
    public var disks: [DiskReport]
}
