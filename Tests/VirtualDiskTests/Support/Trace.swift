// One run of a machine with a disk, some requests and a checkpoint: whatever can happen next is chosen from outside.
//
// Invariant: a run is decided by the scenario and the choices alone.

import CheckpointCore
import FaultHarness
import MachineMemory
import Threading
import Units
import VirtualDisks

/// Requests in issue order, and what they are made on.
struct Scenario: CustomStringConvertible, Sendable {
    struct Request: Sendable {
        var operation: DiskOperation
        var sectors: Range<Int>
        /// Where its buffer starts in memory.
        var address: Int
    }
    var sectorCount: Int
    var requests: [Request]
    /// Where the processors write, outside of all buffers.
    var scratch: [Int] = []

    /// Few requests, two of them in each page; the last group of the disk is shorter, and no whole number of blocks.
    init(_ requests: [(operation: DiskOperation, sectors: Range<Int>)]) {
        sectorCount = 19
        self.requests = requests.enumerated().map { number, request in
            Request(operation: request.operation, sectors: request.sectors, address: number / 2 * pageSize + number % 2 * 1536)
        }
        scratch = (0..<4).map { $0 * pageSize + 3800 }
    }

    /// Many requests of up to 12 sectors, with buffers that begin anywhere and share pages.
    init(seed: UInt64, length: Int) {
        var generator = SeededGenerator(seed: seed, 1)
        let stride = 10_000
        let sectorCount = 40 + generator.below(20)
        self.sectorCount = sectorCount
        requests = (0..<length).map { number in
            let start = generator.below(sectorCount)
            let count = min(1 + generator.below(12), sectorCount - start)
            return Request(
                operation: generator.chance(1, in: 2) ? .read : .write, sectors: start..<start + count,
                address: number * stride + 200 + generator.below(1000))
        }
        for number in 0..<length { scratch += [100, 7500, 9000].map { number * stride + $0 } }
    }

    var description: String { requests.map { "\($0.operation) \($0.sectors)" }.joined(separator: ", ") }
}

/// How finely a run is cut into events.
struct TraceOptions: Sendable {
    var mode = ManualBackend.Mode.effectAtCompletion
    /// Overlays' reads and writes are events of their own; otherwise they are done at once.
    var hasJobEvents = false
    /// How often the processors write at moments of their own; 0: once everywhere, as soon as the machine goes on.
    var processorEvents = 0
    /// A request's effect and its completion are two events.
    var hasEffectEvents = false
}

/// What a run needs and the next one can use again.
struct TraceMemory: Sendable {
    let memory: GuestMemory
    let window: GuestMemory

    init(_ byteLength: ByteCount = .kibibytes(16)) throws {
        memory = try GuestMemory("ram", byteLength: byteLength)
        window = try GuestMemory("window", byteLength: .kibibytes(64))
    }
}

final class Trace<Choice: Chooser> {
    static var groupSize: ByteCount { .kibibytes(4) }
    /// Two groups and a half.
    static var sectorCount: Int { 20 }
    /// Where in each page the processors write.
    private let scratch = 3800

    private enum Event { case submit, switchOver, resume, processors, effect(Int), complete(Int), job(Int) }

    private let scenario: Scenario
    private let options: TraceOptions
    private let pool: TraceMemory
    private let memory: FakeMemory
    private let backend: ManualBackend
    private let workers: ManualWorkers
    private let disk: VirtualDisk
    private let checkpoint: DiskCheckpoint
    private var model: DiskModel
    private var submitted = 0
    private var isRunning = true
    private var hasSwitched = false
    private var mustWait = false
    private var processorWrites = 0
    private var unconsumed: [Int] = []
    private let completions = Lock<[(number: Int, result: Result<Void, EngineError>)]>([])

    init(_ scenario: Scenario, _ options: TraceOptions, rules: any DiskRules, _ pool: TraceMemory) throws {
        self.scenario = scenario
        self.options = options
        self.pool = pool
        memory = FakeMemory(pool.memory)
        let count = pool.memory.byteLength.int
        unsafe pool.memory.bytes.copyBytes(from: (0..<count).map { UInt8(truncatingIfNeeded: $0 / 512 &* 7 &+ 128) })
        let content = (0..<scenario.sectorCount * sectorSize).map { UInt8(truncatingIfNeeded: $0 / sectorSize &+ 1) }
        backend = ManualBackend(content, options.mode)
        workers = ManualWorkers(isImmediate: !options.hasJobEvents)
        disk = try VirtualDisk("disk", parent: backend, workers: workers, groupSize: Self.groupSize, rules: rules)
        checkpoint = try disk.beginCheckpoint(overlay: CowFile.create(on: MemoryStorage(), geometry: disk.geometry))
        model = DiskModel(disk: content, memory: memory.ongoing)
    }

    /// Lets everything happen that can, in the order that `choices` say, and compares the result with the model.
    func run(_ choices: inout Choice) throws {
        while true {
            let events = enabledEvents
            guard !events.isEmpty else { break }
            try perform(events[choices.choose(events.count)], &choices)
            try noteCompletions()
        }
        try require(disk.pendingRequests.isEmpty, "requests are stuck: \(disk.pendingRequests)")
        try checkCheckpoint()
        try checkOngoing()
    }

