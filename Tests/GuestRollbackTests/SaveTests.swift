// Guests whose checkpoints are in a store, and that go on from there.

import CheckpointCore
import CheckpointStore
import FaultHarness
import Foundation
import GuestRollback
import MachineMemory
import Media
import StoreFormat
import Testing
import Threading
import Units

/// A store in a file that goes when the test is over.
final class ScratchStore {
    private let folder: String
    let store: CheckpointStore
    var data: StoreBackedDataStore { StoreBackedDataStore(store) }

    init() throws {
        // In memory: these tests are not about what a disk keeps.
        folder = "/dev/shm/ckstore-" + UUID().uuidString
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: false, attributes: [.posixPermissions: 0o700])
        store = try CheckpointStore.create(on: try createMedium(try Locator(folder + "/store.ck"), size: .mebibytes(64), force: false))
    }

    deinit {
        store.close()
        try? FileManager.default.removeItem(atPath: folder)
    }
}

/// A data store that fails when a checkpoint is committed.
struct FailingStore: CheckpointDataStore {
    let under: StoreBackedDataStore
    struct Sink: CheckpointSink {
        let under: any CheckpointSink
        var id: CheckpointID { under.id }
        var parentID: CheckpointID? { under.parentID }
        func addRegion(_ name: String, kind: RegionKind, byteLength: ByteCount) throws(EngineError) -> any RegionSink {
            try under.addRegion(name, kind: kind, byteLength: byteLength)
        }
        func putBlob(_ name: String, _ bytes: [UInt8]) throws(EngineError) { try under.putBlob(name, bytes) }
        func setLabel(_ key: String, _ value: String) throws(EngineError) { try under.setLabel(key, value) }
        func cancel() { under.cancel() }
        func commit() throws(EngineError) -> CheckpointReceipt { throw EngineError(.noSpace, "full") }
        func abort() { under.abort() }
    }
    func begin(_ name: String, parent: String?) throws(EngineError) -> any CheckpointSink {
        Sink(under: try under.begin(name, parent: parent))
    }
    func source(_ name: String) throws(EngineError) -> any CheckpointSource { try under.source(name) }
    func latest() throws(EngineError) -> String? { try under.latest() }
}

/// A checkpoint whose blob the test has changed.
struct ChangedSource: CheckpointSource {
    let under: any CheckpointSource
    let changed: [UInt8]
    var name: String { under.name }
    var id: CheckpointID { under.id }
    var regions: [RegionSummary] { under.regions }
    func region(_ name: String) throws(EngineError) -> any RegionSource { try under.region(name) }
    func blob(_ name: String, limit: ByteCount) throws(EngineError) -> [UInt8] { changed }
}

@Suite(.serialized) struct GuestSaveTests {
    /// Few sectors: most requests meet others.
    static let layout = ToyLayout(workPages: 3, sectors: 5)

    @Test func `a guest that dies is made again from its newest save and ends like an undisturbed one`() async throws {
        let seed = Programme.seed()
        try await onPlainThread {
            for number in 0..<Programme.runs(8) {
                do { try Self.dieAndGoOn(SeededGenerator(seed: seed, UInt64(number))) } catch {
                    throw TestFailure("seed \(seed), \(number): \(error)")
                }
            }
        }
    }

