// A QEMU without a guest to speak of: its monitor's own writes to the devices' disks take the guest's part.
//
// Invariants:
// - The model has every write: what the disk must read as. It is exact whenever the writer's lock is held.
// - Ends its QEMU and removes its files however the test ends.

import CheckpointCore
import DiskCapture
import Foundation
import QMP
import Threading
import Units

/// A disk to begin with.
struct TinyDisk {
    /// The device's id.
    var name: String
    var format = "qcow2"
    var byteLength = 24 << 20
    /// True: a drive of the old kind, whose nodes QEMU names itself; false: `-blockdev`.
    var isDrive = true
}

/// A machine with disks and somebody who writes to them.
final class TinyMachine: @unchecked Sendable {
    let folder: String
    let disks: [TinyDisk]
    let qmp: QMPClient
    private let writes: QMPClient
    private let process: ChildProcess
    /// What each disk must read as.
    let model: Lock<[String: [UInt8]]>
    private let isWriting = Lock(false)
    private var writer: PlainThread?
    private let generator: Lock<SplitMix>

    init(_ disks: [TinyDisk], seed: UInt64, folder base: String? = nil) throws {
        self.disks = disks
        print("seed \(seed)")
        generator = Lock(SplitMix(state: seed))
        folder = (base ?? "/tmp") + "/ckdisks-\(UInt32.random(in: 0...UInt32.max))"
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
        var arguments = "-machine pc -nodefaults -display none -m 32 -accel tcg".split(separator: " ").map(String.init)
        for socket in ["qmp", "writes", "rescue", "cut"] { arguments += ["-qmp", "unix:\(folder)/\(socket),server=on,wait=off"] }
        for disk in disks {
            let path = "\(folder)/\(disk.name).img"
            try Self.run("qemu-img", ["create", "-q", "-f", disk.format, path, "\(disk.byteLength)"])
            if disk.isDrive {
                arguments += ["-drive", "if=none,id=drive-\(disk.name),file=\(path),format=\(disk.format)"]
                arguments += ["-device", "virtio-blk-pci,drive=drive-\(disk.name),id=\(disk.name)"]
            } else {
                arguments += ["-blockdev", "driver=file,filename=\(path),node-name=\(disk.name)-file"]
                arguments += ["-blockdev", "driver=\(disk.format),file=\(disk.name)-file,node-name=\(disk.name)-node"]
                arguments += ["-device", "ide-hd,drive=\(disk.name)-node,id=\(disk.name)"]
            }
        }
        // The monitor tells of writes on the standard output.
        let nowhere = unsafe open("/dev/null", O_WRONLY | O_CLOEXEC)
        defer { close(nowhere) }
        process = try ChildProcess.spawn(
            executable: "qemu-system-x86_64", arguments: arguments, inheriting: [(nowhere, 1)], diesWithParent: true)
        model = Lock(Dictionary(uniqueKeysWithValues: disks.map { ($0.name, [UInt8](repeating: 0, count: $0.byteLength)) }))
        while !FileManager.default.fileExists(atPath: folder + "/cut") { usleep(5000) }
        qmp = try QMPClient.connect(path: folder + "/qmp")
        writes = try QMPClient.connect(path: folder + "/writes")
    }

    deinit {
        isWriting.withLock { $0 = false }
        try? process.kill()
        _ = try? process.wait(timeoutMilliseconds: nil)
        try? FileManager.default.removeItem(atPath: folder)
    }

    static func run(_ tool: String, _ arguments: [String]) throws {
        let process = Process()
        process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
        process.arguments = [tool] + arguments
        try process.run()
        process.waitUntilExit()
        guard process.terminationStatus == 0 else { throw EngineError(.ioFailed, "\(tool) failed") }
    }

    /// Everything of a capture goes into the machine's folder, where remains are seen.
    var options: DiskCapture.Options { DiskCapture.Options(scratchFolder: folder) }

    /// A connection that stands for another process.
    func rescue() throws -> QMPClient { try QMPClient.connect(path: folder + "/rescue") }

    /// Writes bytes of one value, as the guest would, or zeros.
    func write(_ disk: String, _ value: UInt8, at offset: Int, count: Int) throws(EngineError) {
        try model.withLock { (model) throws(EngineError) in try write(disk, value, at: offset, count: count, &model) }
    }

