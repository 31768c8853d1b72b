// Every order of events of a short program, or many of a long one.
//
// Invariants:
// - A run is a function of its choices: one thread steps the guest, completes what devices have, checkpoints, rolls back; before each choice
//   everything finished has been delivered.
// - A run always comes to an end: when the choices are used up, what is left is done in a fixed order.

import CheckpointCore
import FaultHarness
import GuestRollback
import MachineMemory
import Units

/// What may happen next.
enum ToyEvent: Equatable, CustomStringConvertible {
    case step(Int)
    case complete(device: Int, isMirror: Bool, index: Int)
    case checkpoint
    case rollBack
    /// The device breaks while it carries out its first waiting operation.
    case tear(device: Int)
    /// The device does not answer any more, and is taken out of use.
    case hang(device: Int)

    var description: String {
        switch self {
        case .step(let processor): "step\(processor)"
        case .complete(let device, let isMirror, let index): "complete\(isMirror ? "-mirror" : "")\(device).\(index)"
        case .checkpoint: "checkpoint"
        case .rollBack: "roll-back"
        case .tear(let device): "tear\(device)"
        case .hang(let device): "hang\(device)"
        }
    }
}

/// How often the rare events may happen in one run.
struct EventBudget {
    var checkpoints = 1
    var rollBacks = 1
    var failures = 0
}

/// Who decides.
protocol EventChooser {
    /// One of `events`, of which there is at least one.
    mutating func choose(_ events: [ToyEvent]) -> Int
}

/// All sequences of choices, one after the other.
struct ExhaustiveChooser: EventChooser {
    private var path: [(chosen: Int, count: Int)] = []
    private var depth = 0

    mutating func choose(_ events: [ToyEvent]) -> Int {
        defer { depth += 1 }
        if depth == path.count { path.append((0, events.count)) }
        precondition(path[depth].count == events.count, "a run is a function of its choices")
        return path[depth].chosen
    }

    /// Goes to the next sequence; false: that was the last one.
    mutating func advance() -> Bool {
        depth = 0
        while let last = path.popLast() {
            if last.chosen + 1 < last.count {
                path.append((last.chosen + 1, last.count))
                return true
            }
        }
        return false
    }
}

/// By chance, with rare events rare.
struct RandomChooser: EventChooser {
    var random: SeededGenerator

    mutating func choose(_ events: [ToyEvent]) -> Int {
        let index = random.below(events.count)
        switch events[index] {
        case .step, .complete: return index
        default: return random.chance(1, in: 8) ? index : random.below(events.count)
        }
    }
}

/// One run.
struct ToyRun {
    let test: TestGuest<SteppedProcessor>
    var budget: EventBudget
    private(set) var trace: [ToyEvent] = []
    private var isBroken: Set<Int> = []
    private var memoryAtCheckpoint: [UInt8] = []
    private var machinesAtCheckpoint: [ToyMachine] = []

    init(_ test: TestGuest<SteppedProcessor>, _ budget: EventBudget) {
        self.test = test
        self.budget = budget
    }

    private var isHalted: Bool { test.processors.allSatisfy { $0.machine.isHalted } }

    /// Runs to the end and compares with the model.
    mutating func run(_ chooser: inout some EventChooser) throws {
        do {
            try takeCheckpoint()
            var blocked: Set<Int> = []
            for _ in 0..<100_000 {
                try test.settle()
                if isHalted && budget.rollBacks == 0 { break }
                let events = enabled(blocked)
                if events.isEmpty {
                    if isHalted { break }
                    // Only a checkpoint lets go what it waits for.
                    guard !test.guest.queueReport.held.isEmpty else {
                        throw TestFailure("nothing can happen any more: \(test.guest.queueReport)")
                    }
                    try perform(.checkpoint, &blocked)
                    continue
                }
                try perform(events[events.count == 1 ? 0 : chooser.choose(events)], &blocked)
            }
            guard isHalted else { throw TestFailure("no end") }
            try test.guest.checkpoint()
            try drain()
            try test.check(noReadTwice: !isDropping && isBroken.isEmpty)
        } catch { throw TestFailure("\(error)\nevents: \(trace.map(\.description).joined(separator: " "))") }
    }

    /// Whether reads may have been repeated: the guest had not yet issued again what it had read before when it was checkpointed.
    private var isDropping = false

