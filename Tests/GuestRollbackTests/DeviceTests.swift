// Devices that fail: with every order of events, in the middle of a write, and for real.

import CheckpointCore
import FaultHarness
import Foundation
import GuestRollback
import MachineMemory
import Testing
import Threading
import Units

/// Runs a system tool; its output.
@discardableResult
func tool(_ path: String, _ arguments: String...) throws -> String {
    let process = Process()
    process.executableURL = URL(fileURLWithPath: path)
    process.arguments = arguments
    let output = Pipe()
    process.standardOutput = output
    process.standardError = output
    try process.run()
    let text = String(decoding: output.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
    process.waitUntilExit()
    guard process.terminationStatus == 0 else { throw TestFailure("\(path) \(arguments): \(text)") }
    return text.trimmingCharacters(in: .whitespacesAndNewlines)
}

/// A small file system in memory with a file in it that is a block device. Filled up, the device's writes fail; cut, its reads do.
final class FailingDisk {
    let folder = NSTemporaryDirectory() + "ckstore-" + UUID().uuidString
    let path: String

    /// - Parameter content: what the device holds. The file system has room for it and little more.
    init(_ content: [UInt8], isSparse: Bool = false) throws {
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: false, attributes: [.posixPermissions: 0o700])
        try tool("/usr/bin/mount", "-t", "tmpfs", "-o", "size=\(content.count + (1 << 20)),mode=0700", "ckstore-test", folder)
        let file = folder + "/disk"
        do {
            _ = FileManager.default.createFile(
                atPath: file, contents: isSparse ? Data() : Data(content), attributes: [.posixPermissions: 0o600])
            try tool("/usr/bin/truncate", "-s", "\(content.count)", file)
            path = try tool("/usr/sbin/losetup", "--show", "-f", file)
        } catch {
            try tool("/usr/bin/umount", folder)
            throw error
        }
    }

    /// Blocks that were never written can't be written any more.
    func fillUp() {
        let filler = unsafe open(folder + "/filler", O_CREAT | O_WRONLY | O_CLOEXEC, 0o600)
        let bytes = [UInt8](repeating: 1, count: 1 << 16)
        while unsafe write(filler, bytes, bytes.count) > 0 {}
        close(filler)
    }

    /// Bytes from here on can't be read any more.
    func cut(at length: Int) throws { try tool("/usr/bin/truncate", "-s", "\(length)", folder + "/disk") }

    deinit {
        _ = try? tool("/usr/sbin/losetup", "-d", path)
        _ = try? tool("/usr/bin/umount", "-l", folder)
        try? FileManager.default.removeItem(atPath: folder)
    }
}

let canUseLoopDevices = getuid() == 0 && FileManager.default.fileExists(atPath: "/dev/loop-control")

@Suite(.serialized) struct GuestDeviceTests {
    @Test func `property 5: a device that dies in mid-write or hangs, at every event boundary: the data is on the alternate, once`()
        async throws
    {
        try await onPlainThread {
            let write: [ToyOperation] = [.store(word: 0), .write(device: 0, sector: 0, sectors: 2, page: 0), .wait]
            let read: [ToyOperation] = [.read(device: 0, sector: 0, sectors: 1, slot: 0), .wait]
            for script in [write, read] {
                print("\(try exploreAll(script, EventBudget(checkpoints: 1, rollBacks: 1, failures: 1), mirrored: true)) orders of events")
            }
        }
    }

    @Test func `random programs on mirrors that break end like undisturbed runs`() async throws {
        let seed = Programme.seed()
        try await onPlainThread {
            try exploreRandomly(seed: seed, runs: Programme.runs(100), length: 50, EventBudget(checkpoints: 10, rollBacks: 6, failures: 1), mirrored: true)
        }
    }

