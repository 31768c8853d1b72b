// Undoing a capture, from whatever it has come to.
//
// Invariants:
// - Every step looks at QEMU's state and the note there, and at nothing else: a capture that was killed between any two
//   commands is undone as one that has ended well.
// - Every step can be repeated; the note goes last.
// - An overlay is deleted only when it is committed, or nobody was ever switched to it: see CommitBack.

import CheckpointCore
import QMP

/// One run over the remains of captures.
struct CleanUp {
    let block: BlockLayer
    /// What the names start with of the things to be undone.
    let scope: String
    let files: MachineFiles
    let commitTimeoutMilliseconds: Int
    /// Whether bitmaps that count from the captures' checkpoints stay.
    let keepsNewBitmaps: Bool
    private(set) var report: [String] = []
    /// How long the guest was stopped for it.
    private(set) var stopMicroseconds: Int64 = 0
    /// How much may be left to copy when the guest is stopped for the end of a commit.
    private static let stoppedBytes: Int64 = 1 << 20
    /// Longer than this no guest stands still for the sake of its disks: it goes on with the overlay then.
    private static let stopLimitMilliseconds = 10_000

    init(block: BlockLayer, scope: String, files: MachineFiles, commitTimeoutMilliseconds: Int, keepsNewBitmaps: Bool) {
        self.block = block
        self.scope = scope
        self.files = files
        self.commitTimeoutMilliseconds = commitTimeoutMilliseconds
        self.keepsNewBitmaps = keepsNewBitmaps
    }

    mutating func run() throws(EngineError) {
        for (id, note) in try block.notes(scope) {
            try endExports(note)
            try endLogs(note)
            try endCreation(note)
            let stopped = try guestStoppedByOverlays(note)
            try endStop(id)
            try commit(note, id)
            if stopped { try continueGuest() }
            try delete(note)
            if !keepsNewBitmaps { try removeBitmaps(note) }
            for socket in [note.serverSocket, note.logSocket] { files.remove(socket) }
            files.removeFolder(note.folder)
            try block.qmp.execute("object-del", ["id": .string(id)])
        }
    }

    private mutating func endExports(_ note: CaptureNote) throws(EngineError) {
        for export in try block.exports(scope) where note.disks.contains(where: { $0.overlayNode == export }) {
            try block.deleteExport(export)
            report.append("Ended the export \(export).")
        }
        // The socket tells whose server it is: the note names one that nobody else has.
        if files.isListening(at: note.serverSocket) {
            try block.qmp.execute("nbd-server-stop")
            report.append("Stopped QEMU's NBD server.")
        }
    }

    private mutating func endLogs(_ note: CaptureNote) throws(EngineError) {
        let (jobs, nodes) = (try block.jobs(scope), try block.graph().nodes)
        for names in note.disks.map(\.names) {
            if jobs.contains(where: { $0.id == names.logJob }) {
                try block.cancel(names.logJob, breaking: names.log)
                report.append("Ended the log of writes \(names.logJob).")
            }
            if nodes.contains(names.log) { try block.deleteNode(names.log) }
        }
    }

    private func endCreation(_ note: CaptureNote) throws(EngineError) {
        let jobs = try block.jobs(scope)
        for disk in note.disks where jobs.contains(where: { $0.id == disk.names.createJob }) {
            guard try block.wait(for: disk.names.createJob, statuses: [], milliseconds: 30_000) != nil else {
                throw EngineError(.timeout, "QEMU does not finish an empty overlay", remedy: "Clean up again.", place: disk.overlayPath)
            }
            try block.dismiss(disk.names.createJob)
        }
    }

    private mutating func commit(_ note: CaptureNote, _ id: String) throws(EngineError) {
        let deadline = Instant.now + commitTimeoutMilliseconds
        var commits: [CommitBack] = []
        for disk in note.disks {
            let commit = CommitBack(block: block, disk: disk, deadline: deadline)
            guard try !commit.isDone() else { continue }
            try commit.start()
            commits.append(commit)
        }
        do throws(EngineError) { try move(&commits, id) } catch {
            // What broke the connection breaks this too, and says no more.
            for commit in commits { try? commit.liftLimit() }
            throw error
        }
        for commit in commits { report.append("Committed the overlay \(commit.disk.overlayPath) back.") }
    }