    private func enabled(_ blocked: Set<Int>) -> [ToyEvent] {
        var events: [ToyEvent] = []
        for (index, processor) in test.processors.enumerated() where !blocked.contains(index) && !processor.machine.isHalted {
            events.append(.step(index))
        }
        for (index, device) in test.devices.enumerated() {
            if !isBroken.contains(index) {
                for waiting in 0..<device.waitingCount { events.append(.complete(device: index, isMirror: false, index: waiting)) }
            }
            if !test.alternates.isEmpty {
                for waiting in 0..<test.alternates[index].waitingCount {
                    events.append(.complete(device: index, isMirror: true, index: waiting))
                }
            }
            if budget.failures > 0 {
                if device.waitingCount > 0 { events.append(.tear(device: index)) }
                events.append(.hang(device: index))
            }
        }
        // Twice in a row is like once.
        if budget.checkpoints > 0, let last = trace.last, last != .checkpoint { events.append(.checkpoint) }
        if budget.rollBacks > 0, trace.last != .rollBack { events.append(.rollBack) }
        return events
    }

    private mutating func perform(_ event: ToyEvent, _ blocked: inout Set<Int>) throws {
        trace.append(event)
        switch event {
        case .step(let index):
            if try test.processors[index].step() == .blocked { blocked.insert(index) }
            return
        case .complete(let device, let isMirror, let index): (isMirror ? test.alternates : test.devices)[device].complete(index)
        case .checkpoint:
            budget.checkpoints = max(0, budget.checkpoints - 1)
            if test.guest.hasDisownedReads { isDropping = true }
            try takeCheckpoint()
        case .rollBack:
            budget.rollBacks -= 1
            try test.guest.rollBack()
            try checkRollback()
        case .tear(let device):
            budget.failures -= 1
            isBroken.insert(device)
            test.devices[device].tear(0)
        case .hang(let device):
            budget.failures -= 1
            isBroken.insert(device)
            test.guest.fail(DeviceIndex(device), half: 0, because: "it does not answer")
        }
        blocked = []
    }

    private mutating func takeCheckpoint() throws {
        memoryAtCheckpoint = test.memoryBytes
        machinesAtCheckpoint = test.processors.map(\.machine)
        try test.guest.checkpoint()
    }

    /// Property 1: the guest is as it was at its checkpoint, but for what has been delivered since it went on.
    private func checkRollback() throws {
        try test.settle()
        let now = test.memoryBytes
        var delivered: Set<Int> = []
        for (processor, before) in zip(test.processors, machinesAtCheckpoint) {
            var machine = processor.machine
            for request in before.pending {
                if let slot = request.slot { delivered.insert(before.layout.firstPage + before.layout.workPages + slot) }
            }
            machine.inbox = before.inbox
            guard machine.encoded() == before.encoded() else { throw TestFailure("registers are not as at the checkpoint") }
        }
        for page in 0..<now.count / pageSize where !delivered.contains(page) {
            let bytes = page * pageSize..<(page + 1) * pageSize
            guard now[bytes] == memoryAtCheckpoint[bytes] else { throw TestFailure("page \(page) is not as at the checkpoint") }
        }
    }

    /// Writes that were let go last.
    private mutating func drain() throws {
        for (index, device) in test.devices.enumerated() {
            while !isBroken.contains(index), device.waitingCount > 0 { device.complete(0) }
            while !test.alternates.isEmpty, test.alternates[index].waitingCount > 0 { test.alternates[index].complete(0) }
        }
        try test.settle()
    }
}

/// All orders of events of a script.
/// - Returns: how many runs there were; throws the first failure.
func exploreAll(
    _ script: [ToyOperation], _ budget: EventBudget, mirrored: Bool = false, rules: any GuestRules = StandardGuestRules()
) throws -> Int {
    var chooser = ExhaustiveChooser()
    var runs = 0
    let layout = ToyLayout(workPages: 1, slots: 2, sectors: 8)
    repeat {
        let test = try TestGuest(
            stepped: [ToyMachine(layout: layout, seed: 0, length: 0, script: script)], diskSectors: 8, mirrored: mirrored, rules: rules)
        defer { test.close() }
        var run = ToyRun(test, budget)
        try run.run(&chooser)
        runs += 1
    } while chooser.advance()
    return runs
}

/// Random orders of events of random programs.
func exploreRandomly(
    seed: UInt64, runs: Int, length: Int, processors: Int = 1, _ budget: EventBudget, mirrored: Bool = false,
    rules: any GuestRules = StandardGuestRules()
) throws {
    for number in 0..<runs {
        var chooser = RandomChooser(random: SeededGenerator(seed: seed, UInt64(number)))
        let machines = (0..<processors).map { index in
            let layout = ToyLayout(index: ProcessorIndex(index), firstPage: index * 8, devices: 2, firstSector: index * 32, sectors: 8)
            return ToyMachine(layout: layout, seed: seed &+ UInt64(number), length: length)
        }
        let test = try TestGuest(stepped: machines, diskSectors: 32 * processors, mirrored: mirrored, sharing: .shared, rules: rules)
        defer { test.close() }
        var run = ToyRun(test, budget)
        do { try run.run(&chooser) } catch { throw TestFailure("seed \(seed), run \(number): \(error)") }
    }
}