    @Test func `without an alternate the guest is told that its device has failed`() async throws {
        try await onPlainThread {
            let disk = ManualDevice("disk", ManualDevice.content(sectors: 8, seed: 1))
            let memory = try GuestMemory("ram", byteLength: .kibibytes(64))
            let processor = IdleProcessor()
            let guest = try RollbackGuest("g", memory: memory, processors: [processor], devices: [try MirroredDevice(disk)])
            defer { guest.close() }
            try guest.checkpoint()
            try guest.read(1, sector: 0)
            try guest.read(2, sector: 1)
            disk.breakDown()
            disk.complete(1)
            try guest.read(3, sector: 2)
            let told = try processor.wait(for: 3)
            guard Set(told.map(\.request.rawValue)) == [1, 2, 3], told.allSatisfy({ $0.status != .done }), guest.failedDevices.count == 1
            else {
                throw TestFailure("\(told)")
            }
            // What it was doing when it failed harms nobody.
            disk.complete(0)
            guard processor.completions.withLock({ $0.count }) == 3 else { throw TestFailure("told twice") }
            // A rollback tells again what the checkpoint knows of.
            try guest.checkpoint()
            try guest.rollBack()
            guard guest.waitUntilSettled(milliseconds: 5000), processor.completions.withLock({ $0.count }) == 3 else {
                throw TestFailure("told again")
            }
        }
    }

    @Test func `property 4 for devices: what is read into a really read-only page is refused, and the guest is told which`() async throws {
        try await onPlainThread {
            let disk = ManualDevice("disk", ManualDevice.content(sectors: 8, seed: 1))
            let memory = try GuestMemory("ram", byteLength: .kibibytes(64))
            let processor = IdleProcessor()
            let guest = try RollbackGuest("g", memory: memory, processors: [processor], devices: [try MirroredDevice(disk)])
            defer { guest.close() }
            try guest.setReadOnly(PageIndex(8)..<PageIndex(9))
            try guest.checkpoint()
            try guest.read(1, sector: 0)
            disk.complete(0)
            let told = try processor.wait(for: 1)
            guard told == [RequestCompletion(request: RequestID(UInt64(1)), status: .readOnlyTarget(PageIndex(8)))],
                unsafe memory.bytes.allSatisfy({ $0 == 0 }), processor.violations.withLock({ $0.isEmpty })
            else { throw TestFailure("\(told)") }
        }
    }

    @Test func `too many kept buffers force a checkpoint, which frees them`() async throws {
        try await onPlainThread {
            let disk = ManualDevice("disk", ManualDevice.content(sectors: 64, seed: 1))
            let memory = try GuestMemory("ram", byteLength: .kibibytes(64))
            let guest = try RollbackGuest(
                "g", memory: memory, processors: [IdleProcessor()], devices: [try MirroredDevice(disk)],
                options: GuestOptions(keptLimit: .kibibytes(4)))
            defer { guest.close() }
            try guest.checkpoint()
            for sector in 0..<64 {
                try guest.read(UInt64(sector), sector: sector)
                disk.complete(0)
                guard guest.waitUntilSettled(milliseconds: 10_000) else { throw TestFailure("not told") }
                // Some requests more than there is room for: they go on when the stop begins, and this thread does not stop with the guest.
                guard guest.queueReport.keptBytes.rawValue <= 16 << 10 else { throw TestFailure("\(guest.queueReport.keptBytes) bytes are kept") }
            }
            guard guest.forcedCheckpoints >= 2 else { throw TestFailure("\(guest.forcedCheckpoints) forced checkpoints") }
            if let failure = guest.failure { throw failure }
        }
    }

    @Test func `a queue that is full of held requests asks for the checkpoint that lets them go`() async throws {
        try await onPlainThread {
            let disk = ManualDevice("disk", ManualDevice.content(sectors: 8, seed: 1))
            let memory = try GuestMemory("ram", byteLength: .kibibytes(64))
            let guest = try RollbackGuest(
                "g", memory: memory, processors: [IdleProcessor()], devices: [try MirroredDevice(disk)], options: GuestOptions(queueDepth: 2))
            defer { guest.close() }
            try guest.checkpoint()
            func write(_ id: UInt64) throws {
                try guest.submit(
                    GuestRequest(
                        id: RequestID(id), .write, device: DeviceIndex(UInt64(0)), offset: DeviceOffset(id * 512), byteLength: ByteCount(512),
                        address: GuestAddress(UInt64(0)), processor: ProcessorIndex(UInt64(0))))
            }
            for id in 0..<2 { try write(UInt64(id)) }
            guard failure({ try write(2) })?.code == .busy else { throw TestFailure("a third one") }
            let arrived = disk.state.waitFor(milliseconds: 10_000) { $0.waiting.count == 2 ? true : nil }
            guard arrived == true else { throw TestFailure("no checkpoint: \(guest.queueReport)") }
            for _ in 0..<2 { disk.complete(0) }
            guard guest.waitUntilSettled(milliseconds: 10_000) else { throw TestFailure("not told") }
            try write(2)
        }
    }

