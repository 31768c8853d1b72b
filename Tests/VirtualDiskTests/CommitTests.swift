// A checkpoint's overlay goes back into the image while the machine runs, and after a crash at any moment.

import CheckpointCore
import FaultHarness
import MachineMemory
import Media
import Testing
import Threading
import Units
import VirtualDisks

/// Memory of which no page was ever copied.
struct UntouchedMemory: CheckpointedMemory {
    func wasCopied(_ memory: GuestMemory, _ page: PageIndex) -> Bool { false }
    func preserve(_ memory: GuestMemory, _ pages: Range<PageIndex>) {}
    func withCopies(of buffer: GuestBuffer, _ body: ([CopiedPiece]) -> Void) { body([]) }
}

/// A machine whose requests are done at once, on media that lose power, while a checkpoint is taken and committed.
private final class CommitScene: Sendable {
    static let sectorCount = 43
    /// When the overlays were there, and when they were not needed any more.
    struct Lives {
        var created: [Int] = []
        var removed: [Int] = []
    }
    struct State {
        var history = SectorHistory(sectorCount: CommitScene.sectorCount)
        var generator: SeededGenerator
        var lives = Lives()
        var imageWrites = 0
        var isInHook = false
        var failure: String?
    }

    let recording: CrashRecording
    private let state: Lock<State>
    private let memory: GuestMemory
    private let disk = Lock<VirtualDisk?>(nil)
    /// The overlay has no room at some point, so that the checkpoint is given up.
    private let overlayFails: Bool
    private let failing = Lock<DiskCheckpoint?>(nil)

    init(seed: UInt64, overlayFails: Bool = false) throws {
        self.overlayFails = overlayFails
        let devices = [ByteCount(Self.sectorCount * sectorSize), .mebibytes(1), .mebibytes(1)].map { SimulatedDevice(size: $0) }
        recording = CrashRecording(devices)
        state = Lock(State(generator: SeededGenerator(seed: seed)))
        memory = try GuestMemory("ram", byteLength: .kibibytes(32))
    }

    var history: SectorHistory { state.withLock { $0.history } }

    func run() throws {
        let backend = FaultBackend(recording.devices[0]) { self.imageChanged() }
        let disk = try VirtualDisk(
            "disk", parent: backend, workers: ManualWorkers(isImmediate: true), groupSize: .kibibytes(4))
        self.disk.withLock { $0 = disk }
        try write(0..<Self.sectorCount)
        try flush()
        let checkpoint = try disk.beginCheckpoint(overlay: try overlay(over: nil, disk.geometry)) { _ in }
        checkpoint.switchOver(memory: UntouchedMemory())
        checkpoint.memoryIsResumed(waited: false)
        if overlayFails { return try giveUp(checkpoint) }
        for _ in 0..<8 { try step() }
        let start = state.withLock { $0.imageWrites }
        let report = try checkpoint.commit(limits: CommitLimits(heldGroups: 0, rounds: 1)) { (parent) throws(EngineError) -> CowFile in
            state.withLock { $0.isInHook = false }
            hookedWrites.withLock { $0 = start..<start + 6 }
            return try overlay(over: parent, disk.geometry)
        }
        hookedWrites.withLock { $0 = 0..<0 }
        if let failure = state.withLock({ $0.failure }) { throw TestFailure(failure) }
        try require(report.rounds == 1 && report.unremoved.isEmpty && report.mergedGroups >= 2, "\(report)")
        try require(recording.devices[0].bytes(at: .zero, count: Self.sectorCount * sectorSize) == history.newest, "the commit lost something")
    }

    private func giveUp(_ checkpoint: DiskCheckpoint) throws {
        failing.withLock { $0 = checkpoint }
        let operation = state.withLock { $0.generator.chance(1, in: 2) ? OperationKind.write : .flush }
        recording.devices[1].faults.add(FaultRule(operation, .from(operation == .write ? 12 : 4), .fail(.noSpace)))
        for _ in 0..<40 { try step() }
        try require(failing.withLock { $0 } == nil && state.withLock { $0.lives.removed.count } == 1, "the overlay never failed")
    }

    private let hookedWrites = Lock(0..<0)

    /// The machine goes on between the writes of the merge.
    private func imageChanged() {
        recording.note()
        let isHooked = state.withLock { state in
            state.imageWrites += 1
            guard hookedWrites.withLock({ $0.contains(state.imageWrites) }), !state.isInHook else { return false }
            state.isInHook = true
            return true
        }
        guard isHooked else { return }
        do { for _ in 0..<2 { try step() } } catch { state.withLock { $0.failure = "\(error)" } }
        state.withLock { $0.isInHook = false }
    }

    private func overlay(over parent: OverlayID?, _ geometry: DiskGeometry) throws(EngineError) -> CowFile {
        let number = state.withLock { $0.lives.created.count }
        let storage = RemovableStorage(FaultStorage(recording.devices[1 + number]) { self.recording.note() }) {
            self.state.withLock { $0.lives.removed.append(self.recording.count) }
        }
        let file = try CowFile.create(on: storage, geometry: geometry, parent: parent)
        state.withLock { $0.lives.created.append(recording.count) }
        return file
    }

    /// What a machine does next: writes a little, reads everything, flushes at times.
    private func step() throws {
        let (sectors, flushes) = state.withLock { state in
            let start = state.generator.below(Self.sectorCount)
            return (start..<min(Self.sectorCount, start + 1 + state.generator.below(10)), state.generator.chance(1, in: 3))
        }
        try write(sectors)
        if flushes { try flush() }
        try submit(.read, 0..<Self.sectorCount)
        let seen = unsafe [UInt8](UnsafeRawBufferPointer(memory.bytes))[..<(Self.sectorCount * sectorSize)]
        try require(seen.elementsEqual(history.newest), "a read during the commit brings something else")
    }