    /// Lives of one guest; each ends at any moment, the devices keep what they have.
    static func dieAndGoOn(_ random: SeededGenerator, releasesWhenSaved: Bool = true, rules: any GuestRules = StandardGuestRules()) throws {
        var random = random
        let place = try ScratchStore()
        let start = ToyMachine(layout: layout, seed: random.next(), length: 120)
        let contents = [ManualDevice.content(sectors: 5, seed: 0)]
        var disks = contents
        var saves = 0
        for life in 0..<100 {
            let devices = disks.enumerated().map { ManualDevice("disk\($0)", $1) }
            let memory = try GuestMemory("ram", byteLength: ByteCount(layout.pages * pageSize))
            let processor = SteppedProcessor(start)
            let pairs = try devices.map { try MirroredDevice($0) }
            let options = GuestOptions(releasesWhenSaved: releasesWhenSaved)
            let guest =
                try saves == 0
                ? RollbackGuest("g", memory: memory, processors: [processor], devices: pairs, options: options, rules: rules)
                : RollbackGuest(
                    "g", restoring: try place.data.source("save\(saves)"), memory: memory, processors: [processor], devices: pairs,
                    options: options,
                    rules: rules)
            processor.world.guest = guest
            defer {
                guest.close()
                processor.world.guest = nil
            }
            try guest.checkpoint()
            for _ in 0..<(life == 99 ? 100_000 : 20 + random.below(100)) {
                guard guest.waitUntilSettled(milliseconds: 10_000) else { throw TestFailure("not settled") }
                switch random.below(20) {
                case 0: try guest.rollBack()
                case 1: try guest.checkpoint()
                case 2, 3:
                    if random.chance(1, in: 2) { try guest.checkpoint() }
                    // Written to meanwhile: what is saved is the checkpoint.
                    try guest.save(into: place.data, as: "save\(saves + 1)", parent: saves > 0 ? "save\(saves)" : nil)
                    saves += 1
                case 4..<8:
                    let device = devices[0]
                    if device.waitingCount > 0 { device.complete(random.below(device.waitingCount)) }
                default: _ = try processor.step()
                }
            }
            disks = devices.map(\.content)
            guard processor.machine.isHalted else { continue }
            try guest.checkpoint()
            try guest.save(into: place.data, as: "last", parent: nil)
            for device in devices { while device.waitingCount > 0 { device.complete(0) } }
            return try compare(start, processor.machine, unsafe Array(memory.bytes), devices.map(\.content), contents)
        }
        throw TestFailure("no end")
    }

    @Test func `without waiting for saves a guest that is made again finds writes that it does not know of`() async throws {
        try await onPlainThread {
            let found = (0..<20).contains { number in
                do {
                    try Self.dieAndGoOn(SeededGenerator(seed: 3, UInt64(number)), releasesWhenSaved: false)
                    return false
                } catch { return true }
            }
            guard found else { throw TestFailure("the option `releasesWhenSaved` would not be needed") }
        }
    }

    private static func compare(_ start: ToyMachine, _ end: ToyMachine, _ memory: [UInt8], _ disks: [[UInt8]], _ contents: [[UInt8]]) throws
    {
        let model = ToyModel(memory: memory.count, disks: contents)
        let expected = try model.run([start])[0]
        guard end.encoded() == expected.encoded() else { throw TestFailure("registers differ") }
        guard memory == model.memory else { throw TestFailure("memory differs") }
        guard disks == model.disks else { throw TestFailure("disks differ") }
    }

    @Test func `a save that fails lets nothing go, and one that follows has everything`() async throws {
        try await onPlainThread {
            let place = try ScratchStore()
            let script: [ToyOperation] = [.store(word: 1), .write(device: 0, sector: 0, sectors: 1, page: 0), .store(word: 2), .wait]
            let test = try TestGuest(
                stepped: [ToyMachine(layout: ToyLayout(), seed: 0, length: 0, script: script)],
                options: GuestOptions(releasesWhenSaved: true))
            defer { test.close() }
            guard failure({ try test.guest.save(into: place.data, as: "a") })?.code == .invalidInput else {
                throw TestFailure("saved nothing")
            }
            try test.guest.checkpoint()
            for _ in 0..<2 { _ = try test.processors[0].step() }
            try test.guest.checkpoint()
            let saved = test.memoryBytes
            _ = try test.processors[0].step()
            guard failure({ try test.guest.save(into: FailingStore(under: place.data), as: "a") })?.code == .noSpace else {
                throw TestFailure("no failure")
            }
            guard test.devices[0].waitingCount == 0, test.guest.queueReport.held == [RequestID(UInt64(1))] else {
                throw TestFailure("let go")
            }
            // Known to the checkpoint, it stays through a rollback.
            try test.guest.rollBack()
            _ = try test.processors[0].step()
            guard test.guest.queueReport.held == [RequestID(UInt64(1))] else { throw TestFailure("forgotten") }
            try test.guest.save(into: place.data, as: "a")
            guard test.devices[0].waitingCount == 1 else { throw TestFailure("kept back") }
            var bytes = [UInt8](repeating: 0, count: saved.count)
            let region = try place.data.source("a").region("memory:guest")
            try unsafe bytes.withUnsafeMutableBytes { unsafe try region.read(pages: test.memory.allPages, into: $0) }
            guard bytes == saved else { throw TestFailure("saved something else than the checkpoint") }
            guard bytes != test.memoryBytes else { throw TestFailure("nothing was written since") }
        }
    }