    @Test(.enabled(if: canUseLoopDevices, "needs root and loop devices"))
    func `property 5 for real: a block device that takes no more writes in the middle of them loses nothing`() async throws {
        try await onPlainThread {
            // The first device has never been written: with the file system full it has no block to put anything.
            let empty = [UInt8](repeating: 0, count: 8 << 20)
            let (failing, whole) = (try FailingDisk(empty, isSparse: true), try FailingDisk(empty))
            let devices = [try FileDevice("first", path: failing.path), try FileDevice("second", path: whole.path)]
            defer { for device in devices { device.close() } }
            let memory = try GuestMemory("ram", byteLength: .mebibytes(1))
            let processor = IdleProcessor()
            let guest = try RollbackGuest(
                "g", memory: memory, processors: [processor], devices: [try MirroredDevice(devices[0], alternate: devices[1])])
            defer { guest.close() }
            try guest.checkpoint()
            var expected: [Int: UInt8] = [:]
            for round in 0..<40 {
                if round == 20 { failing.fillUp() }
                for number in 0..<4 {
                    let sector = (round * 4 + number) * 64
                    try guest.put(UInt8(round + 1), at: number * pageSize)
                    try guest.submit(
                        GuestRequest(
                            id: RequestID(round * 4 + number), .write, device: DeviceIndex(UInt64(0)), offset: DeviceOffset(sector * 512),
                            byteLength: .kibibytes(4), address: GuestAddress(number * pageSize), processor: ProcessorIndex(UInt64(0))))
                    expected[sector] = UInt8(round + 1)
                }
                try guest.checkpoint()
                if round % 3 == 0 { try guest.rollBack() }
                let told = try processor.wait(for: (round + 1) * 4)
                guard told.allSatisfy({ $0.status == .done }) else { throw TestFailure("\(told.filter { $0.status != .done })") }
            }
            guard guest.failedDevices.map(\.place) == ["first"] else { throw TestFailure("failed: \(guest.failedDevices)") }
            print(guest.failedDevices[0])
            for (sector, byte) in expected {
                try guest.read(UInt64(1000 + sector), sector: sector)
                _ = try processor.wait(for: sector, id: UInt64(1000 + sector))
                guard unsafe memory.bytes[8 * pageSize] == byte else { throw TestFailure("sector \(sector) is lost") }
            }
        }
    }

    @Test(.enabled(if: canUseLoopDevices, "needs root and loop devices"))
    func `a block device that is cut is read no more, its mirror is`() async throws {
        try await onPlainThread {
            let content = ManualDevice.content(sectors: 256, seed: 3)
            let (failing, whole) = (try FailingDisk(content), try FailingDisk(content))
            let devices = [try FileDevice("first", path: failing.path), try FileDevice("second", path: whole.path)]
            defer { for device in devices { device.close() } }
            let memory = try GuestMemory("ram", byteLength: .mebibytes(1))
            let processor = IdleProcessor()
            let guest = try RollbackGuest(
                "g", memory: memory, processors: [processor], devices: [try MirroredDevice(devices[0], alternate: devices[1])])
            defer { guest.close() }
            try guest.checkpoint()
            for sector in 0..<200 {
                if sector == 90 { try failing.cut(at: 100 * 512 / 4096 * 4096) }
                try guest.read(UInt64(sector), sector: sector)
                guard try processor.wait(for: sector + 1, id: UInt64(sector)).last?.status == .done,
                    unsafe memory.bytes[8 * pageSize..<8 * pageSize + 512].elementsEqual(content[sector * 512..<(sector + 1) * 512])
                else { throw TestFailure("sector \(sector)") }
            }
            guard guest.failedDevices.map(\.place) == ["first"] else { throw TestFailure("failed: \(guest.failedDevices)") }
        }
    }

