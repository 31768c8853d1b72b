// Real images, real threads: guests that work without a pause while one checkpoint after the other is taken and committed.

import CheckpointCore
import FaultHarness
import Foundation
import MachineMemory
import Testing
import Threading
import Units
import VirtualDisks

@Suite(.serialized) struct RealDiskTests {
    private static let sectorCount = 16384
    private static let driverCount = 3

    private func useDisk(_ path: String, folder: TemporaryFolder, checkpoints: Int) throws {
        let seed = UInt64.random(in: 0...UInt64.max)
        print("seed \(seed)")
        let workers = try WorkerThreads(count: 4)
        defer { workers.close() }
        let backend = try FileBackend(path, workers: workers)
        let disk = try VirtualDisk("disk", parent: backend, workers: workers)
        let memory = try GuestMemory("ram", byteLength: .kibibytes(64), sharing: .shared)
        let drivers = (0..<Self.driverCount).map { GuestDriver(disk, memory, number: $0, of: Self.driverCount, seed: seed) }
        let gate = Gate()
        let threads = drivers.map { driver in PlainThread { driver.run(gate) }! }
        let outcome = Result { try takeCheckpoints(checkpoints, disk, drivers, gate, folder) }
        gate.open()
        gate.end()
        for thread in threads { thread.join() }
        disk.drain()
        try outcome.get()
        if let failure = drivers.lazy.compactMap(\.failure).first { throw TestFailure(failure) }
        var expected = [UInt8](repeating: 0, count: Self.sectorCount * sectorSize)
        for driver in drivers { driver.fill(&expected) }
        let image = try FileHandle(forReadingFrom: URL(filePath: path))
        try require(try image.read(upToCount: expected.count).map { [UInt8]($0) } == expected, "the image at the end is wrong")
        print("\(drivers.map(\.doneCount).reduce(0, +)) requests")
    }

    private func takeCheckpoints(
        _ count: Int, _ disk: VirtualDisk, _ drivers: [GuestDriver], _ gate: Gate, _ folder: TemporaryFolder
    ) throws {
        var rounds = 0
        var longestHold: UInt64 = 0
        var saved = [UInt8](repeating: 0, count: Self.sectorCount * sectorSize)
        for number in 0..<count {
            let checkpoint = try disk.beginCheckpoint(overlay: CowFile.create(folder.path("overlay-\(number)"), geometry: disk.geometry))
            gate.close()
            checkpoint.switchOver(memory: UntouchedMemory())
            var expected = saved
            for driver in drivers { driver.fill(&expected) }
            let waits = checkpoint.mustWaitBeforeResuming
            if waits { checkpoint.waitForPending() }
            gate.open()
            checkpoint.memoryIsResumed(waited: waits)
            try checkpoint.waitForPendingReads()
            checkpoint.memoryIsSaved()
            checkpoint.waitForPendingWrites()
            try save(checkpoint.parentReader, into: &saved, isFirst: number == 0)
            try require(saved == expected, "checkpoint \(number) has something else")
            usleep(20_000)
            var helpers = 0
            // Some are given up, which looks the same to the guests; what has changed is counted on.
            let isGivenUp = number % 5 == 3
            let makeHelper: DiskCheckpoint.HelperMaker = { (parent) throws(EngineError) -> CowFile in
                helpers += 1
                return try CowFile.create(folder.path("helper-\(number)-\(helpers)"), geometry: disk.geometry, parent: parent)
            }
            let limits = CommitLimits(heldGroups: 8, rounds: 3)
            let report =
                isGivenUp
                ? try checkpoint.abort(limits: limits, makeHelper: makeHelper) : try checkpoint.commit(limits: limits, makeHelper: makeHelper)
            try require(report.unremoved.isEmpty, "\(report.unremoved)")
            rounds += report.rounds
            longestHold = max(longestHold, report.heldMicroseconds)
        }
        let left = try FileManager.default.contentsOfDirectory(atPath: folder.path(".")).filter { $0 != "image" }
        try require(left.isEmpty, "files are left: \(left)")
        print("\(count) checkpoints, \(rounds) rounds, requests held for at most \(longestHold) us")
    }