    private var enabledEvents: [Event] {
        var events: [Event] = []
        if isRunning, submitted < scenario.requests.count { events.append(.submit) }
        if isRunning, !hasSwitched { events.append(.switchOver) }
        if !isRunning, !mustWait || checkpoint.pendingRequests.allSatisfy({ $0.outcome != nil }) { events.append(.resume) }
        if processorWrites < options.processorEvents, isRunning, hasSwitched { events.append(.processors) }
        if options.hasEffectEvents { events += backend.heldWithoutEffect.map { .effect($0) } }
        events += backend.held.map { .complete($0) }
        events += (0..<workers.jobCount).map { .job($0) }
        return events
    }

    private func perform(_ event: Event, _ choices: inout Choice) throws {
        switch event {
        case .submit: submit()
        case .switchOver:
            memory.mark()
            checkpoint.switchOver(memory: memory)
            mustWait = checkpoint.mustWaitBeforeResuming
            model.takeCheckpoint()
            (isRunning, hasSwitched) = (false, true)
        case .resume:
            if mustWait { checkpoint.waitForPending() }
            isRunning = true
            checkpoint.memoryIsResumed(waited: mustWait)
            if options.processorEvents == 0 { processorsWrite(scenario.scratch) }
        case .processors:
            // One event reaches every page; of many, each reaches one.
            processorsWrite(options.processorEvents == 1 ? scenario.scratch : [scenario.scratch[choices.choose(scenario.scratch.count)]])
        case .effect(let number): backend.haveEffect(number)
        case .complete(let number): backend.complete(number)
        case .job(let index): workers.runJob(index)
        }
    }

    private func submit() {
        let number = submitted
        let request = scenario.requests[number]
        submitted += 1
        let address = request.address
        let count = request.sectors.count * sectorSize
        let start = request.sectors.lowerBound * sectorSize
        if request.operation == .write {
            model.submitWrite(at: start, Array(model.memory[address..<address + count]))
        } else {
            model.submitRead(number, at: start, count: count, into: address)
        }
        let buffer = GuestBuffer(pool.memory, offset: ByteCount(address), byteCount: ByteCount(count))
        let completions = completions
        disk.submit(
            DiskRequest(request.operation, at: DiskOffset(start), buffer) { result in completions.withLock { $0.append((number, result)) } })
    }

    private func processorsWrite(_ places: [Int]) {
        processorWrites += 1
        for place in places { write(place, [UInt8](repeating: UInt8(truncatingIfNeeded: place / 97 + processorWrites), count: 16)) }
    }

    private func write(_ start: Int, _ bytes: [UInt8]) {
        memory.write(start, bytes)
        model.write(start, bytes)
    }

    /// The machine uses what it has read as soon as it is told of it, if it runs.
    private func noteCompletions() throws {
        let completed = completions.withLock { list in
            defer { list = [] }
            return list
        }
        for (number, result) in completed {
            if case .failure(let error) = result { throw TestFailure("request \(number) failed: \(error)") }
            guard scenario.requests[number].operation == .read else { continue }
            model.completeRead(number)
            unconsumed.append(number)
        }
        guard isRunning else { return }
        for number in unconsumed {
            write(scenario.requests[number].address, [UInt8](repeating: UInt8(200 + number % 50), count: 8))
        }
        unconsumed = []
    }

    private func checkCheckpoint() throws {
        try checkpoint.waitForPendingReads()
        try require(memory.checkpointed == model.checkpointedMemory!, "the checkpointed memory is wrong")
        checkpoint.memoryIsSaved()
        checkpoint.waitForPendingWrites()
        var content = [UInt8](repeating: 0, count: backend.byteLength.int)
        backend.setMode(.immediate)
        let reader = checkpoint.parentReader
        unsafe try content.withUnsafeMutableBytes { unsafe try reader.read(.zero, into: $0) }
        try require(content == model.checkpointedDisk!, "the checkpointed disk is wrong")
    }

    private func checkOngoing() throws {
        try require(memory.ongoing == model.memory, "the ongoing memory is wrong")
        workers.setImmediate()
        disk.submit(
            DiskRequest(.read, at: .zero, GuestBuffer(pool.window, offset: .zero, byteCount: backend.byteLength)) { _ in })
        let seen = unsafe [UInt8](UnsafeRawBufferPointer(rebasing: UnsafeRawBufferPointer(pool.window.bytes)[..<backend.byteLength.int]))
        try require(seen == model.disk, "the ongoing disk is wrong")
        try checkpoint.commit(limits: CommitLimits(heldGroups: 0, rounds: 1), makeHelper: helper)
        try require(backend.content == model.disk, "the committed disk is wrong")
    }

    private func helper(over parent: OverlayID) throws(EngineError) -> CowFile {
        try CowFile.create(on: MemoryStorage(), geometry: disk.geometry, parent: parent)
    }
}