    @Test func `files are read, written and flushed; what is none is refused`() async throws {
        try await onPlainThread {
            let folder = NSTemporaryDirectory() + "ckstore-" + UUID().uuidString
            try FileManager.default.createDirectory(
                atPath: folder, withIntermediateDirectories: false, attributes: [.posixPermissions: 0o700])
            defer { try? FileManager.default.removeItem(atPath: folder) }
            let content = ManualDevice.content(sectors: 64, seed: 2)
            _ = FileManager.default.createFile(atPath: folder + "/disk", contents: Data(content), attributes: [.posixPermissions: 0o600])
            _ = FileManager.default.createFile(atPath: folder + "/odd", contents: Data(content[..<100]))
            let device = try FileDevice("disk", path: folder + "/disk", caching: .writeThrough)
            func wait(_ start: (@escaping GuestDevice.Completion) -> Void) throws {
                let result = Lock<Result<Void, EngineError>?>(nil)
                start { value in
                    result.withLock { $0 = value }
                    result.wake()
                }
                try result.waitFor { $0 }.get()
            }
            let buffer = TransferBuffer(byteLength: ByteCount(1024))
            try wait { device.read(at: DeviceOffset(512), into: buffer, completion: $0) }
            guard unsafe buffer.bytes.elementsEqual(content[512..<1536]) else { throw TestFailure("read something else") }
            try wait { device.write(RequestID(UInt64(1)), at: DeviceOffset(UInt64(0)), buffer, completion: $0) }
            try wait { device.flush(completion: $0) }
            guard try Data(contentsOf: URL(fileURLWithPath: folder + "/disk")).prefix(1024).elementsEqual(content[512..<1536]) else {
                throw TestFailure("wrote something else")
            }
            try tool("/usr/bin/truncate", "-s", "512", folder + "/disk")
            guard failure({ try wait { device.read(at: DeviceOffset(512), into: buffer, completion: $0) } })?.code == .ioFailed else {
                throw TestFailure("read beyond the end")
            }
            device.close()
            guard failure({ try wait { device.flush(completion: $0) } })?.code == .ioFailed else { throw TestFailure("closed and alive") }
            for (path, code) in [("/none", EngineError.Code.notFound), ("/odd", .invalidInput)] {
                guard failure({ _ = try FileDevice("x", path: folder + path, caching: .writeThrough) })?.code == code else {
                    throw TestFailure(path)
                }
            }
            guard failure({ _ = try FileDevice("x", path: "/dev/zero", caching: .writeThrough) })?.code == .invalidInput else {
                throw TestFailure("/dev/zero")
            }
        }
    }
}

/// The engine's error that `body` throws, if it does.
func failure(_ body: () throws -> Void) -> EngineError? {
    do { try body() } catch { return error as? EngineError }
    return nil
}

extension RollbackGuest {
    /// Reads one sector into page 8.
    func read(_ id: UInt64, sector: Int) throws {
        try submit(
            GuestRequest(
                id: RequestID(id), .read, device: DeviceIndex(UInt64(0)), offset: DeviceOffset(sector * 512), byteLength: ByteCount(512),
                address: GuestAddress(8 * pageSize), processor: ProcessorIndex(UInt64(0))))
    }
}

extension IdleProcessor {
    /// Waits for completions: so many different ones, or that of one request. A rollback may repeat some.
    @discardableResult
    func wait(for count: Int, id: UInt64? = nil) throws -> [RequestCompletion] {
        let told = completions.waitFor(milliseconds: 10_000) { told -> [RequestCompletion]? in
            let isThere = id.map { id in told.contains { $0.request.rawValue == id } } ?? (Set(told.map(\.request)).count >= count)
            return isThere ? told : nil
        }
        guard let told else {
            throw TestFailure("not told of \(id.map { "request \($0)" } ?? "\(count) requests"): \(completions.withLock { $0 })")
        }
        return told
    }
}