    @Test func `what is saved while the guest writes is its checkpoint, page by page`() async throws {
        try await onPlainThread {
            let place = try ScratchStore()
            let guest = try RunningGuest("g", seed: 8, length: 1_000_000, processors: 2)
            defer { guest.close() }
            let memory = guest.test.memory
            let stopped = Lock<[UInt8]>([])
            for processor in guest.test.processors {
                processor.whenStateIsTaken.withLock { $0 = { stopped.withLock { unsafe $0 = Array(memory.bytes) } } }
            }
            for number in 0..<40 {
                try guest.test.guest.checkpoint()
                // Sometimes the guest has written nothing yet, sometimes everything.
                usleep(UInt32(number % 4) * 500)
                if number % 5 == 4 { try guest.test.guest.rollBack() }
                try guest.test.guest.save(into: place.data, as: "save\(number)", parent: number % 7 == 0 ? nil : "save\(number - 1)")
                var bytes = [UInt8](repeating: 0, count: memory.byteLength.int)
                let region = try place.data.source("save\(number)").region("memory:g")
                try unsafe bytes.withUnsafeMutableBytes { unsafe try region.read(pages: memory.allPages, into: $0) }
                guard bytes == stopped.withLock({ $0 }) else { throw TestFailure("save \(number) is not the checkpoint") }
            }
        }
    }

    @Test func `damaged, foreign and unfitting saves are refused`() async throws {
        let seed = Programme.seed()
        try await onPlainThread {
            let place = try ScratchStore()
            let script: [ToyOperation] = [
                .mark(readOnly: true), .read(device: 0, sector: 0, sectors: 1, slot: 0), .write(device: 0, sector: 0, sectors: 1, page: 0),
                .wait, .flush(device: 0),
            ]
            let test = try TestGuest(stepped: [ToyMachine(layout: ToyLayout(), seed: 0, length: 0, script: script)])
            defer { test.close() }
            try test.guest.checkpoint()
            for _ in 0..<3 { _ = try test.processors[0].step() }
            try test.guest.checkpoint()
            test.devices[0].complete(0)
            try test.settle()
            try test.guest.save(into: place.data, as: "a")
            let source = try place.data.source("a")
            let right = try source.blob("guest", limit: .mebibytes(1))
            let name = test.memory.name
            let content = ManualDevice.content(sectors: 64, seed: 1)
            func restore(_ blob: [UInt8], pages: Int = ToyLayout().pages, processors: Int = 1, devices: Int = 1) -> EngineError? {
                failure {
                    let memory = try GuestMemory(name, byteLength: ByteCount(pages * pageSize))
                    let all = (0..<processors).map { _ in IdleProcessor() }
                    let disks = try (0..<devices).map { try MirroredDevice(ManualDevice("d\($0)", content)) }
                    try RollbackGuest(
                        "g", restoring: ChangedSource(under: source, changed: blob), memory: memory, processors: all, devices: disks
                    ).close()
                }
            }
            guard restore(right) == nil else { throw TestFailure("the right one: \(restore(right)!)") }
            guard restore(right, pages: 4)?.code == .mismatch, restore(right, processors: 2)?.code == .mismatch,
                restore(right, devices: 0)?.code == .invalidInput
            else { throw TestFailure("what does not fit") }
            for length in stride(from: 0, to: right.count, by: 5) {
                guard restore(Array(right[..<length]))?.code == .corrupt else { throw TestFailure("cut at \(length)") }
            }
            guard restore(right + [0])?.code == .corrupt else { throw TestFailure("longer") }
            var newer = right
            newer[8] = 2
            guard restore(newer)?.code == .unsupported else { throw TestFailure("newer") }
            var random = SeededGenerator(seed: seed)
            for _ in 0..<300 {
                var wrong = right
                for _ in 0..<1 + random.below(3) { wrong[random.below(wrong.count)] = UInt8(random.below(256)) }
                // It may be right still; it must never be more than an error.
                _ = restore(wrong)
            }
        }
    }
}