    /// Brings the guest from its overlays to its images, and deletes the overlays before it can write again: one that is left behind
    /// has nothing older than its image, whenever the machine ends.
    private mutating func move(_ commits: inout [CommitBack], _ id: String) throws(EngineError) {
        guard !commits.isEmpty else { return }
        var isNear = false
        while !isNear {
            for index in commits.indices { try commits[index].awaitReady(rest: Self.stoppedBytes) }
            isNear = true
            for commit in commits where try commit.remainingBytes() > Self.stoppedBytes { isNear = false }
        }
        var deleted: [String] = []
        let files = files
        var moving = commits
        defer { commits = moving }
        try whileStopped(id) { () throws(EngineError) in
            for index in moving.indices {
                moving[index].deadline = min(moving[index].deadline, Instant.now + Self.stopLimitMilliseconds)
                try moving[index].complete()
            }
            for index in moving.indices {
                try moving[index].finish()
                if files.remove(moving[index].disk.overlayPath) { deleted.append(moving[index].disk.overlayPath) }
            }
        }
        report += deleted.map { "Deleted \($0)." }
    }

    /// Runs `body` with the guest stopped, and lets it go on if it ran. A mark in QEMU tells others who stopped it.
    private mutating func whileStopped(_ id: String, _ body: () throws(EngineError) -> Void) throws(EngineError) {
        guard try block.qmp.execute("query-status")["running"]?.bool == true else { return try body() }
        let seen = block.qmp.lastEventSequence
        try block.mark(CaptureNames.stopMark(of: id))
        try block.qmp.execute("stop")
        var failure: EngineError?
        do throws(EngineError) { try body() } catch { failure = error }
        try block.qmp.execute("cont")
        try block.unmark(CaptureNames.stopMark(of: id))
        let events = block.qmp.events(after: seen)
        if let stop = events.first(where: { $0.name == "STOP" }), let resume = events.last(where: { $0.name == "RESUME" }) {
            stopMicroseconds += resume.timestampMicroseconds - stop.timestampMicroseconds
        }
        if let failure { throw failure }
    }

    /// Lets a guest go on that stands still because who stopped it for a moment was killed.
    private mutating func endStop(_ id: String) throws(EngineError) {
        let mark = CaptureNames.stopMark(of: id)
        guard try block.objects(mark).contains(mark) else { return }
        if try block.qmp.execute("query-status")["status"]?.string == "paused" {
            try block.qmp.execute("cont")
            report.append("Let the guest go on, which had been stopped for a moment.")
        }
        try block.unmark(mark)
    }

    private mutating func delete(_ note: CaptureNote) throws(EngineError) {
        let nodes = try block.graph().nodes
        let objects = try block.objects(scope)
        for disk in note.disks {
            let names = disk.names
            for node in [names.overlay, names.file] where nodes.contains(node) { try block.deleteNode(node) }
            if objects.contains(names.limits) { try block.qmp.execute("object-del", ["id": .string(names.limits)]) }
            removeFile(disk)
        }
    }

    /// Removes an overlay's file. As soon as the guest is off it: were the machine to end now, `qemu-img commit` would bring back old content.
    private mutating func removeFile(_ disk: CaptureNote.Disk) {
        if files.remove(disk.overlayPath) { report.append("Deleted \(disk.overlayPath).") }
    }

    private mutating func removeBitmaps(_ note: CaptureNote) throws(EngineError) {
        let nodes = try block.nodes()
        for disk in note.disks {
            guard let name = disk.bitmap, let node = nodes.first(where: { $0.name == disk.baseNode }),
                node.bitmaps.contains(where: { $0.name == name })
            else { continue }
            try block.removeBitmap(name, from: disk.baseNode)
            report.append("Removed the bitmap \(name) from \(disk.baseNode).")
        }
    }

    /// Whether an overlay of the note ran out of room or failed, so that QEMU has stopped the guest.
    private func guestStoppedByOverlays(_ note: CaptureNote) throws(EngineError) -> Bool {
        let overlays = Set(note.disks.map(\.overlayNode))
        let failed = try block.drives().contains { drive in
            overlays.contains(drive["inserted"]?["node-name"]?.string ?? "") && drive["io-status"]?.string ?? "ok" != "ok"
        }
        guard failed else { return false }
        return try block.qmp.execute("query-status")["status"]?.string == "io-error"
    }

    private mutating func continueGuest() throws(EngineError) {
        try block.qmp.execute("cont")
        report.append("Let the guest go on, which QEMU had stopped when an overlay had no room.")
    }
}