    /// What an incremental checkpoint reads.
    private func save(_ reader: ParentReader, into saved: inout [UInt8], isFirst: Bool) throws {
        try require((reader.changedSince == nil) == isFirst, "the first checkpoint alone is full")
        let groups = reader.changedSince ?? [BlockGroup(UInt64(0))..<BlockGroup(reader.geometry.groupCount)]
        for range in groups {
            let start = reader.geometry.bytes(of: range.lowerBound).lowerBound
            let end = reader.geometry.bytes(of: BlockGroup(range.upperBound.rawValue - 1)).upperBound
            try unsafe saved.withUnsafeMutableBytes { all in
                unsafe try reader.read(start, into: UnsafeMutableRawBufferPointer(rebasing: all[start.int..<end.int]))
            }
        }
    }

    @Test func `checkpoints of a file in use, one after the other, each as the disk was at its instant`() async throws {
        try await onPlainThread {
            let folder = try TemporaryFolder()
            try Data(count: Self.sectorCount * sectorSize).write(to: URL(filePath: folder.path("image")))
            try useDisk(folder.path("image"), folder: folder, checkpoints: 15)
        }
    }

    @Test func `checkpoints of a block device in use`() async throws {
        try await onPlainThread {
            let folder = try TemporaryFolder()
            try Data(count: Self.sectorCount * sectorSize).write(to: URL(filePath: folder.path("image")))
            let device = try LoopDevice(folder.path("image"))
            defer { device.detach() }
            try useDisk(device.path, folder: folder, checkpoints: 4)
        }
    }

    @Test func `images that are none are refused`() throws {
        let folder = try TemporaryFolder()
        let workers = ManualWorkers(isImmediate: true)
        try Data(count: 700).write(to: URL(filePath: folder.path("odd")))
        #expect(try engineError { _ = try FileBackend(folder.path("odd"), workers: workers) }.code == .invalidInput)
        #expect(try engineError { _ = try FileBackend(folder.path("none"), workers: workers) }.code == .notFound)
        #expect(try engineError { _ = try FileBackend("/dev/null", workers: workers) }.code == .invalidInput)
    }

    @Test func `an image that was truncated is an error of the request`() throws {
        let folder = try TemporaryFolder()
        try Data(count: 8192).write(to: URL(filePath: folder.path("image")))
        let disk = try VirtualDisk(
            "disk", parent: try FileBackend(folder.path("image"), workers: ManualWorkers(isImmediate: true)),
            workers: ManualWorkers(isImmediate: true))
        unsafe truncate(folder.path("image"), 4096)
        let memory = try GuestMemory("ram", byteLength: .kibibytes(8))
        let outcome = Lock<Result<Void, EngineError>?>(nil)
        let buffer = GuestBuffer(memory, offset: .zero, byteCount: .kibibytes(8))
        disk.submit(DiskRequest(.read, at: .zero, buffer) { result in outcome.withLock { $0 = result } })
        guard case .failure(let error) = outcome.withLock({ $0 }) else { throw TestFailure("it is read") }
        #expect(error.code == .ioFailed && error.place.hasSuffix("/image"))
    }
}

/// A block device over a file.
private struct LoopDevice {
    let path: String

    init(_ file: String) throws {
        let output = try Self.losetup(["--find", "--show", file])
        path = output.trimmingCharacters(in: .whitespacesAndNewlines)
    }

    func detach() { _ = try? Self.losetup(["--detach", path]) }

    private static func losetup(_ arguments: [String]) throws -> String {
        let process = Process()
        process.executableURL = URL(filePath: "/usr/sbin/losetup")
        process.arguments = arguments
        let output = Pipe()
        process.standardOutput = output
        try process.run()
        let text = String(decoding: output.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
        process.waitUntilExit()
        try require(process.terminationStatus == 0, "losetup \(arguments) fails: this test needs root")
        return text
    }
}
