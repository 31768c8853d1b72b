// All writable disks of a running QEMU at one instant: captured, stored, and put back as they were.
//
// How: every disk continues in an overlay, so that the image below it stands still and can be read while the guest runs; then
// the overlay is committed back. Which instant the image stands for:
// - `.atStop`: the switch to the overlays happens while the guest is stopped. The image is the disk at the stop.
// - `.logged`: QEMU stops and resumes the guest by itself. The switch happens before that, and every later write is also logged, with the
//   time. The image and the writes until the guest was resumed are the disk at the stop: QEMU completes all I/O
//   within a stop, and says when it resumes before the guest does.
//
// Invariants:
// - All is done through QEMU's block layer and noted in QEMU: whoever is killed when, `cleanUp` puts the disks back.
// - Whatever fails, the guest goes on with every byte that it has written.
// - A bitmap that counts from a checkpoint has every write since then, or it is not used and removed.

import CheckpointCore
import QMP
import StoreFormat
import Threading
import Units

/// One capture of a machine's disks. Blocking calls, in the order prepare, switchAtStop or cut, save, retire; from any thread, one at
/// a time. After an error in any of them, call `retire(committed: false)`.
public final class DiskCapture: Sendable {
    /// How the instant of the capture is fixed.
    public enum Mode: Sendable {
        /// `switchAtStop` is called while the guest is stopped.
        case atStop
        /// Writes are logged from `prepare` on, and `cut` is told when QEMU has resumed the guest.
        case logged
    }

    /// What the user may choose.
    public struct Options: Sendable {
        /// Where overlays go, as QEMU sees it; nil: beside each image.
        public var overlayFolder: String?
        /// For sockets and the log of writes; must be one that QEMU can reach under the same path, and for the log a file system
        /// that has files without names.
        public var scratchFolder: String
        /// False: nothing stays in QEMU; the next checkpoint reads everything that is allocated.
        public var keepsBitmap: Bool
        /// How long committing back may take, in milliseconds.
        public var commitTimeoutMilliseconds: Int
        /// Preparing fails when less is free where an overlay goes: an overlay without room stops the guest.
        public var minimumFreeBytes: ByteCount

        public init(
            overlayFolder: String? = nil, scratchFolder: String = "/dev/shm", keepsBitmap: Bool = true,
            commitTimeoutMilliseconds: Int = 600_000, minimumFreeBytes: ByteCount = .mebibytes(64)
        ) {
            self.overlayFolder = overlayFolder
            self.scratchFolder = scratchFolder
            self.keepsBitmap = keepsBitmap
            self.commitTimeoutMilliseconds = commitTimeoutMilliseconds
            self.minimumFreeBytes = minimumFreeBytes
        }
    }

    struct State {
        var disks: [CapturedDisk] = []
        var isSwitched = false
        var logServer: WriteLogServer?
        /// When the log was armed, by the wall clock.
        var armedMicroseconds: Int64 = 0
        var log: WriteLog?
    }

    /// The disks of this capture.
    public let disks: [WritableDisk]
    let block: BlockLayer
    let mode: Mode
    let parent: CheckpointID?
    let options: Options
    let names: CaptureNames
    let files: MachineFiles
    let state = Lock(State())

    /// A capture of `disks`, as `writableDisks` has listed them. Does nothing yet.
    /// - Parameters:
    ///   - checkpoint: the checkpoint that it will be part of.
    ///   - parent: the checkpoint whose content of equal disks need not be stored again; nil: everything is.
    public init(
        qmp: QMPClient, disks: [WritableDisk], mode: Mode, checkpoint: CheckpointID, parent: CheckpointID?,
        options: Options = Options()
    ) {
        self.disks = disks
        block = BlockLayer(qmp)
        self.mode = mode
        self.parent = parent
        self.options = options
        names = CaptureNames(checkpoint: checkpoint)
        files = MachineFiles(process: qmp.processID)
    }

