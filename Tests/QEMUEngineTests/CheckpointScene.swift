// A guest at work and a store for its checkpoints: what tests of failing checkpoints begin with, and what must hold after each.

import CheckpointCore
import CheckpointStore
import Foundation
import Media
import QEMUEngine
import QEMUTesting
import QMP
import Threading
import Units

/// One guest with memory that is being written and, where it has disks, writers on them.
struct CheckpointScene {
    let guest: Guest
    let store: CommandStore

    init(_ options: GuestOptions, storeSize: ByteCount = .mebibytes(1024), isBusy: Bool = true) throws {
        guest = try Guest.start(options)
        store = try CommandStore(size: storeSize)
        try guest.fill(mebibytes: 24)
        if isBusy {
            try guest.dirty(pagesPerSecond: 5000, mebibytes: 16)
            if !options.disks.isEmpty { try guest.writeDisks(threads: 2) }
        }
    }

    /// A checkpointer in this process, with the built command as its guard.
    func checkpointer(
        _ name: String, parent: String? = nil, engine: CaptureEngine, _ data: StoreBackedDataStore,
        progress: @escaping @Sendable (CheckpointProgress) -> Void = { _ in }
    ) -> QEMUCheckpointer {
        let request = CheckpointRequest(
            name: name, parent: parent, engine: engine, monitorPath: guest.machine.monitorPath,
            guardCommand: [RunningTool.path, "vm", "guard"], parallelism: 2)
        return QEMUCheckpointer(request, store: data, progress: progress)
    }

    /// The store, opened here.
    func open() throws -> CheckpointStore { try CheckpointStore.open(try openMedium(Locator(store.path), access: .readWrite)) }

    /// The names of the store's checkpoints, which must all be sound.
    func checkpoints() throws -> [String] {
        try store.run("verify", store.path)
        let store = try open()
        defer { store.close() }
        return try store.snapshot().names()
    }

    /// Waits until whoever brings the guest back has done so; then holds what must hold after every checkpoint, come about or not: the guest
    /// runs, its memory and its records are right, its disk chain is as it was, and nothing of ours is left in QEMU or beside the images.
    func requireUnharmed(_ where: String) throws {
        let monitor = try guest.monitor()
        defer { monitor.close() }
        let end = Monotonic.now() + 60_000_000_000
        var left = try remains(monitor)
        while !left.isEmpty, Monotonic.now() < end {
            usleep(50_000)
            left = try remains(monitor)
        }
        try require(left.isEmpty, "\(`where`): still there after a minute: \(left.joined(separator: "; "))")
        let before = try guest.status()
        let after = try guest.check()
        try require(after.ok, "\(`where`): the guest says \(after.errors)")
        try require(after.ticks > before.ticks, "\(`where`): the guest stands still")
        if !after.disks.isEmpty, before.disks.allSatisfy({ $0.threads > 0 }) {
            try require(
                zip(before.disks, after.disks).allSatisfy { $0.issued < $1.issued }, "\(`where`): the guest's disks stand still")
        }
    }

    /// What a checkpoint has left behind in the machine.
    private func remains(_ monitor: QMPClient) throws -> [String] {
        var left: [String] = []
        let status = try monitor.execute("query-status")["status"]?.string ?? ""
        if status != "running" { left.append("status \(status)") }
        for node in try monitor.execute("query-named-block-nodes", ["flat": .bool(true)]).array ?? [] {
            if let name = node["node-name"]?.string, name.hasPrefix("ckstore-") { left.append("node \(name)") }
        }
        for job in try monitor.execute("query-block-jobs").array ?? [] { left.append("job \(job["device"]?.string ?? "?")") }
        for export in try monitor.execute("query-block-exports").array ?? [] { left.append("export \(export["id"]?.string ?? "?")") }
        for object in try monitor.execute("qom-list", ["path": "/objects"]).array ?? [] {
            if let name = object["name"]?.string, name.hasPrefix("ckstore-") { left.append("object \(name)") }
        }
        for capability in try monitor.execute("query-migrate-capabilities").array ?? [] where capability["state"]?.bool == true {
            left.append("capability \(capability["capability"]?.string ?? "?")")
        }
        for disk in guest.machine.disks {
            let folder = (disk as NSString).deletingLastPathComponent
            left += try FileManager.default.contentsOfDirectory(atPath: folder).filter { $0.contains("ckstore-") }.map { "file \($0)" }
        }
        for descriptor in try FileManager.default.contentsOfDirectory(atPath: "/proc/\(guest.process)/fd") {
            let link = try? FileManager.default.destinationOfSymbolicLink(atPath: "/proc/\(guest.process)/fd/\(descriptor)")
            if let link, link.contains("userfaultfd") || link.contains("ckstore-stream") { left.append("descriptor \(link)") }
        }
        return left
    }
}