    private func write(
        _ disk: String, _ value: UInt8, at offset: Int, count: Int, _ model: inout [String: [UInt8]]
    ) throws(EngineError) {
        let command = value == 0 ? "write -z \(offset) \(count)" : "write -P \(value) \(offset) \(count)"
        let isVirtio = disks.first { $0.name == disk }?.isDrive == true
        let device = isVirtio ? "drive-\(disk)" : "-d \(disk)"
        let answer = try writes.execute(
            "human-monitor-command", ["command-line": .string("qemu-io \(device) \"\(command)\"")], timeoutMilliseconds: 120_000)
        guard answer.string == "" else { throw EngineError(.refused, answer.string ?? "no text") }
        model[disk]!.replaceSubrange(offset..<offset + count, with: repeatElement(value, count: count))
    }

    /// One write at a random place, of 512 bytes to 96 KiB.
    func writeSomething(within bytes: Int? = nil) throws(EngineError) {
        try model.withLock { (model) throws(EngineError) in
            let (disk, offset, count, value) = generator.withLock { generator in
                let disk = disks[Int.random(in: 0..<disks.count, using: &generator)]
                let sectors = Int.random(in: 1...192, using: &generator)
                let room = min(disk.byteLength, bytes ?? disk.byteLength) / 512
                let start = Int.random(in: 0...room - min(sectors, room), using: &generator)
                return (disk, start * 512, min(sectors, room) * 512, UInt8.random(in: 0...255, using: &generator))
            }
            try write(disk.name, value, at: offset, count: count, &model)
        }
    }

    /// Writes on a thread until `stopWriting`.
    func startWriting() {
        isWriting.withLock { $0 = true }
        let isWriting = isWriting
        writer = PlainThread { [weak self] in
            while isWriting.withLock({ $0 }) {
                do { try self?.writeSomething() } catch { break }
                // Others get the lock too.
                usleep(200)
            }
        }
    }

    func stopWriting() {
        isWriting.withLock { $0 = false }
        writer?.join()
        writer = nil
    }

    /// Stops the machine with nobody writing, does something, lets it go on: the model at that instant, and when it went on.
    func atStop(_ body: () throws(EngineError) -> Void = {}) throws(EngineError) -> (model: [String: [UInt8]], resumed: Int64) {
        try model.withLock { (model) throws(EngineError) in
            try qmp.execute("stop")
            try body()
            let seen = qmp.lastEventSequence
            try qmp.execute("cont")
            let event = try qmp.waitForEvent(after: seen, timeoutMilliseconds: 5000) { $0.name == "RESUME" }
            return (model, event.timestampMicroseconds)
        }
    }

    /// The disks' chains, without what differs in size only.
    func chain() throws(EngineError) -> [String] {
        let nodes = try qmp.execute("query-named-block-nodes", ["flat": true]).array ?? []
        let drives = try qmp.execute("query-block").array ?? []
        let objects = try qmp.execute("qom-list", ["path": "/objects"]).array ?? []
        return nodes.map { "\($0["node-name"]?.string ?? "") \($0["ro"]?.bool ?? false) \($0["file"]?.string ?? "")" }.sorted()
            + drives.map { "\($0["qdev"]?.string ?? "") \($0["inserted"]?["node-name"]?.string ?? "")" }
            + objects.map { $0["name"]?.string ?? "" }.sorted()
            + (try qmp.execute("query-jobs").array ?? []).map { "\($0)" }
            + (try qmp.execute("query-block-exports").array ?? []).map { "\($0)" }
    }

    /// Files of captures that are there.
    func remains() -> [String] {
        let overlays = (try? FileManager.default.contentsOfDirectory(atPath: folder)) ?? []
        return overlays.filter { $0.hasPrefix(".ckstore") || $0.hasPrefix("ckstore") }
    }

    /// Ends the machine and reads a disk's image.
    func finalContent(_ disk: String) throws -> [UInt8] {
        try process.kill(signal: SIGTERM)
        try process.wait(timeoutMilliseconds: nil)
        let path = "\(folder)/\(disk)"
        let format = disks.first { $0.name == disk }!.format
        try Self.run("qemu-img", ["convert", "-f", format, "-O", "raw", path + ".img", path + ".out"])
        return [UInt8](try Data(contentsOf: URL(fileURLWithPath: path + ".out")))
    }
}

/// A small random generator with a seed.
struct SplitMix: RandomNumberGenerator {
    var state: UInt64
    mutating func next() -> UInt64 {
        state &+= 0x9e37_79b9_7f4a_7c15
        var z = state
        z = (z ^ z >> 30) &* 0xbf58_476d_1ce4_e5b9
        z = (z ^ z >> 27) &* 0x94d0_49bb_1331_11eb
        return z ^ z >> 31
    }
}