    /// Makes the overlays while the guest runs; `.logged`: switches to them and returns when every write is logged.
    /// - Throws: `.busy` when there are remains of another capture, or a job works on a disk; `.noSpace`, `.permission`, `.notFound`
    ///   (no nbdkit), `.unsupported`, what `execute` throws. The disks have been put back then; where even that fails, the
    ///   reason says so, and `cleanUp` is to be called.
    public func prepare() throws(EngineError) {
        precondition(state.withLock { $0.disks.isEmpty }, "a capture is prepared once")
        guard !disks.isEmpty else { return }
        try checkNobodyElse()
        let captured = try plan()
        state.withLock { $0.disks = captured }
        do throws(EngineError) {
            try makeEverything(captured)
        } catch {
            do throws(EngineError) {
                try retire(committed: false)
            } catch let second {
                var both = error
                both.reason += "; and the disks could not be put back: \(second)"
                throw both
            }
            throw error
        }
    }

    private func makeEverything(_ captured: [CapturedDisk]) throws(EngineError) {
        let note = note(captured)
        try block.leave(note, as: names.note)
        try files.createFolder(note.folder)
        for disk in captured { try block.makeOverlay(of: disk, files: files) }
        guard mode == .logged else { return }
        try switchToOverlays()
        try startLog(note)
    }

    private func checkNobodyElse() throws(EngineError) {
        for node in try block.graph().nodes where node.hasPrefix(CaptureNames.prefix) { throw Self.unfinished(node) }
        for object in try block.objects(CaptureNames.prefix) { throw Self.unfinished(object) }
    }

    private func plan() throws(EngineError) -> [CapturedDisk] {
        let nodes = try block.nodes()
        var captured: [CapturedDisk] = []
        for (index, disk) in disks.enumerated() {
            guard let node = nodes.first(where: { $0.name == disk.nodeName }) else {
                throw EngineError(.notFound, "the disk is not there any more", remedy: "List the disks again.", place: disk.name)
            }
            let wanted = parent.map { CaptureNames.bitmap(since: $0, of: disk) }
            let path = try overlayPath(of: disk, index)
            let free = try files.freeBytes(in: MachineFiles.folder(of: path))
            guard free >= options.minimumFreeBytes else {
                throw EngineError(
                    .noSpace, "\(free) bytes are free where the disk's overlay should go, \(options.minimumFreeBytes) are wanted",
                    remedy: "Make room, or name another folder for overlays.", place: MachineFiles.folder(of: path))
            }
            captured.append(
                CapturedDisk(
                    disk: disk, names: names.disk(index), overlayPath: path,
                    parentBitmap: wanted.flatMap { name in node.bitmaps.contains { $0.name == name && $0.isValid } ? name : nil },
                    newBitmap: options.keepsBitmap ? CaptureNames.bitmap(since: names.checkpoint, of: disk) : nil))
        }
        return captured
    }

    private func overlayPath(of disk: WritableDisk, _ index: Int) throws(EngineError) -> String {
        try overlayFolder(of: disk) + "/.\(names.all)-\(index).qcow2"
    }

    /// The overlays that this capture makes, as this process can use them: for `LostMachine`, should QEMU end meanwhile.
    public func overlays() throws(EngineError) -> [LostMachine.Overlay] {
        var overlays: [LostMachine.Overlay] = []
        for (index, disk) in disks.enumerated() {
            overlays.append(
                LostMachine.Overlay(
                    path: files.seen(try overlayPath(of: disk, index)),
                    image: try disk.imagePath.map { (path) throws(EngineError) in files.seen(try files.absolute(path)) },
                    imageFormat: disk.imageFormat))
        }
        return overlays
    }

    private func overlayFolder(of disk: WritableDisk) throws(EngineError) -> String {
        if let folder = options.overlayFolder { return try files.absolute(folder) }
        guard let path = disk.imagePath else {
            throw EngineError(
                .invalidInput, "the disk's image is no file that an overlay could be put beside",
                remedy: "Name a folder for overlays.", place: disk.name)
        }
        return MachineFiles.folder(of: try files.absolute(path))
    }

    /// Switches all disks to their overlays, for `.atStop` while the guest is stopped: one command, about a millisecond.
    /// - Throws: what `execute` throws; no disk has been switched then.
    public func switchAtStop() throws(EngineError) {
        precondition(mode == .atStop, "a logged capture has switched already")
        guard !disks.isEmpty else { return }
        try switchToOverlays()
    }