    private func write(_ sectors: Range<Int>) throws {
        let bytes = state.withLock { $0.history.write(sectors, at: recording.count) }
        unsafe memory.bytes.copyBytes(from: bytes)
        try submit(.write, sectors)
    }

    private func flush() throws {
        let began = recording.count
        try submit(.flush, 0..<1)
        state.withLock { $0.history.flush(began: began, acknowledged: recording.count) }
    }

    private func submit(_ operation: DiskOperation, _ sectors: Range<Int>) throws {
        let result = Lock<Result<Void, EngineError>?>(nil)
        let buffer = GuestBuffer(memory, offset: .zero, byteCount: ByteCount(sectors.count * sectorSize))
        disk.withLock { $0! }.submit(
            DiskRequest(operation, at: DiskOffset(sectors.lowerBound * sectorSize), buffer) { outcome in result.withLock { $0 = outcome } })
        if result.withLock({ $0 }) == nil, let checkpoint = failing.withLock({ $0 }) {
            failing.withLock { $0 = nil }
            try checkpoint.abort()
        }
        guard let outcome = result.withLock({ $0 }) else { throw TestFailure("a request waits though nothing is under way") }
        try outcome.get()
    }

    // MARK: After a cut

    /// Recovers what a cut has left; throws when that is not what the machine was promised.
    func check(_ moment: Int, _ left: [SimulatedDevice], _ number: Int) throws {
        var generator = SeededGenerator(seed: UInt64(number))
        let lives = state.withLock { $0.lives }
        let files = lives.created.indices.filter { index in
            lives.created[index] <= moment
                // What was merged may be gone, or its removal may not have become durable. What could not be marked as merged is gone.
                && (index >= lives.removed.count || lives.removed[index] > moment || !overlayFails && generator.chance(1, in: 2))
        }
        guard moment >= (lives.created.first ?? 0) else { return }
        let again = left.map { $0.fork() }
        let recovered = try recover(left, files)
        try history.check(recovered, at: moment)
        try require(try recover(left, files) == recovered, "a second recovery changes something")
        guard number % 5 == 0 else { return }
        // A cut in the middle of the recovery, and another recovery.
        let second = CrashRecording(again)
        try require(try recover(again, files, second) == recovered, "the same recovery brings something else")
        let chosen = generator.below(second.count)
        try second.explore(seed: UInt64(number), randomCount: 1) { moment, left, _ in
            guard moment == chosen else { return }
            try require(try recover(left, files) == recovered, "a recovery that was cut off at \(moment) brings something else")
        }
    }

    private func recover(_ devices: [SimulatedDevice], _ files: [Int], _ recording: CrashRecording? = nil) throws -> [UInt8] {
        let note: @Sendable () -> Void = { recording?.note() }
        let overlays = try files.map { try CowFile.open(on: FaultStorage(devices[1 + $0], afterEach: note)) }
        try CowFile.recover(overlays, into: FaultBackend(devices[0], afterEach: note))
        return devices[0].bytes(at: .zero, count: Self.sectorCount * sectorSize)
    }
}

/// Tells of its removal.
private final class RemovableStorage: CowStorage {
    private let base: FaultStorage
    private let removed: @Sendable () -> Void

    init(_ base: FaultStorage, removed: @escaping @Sendable () -> Void) {
        self.base = base
        self.removed = removed
    }

    var name: String { base.name }
    func read(at offset: MediumOffset, into buffer: UnsafeMutableRawBufferPointer) throws(EngineError) -> Int {
        unsafe try base.read(at: offset, into: buffer)
    }
    func write(at offset: MediumOffset, _ bytes: UnsafeRawBufferPointer) throws(EngineError) { unsafe try base.write(at: offset, bytes) }
    func flush() throws(EngineError) { try base.flush() }
    func remove() throws(EngineError) { removed() }
}

@Suite(.serialized) struct CommitTests {
    @Test(arguments: [false, true])
    func `claim 5: a crash at any moment of a commit, recovered, converges, and reads during it match a reference`(
        _ overlayFails: Bool
    ) async throws {
        let seed = UInt64.random(in: 0...UInt64.max)
        print("seed \(seed)")
        let images = try await onPlainThread {
            let count = Lock(0)
            let failure = Lock<String?>(nil)
            PlainThreads.run(2) { thread in
                do {
                    for round in 0..<2 {
                        let scene = try CommitScene(seed: seed &+ UInt64(2 * round + thread), overlayFails: overlayFails)
                        try scene.run()
                        // What is brought back without a file that can do it again is written as a machine's own unflushed writes are.
                        try scene.recording.explore(seed: seed, randomCount: 8, tearsSectors: !overlayFails) { moment, left, number in
                            try scene.check(moment, left, number)
                            count.withLock { $0 += 1 }
                        }
                    }
                } catch { failure.withLock { $0 = "\(error)" } }
            }
            if let text = failure.withLock({ $0 }) { throw TestFailure(text) }
            return count.withLock { $0 }
        }
        print("\(images) crash images")
        #expect(images > 2000)
    }

    @Test func `an image that is not flushed before its overlay counts as merged is noticed by the crash tests`() async throws {
        await #expect(throws: TestFailure.self) {
            try await onPlainThread {
                for seed in 0..<10 as Range<UInt64> {
                    let scene = try CommitScene(seed: seed)
                    scene.recording.devices[0].faults.add(FaultRule(.flush, .from(2), .ignoreFlush))
                    try scene.run()
                    try scene.recording.explore(seed: seed, randomCount: 4, scene.check)
                }
            }
        }
    }
}