    private func switchToOverlays() throws(EngineError) {
        let captured = state.withLock { $0.disks }
        precondition(!captured.isEmpty, "prepare comes first")
        try block.switchToOverlays(captured)
        state.withLock { $0.isSwitched = true }
    }

    /// Puts the disks back as they were while the guest runs: logs, exports and servers end, overlays are committed back and deleted. Also
    /// ends a capture that failed. May be called again after an error.
    /// - Parameter committed: whether the checkpoint is durable. If not, what the next one needs to know of its parent is kept.
    /// - Throws: `.timeout` when a disk could not be committed back in time, `.ioFailed` when that failed: the guest goes on with the overlay, a
    ///   whole disk, and the error names its file and what to do; what `execute` throws.
    /// - Returns: how long the guest was stopped for it, in microseconds. 0 when it stood still anyway.
    @discardableResult public func retire(committed: Bool) throws(EngineError) -> Int64 {
        // The server first: whatever waits for it goes on then.
        let server = state.withLock { (state) in
            defer { state.logServer = nil }
            return state.logServer
        }
        server?.stop()
        if committed { try block.beginBitmaps(state.withLock { $0.isSwitched ? $0.disks : [] }) }
        var cleanUp = CleanUp(
            block: block, scope: names.all, files: files, commitTimeoutMilliseconds: options.commitTimeoutMilliseconds,
            keepsNewBitmaps: committed)
        do throws(EngineError) { try cleanUp.run() } catch {
            throw error.code == .exited ? endedMachine(error) : error
        }
        state.withLock { $0.isSwitched = false }
        if committed { try removeOlderBitmaps() }
        return cleanUp.stopMicroseconds
    }

    /// Removes what a machine that has ended does not need any more: all but overlays that have its last writes.
    private func endedMachine(_ error: EngineError) -> EngineError {
        let (captured, isSwitched) = state.withLock { ($0.disks, $0.isSwitched) }
        let note = note(captured)
        for socket in [note.serverSocket, note.logSocket] { files.remove(socket) }
        files.removeFolder(note.folder)
        let overlays = captured.map(\.overlayPath).filter { files.exists($0) }
        guard isSwitched, !overlays.isEmpty else {
            for overlay in overlays { files.remove(overlay) }
            return error
        }
        var error = error
        error.remedy = "Its last writes are in overlays: bring them into the images before it is started again: "
            + overlays.map { "`qemu-img commit \($0)`" }.joined(separator: ", ")
        return error
    }

    private func note(_ captured: [CapturedDisk]) -> CaptureNote {
        CaptureNote(disks: captured.map(\.noted), folder: options.scratchFolder + "/" + names.folder)
    }

    private func removeOlderBitmaps() throws(EngineError) {
        let nodes = try block.nodes()
        for captured in state.withLock({ $0.disks }) {
            let bitmaps = nodes.first { $0.name == captured.disk.nodeName }?.bitmaps ?? []
            for bitmap in bitmaps where bitmap.name.hasPrefix(CaptureNames.prefix) && bitmap.name != captured.newBitmap && !bitmap.isBusy {
                try block.removeBitmap(bitmap.name, from: captured.disk.nodeName)
            }
        }
    }

    /// Puts all disks back after captures that nobody will retire any more, whatever they had done; from any process, any number of times.
    /// Not while a capture of this machine is under way. What counts from their checkpoints is dropped, what counts from earlier ones stays.
    /// - Returns: what was done, a sentence each; empty when there was nothing to do.
    /// - Throws: as `retire`.
    public static func cleanUp(_ qmp: QMPClient, commitTimeoutMilliseconds: Int = 600_000) throws(EngineError) -> [String] {
        var cleanUp = CleanUp(
            block: BlockLayer(qmp), scope: CaptureNames.prefix, files: MachineFiles(process: qmp.processID),
            commitTimeoutMilliseconds: commitTimeoutMilliseconds, keepsNewBitmaps: false)
        try cleanUp.run()
        return cleanUp.report
    }
}
