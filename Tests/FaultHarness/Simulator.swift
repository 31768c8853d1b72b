// A deterministic scheduler for simulated processes.
//
// Invariants:
// - Exactly one process has the turn. It gives it up at calls to media only, inside `step` and `wait`,
//   and the seed alone decides who gets it next: equal seeds give equal runs.
// - A process that dies keeps the turn until its code has returned, so that unwinding is not interleaved
//   with anything; its locks are gone before that, and its calls to media do nothing but throw.
// - The simulator's mutex may be held while a device's is taken, never the other way round.

import Dispatch
import Foundation
import Media
import Units

/// Runs several simulated processes under one seed.
public final class Simulator: Sendable {
    /// Something that happens at a given step, counted from 1.
    public enum PlannedFault: Hashable, Sendable {
        /// The process with this name dies.
        case kill(String, step: Int)
        /// Whoever has the turn dies.
        case killRunning(step: Int)
        /// The whole machine dies: afterwards the devices' crash images tell what is left.
        case powerCut(step: Int)
    }

    /// How a simulation runs.
    public struct Options: Sendable {
        /// Whether reads (and looks at the size) are points at which others may run.
        public var yieldsAtReads = false
        /// Whether one write in eight is cut in two, with others running in its middle.
        public var splitsWrites = true
        /// How likely a yield hands the turn to somebody else. Low values find bugs that need one
        /// process to get far while another stands still.
        public var switchPercent = 50
        /// How many of a thousand steps kill whoever has the turn.
        public var killsPerThousandSteps = 0
        /// Faults at given steps.
        public var faults: [PlannedFault] = []
        /// Simulated time per step.
        public var stepDuration = Duration.microseconds(10)
        /// More steps than this are a livelock.
        public var maximumSteps = 1_000_000
        /// Real seconds without a step after which the running process is taken to hang.
        public var stallSecondsMax = 60
        /// Writes cut in two, no faults.
        public init() {}
    }

    enum Status {
        case ready
        case waiting(deadline: Duration?, reason: String, isReady: @Sendable () -> Bool)
        case finished
    }

    struct Member {
        var process: SimulatedProcess
        var body: @Sendable (SimulatedProcess) throws -> Void
        var restartCount: Int
        var status = Status.ready
        var handles: [FaultMedium] = []
        var isDead = false
        var timedOut = false
        var callsAfterDeath = 0
        var error: (any Error)?
    }

    struct State {
        var options: Options
        var schedule: SeededGenerator
        var chaos: SeededGenerator
        var members: [Member] = []
        var current = 0
        var steps = 0
        var now = Duration.zero
        var verdict: SimulationReport.Verdict?
        var turns: [Int] = []
    }

    /// The seed of every choice that is made in this run.
    public let seed: UInt64
    private let state: Guarded<State>
    private let isOver = DispatchSemaphore(value: 0)

    /// Prepares a simulation without processes.
    public init(seed: UInt64, options: Options = Options()) {
        self.seed = seed
        state = Guarded(
            State(options: options, schedule: SeededGenerator(seed: seed, 1), chaos: SeededGenerator(seed: seed, 2)))
    }

    /// Adds a process, to be called before `run`. When it is killed it starts again, at most
    /// `restarts` times, with `incarnation` counting up.
    public func spawn(
        _ name: String, restarts: Int = 0, _ body: @escaping @Sendable (SimulatedProcess) throws -> Void
    ) {
        _ = state.with { $0.add(name, incarnation: 0, restarts: restarts, body, simulator: self) }
    }

    /// Runs until every process has ended, blocking the calling thread. To be called once.
    public func run() -> SimulationReport {
        for process in state.with({ $0.members.map(\.process) }) { start(process) }
        if let first = state.with({ $0.pick(simulator: self) }) { first.turn.signal() } else { isOver.signal() }
        waitForTheEnd()
        return state.with { $0.report(seed: seed) }
    }

    var now: Duration { state.with { $0.now } }

    func adopt(_ medium: FaultMedium, by process: SimulatedProcess) {
        state.with { $0.members[process.number - 1].handles.append(medium) }
    }

    func splitPoint(of count: Int) -> Int? {
        state.with { state in
            guard state.options.splitsWrites, count > 512, state.chaos.chance(1, in: 8) else { return nil }
            return 512 * (1 + state.chaos.below((count - 1) / 512))
        }
    }

    /// A point at which others may run and faults may strike.
    func step(_ process: SimulatedProcess, _ operation: OperationKind) throws(MediumError) {
        let next = state.with { state -> SimulatedProcess? in
            let isLook = operation == .read || operation == .refreshSize
            if state.members[process.number - 1].isDead || (isLook && !state.options.yieldsAtReads) { return process }
            state.advance()
            return state.pick(simulator: self)
        }
        try handOver(from: process, to: next)
    }

    /// Gives up the turn until `isReady` (true) or the deadline (false).
    func wait(
        _ process: SimulatedProcess, until deadline: Duration?, for reason: String,
        isReady: @escaping @Sendable () -> Bool
    ) throws(MediumError) -> Bool {
        let next = state.with { state -> SimulatedProcess? in
            if state.members[process.number - 1].isDead { return process }
            state.advance()
            if !state.members[process.number - 1].isDead {
                state.members[process.number - 1].timedOut = false
                state.members[process.number - 1].status = .waiting(
                    deadline: deadline, reason: reason, isReady: isReady)
            }
            return state.pick(simulator: self)
        }
        try handOver(from: process, to: next)
        return !state.with { $0.members[process.number - 1].timedOut }
    }
}

extension Simulator {
    private func handOver(from process: SimulatedProcess, to next: SimulatedProcess?) throws(MediumError) {
        if next !== process {
            next?.turn.signal()
            process.turn.wait()
        }
        let (isDead, calls) = state.with { state in
            guard state.members[process.number - 1].isDead else { return (false, 0) }
            state.members[process.number - 1].callsAfterDeath += 1
            return (true, state.members[process.number - 1].callsAfterDeath)
        }
        if calls > 100_000 { abandon(process) }
        guard isDead else { return }
        throw MediumError(
            .killed, medium: "process \(process.name)", operation: "go on",
            reason: "the simulated process has been killed")
    }

    /// Gives up on a process that goes on calling media for ever after its death. Its thread stays
    /// behind, asleep: a thread can't be ended from outside.
    private func abandon(_ process: SimulatedProcess) -> Never {
        let next = state.with { state in
            state.verdict = .stalled("\(process.name) goes on calling the medium after it was killed")
            state.members[process.number - 1].status = .finished
            return state.pick(simulator: self)
        }
        if let next { next.turn.signal() } else { isOver.signal() }
        while true { DispatchSemaphore(value: 0).wait() }
    }

    private func start(_ process: SimulatedProcess) {
        let body = state.with { $0.members[process.number - 1].body }
        let thread = Thread { [self] in
            process.turn.wait()
            var failure: (any Error)?
            do { try body(process) } catch { failure = error }
            finish(process, failure)
        }
        thread.stackSize = 8 << 20
        thread.start()
    }

    private func finish(_ process: SimulatedProcess, _ failure: (any Error)?) {
        for medium in state.with({ $0.members[process.number - 1].handles }) { medium.close() }
        let (next, successor) = state.with { state in
            state.members[process.number - 1].status = .finished
            state.members[process.number - 1].handles = []
            state.members[process.number - 1].error = failure
            let successor = state.restart(after: process.number - 1, simulator: self)
            return (state.pick(simulator: self), successor)
        }
        if let successor { start(successor) }
        if let next { next.turn.signal() } else { isOver.signal() }
    }

    /// Waits for the last process, and watches that steps are being made.
    private func waitForTheEnd() {
        var lastSteps = -1
        var idleSeconds = 0
        while isOver.wait(timeout: .now() + .seconds(1)) == .timedOut {
            let hasStalled = state.with { state in
                idleSeconds = state.steps == lastSteps ? idleSeconds + 1 : 0
                lastSteps = state.steps
                guard idleSeconds >= state.options.stallSecondsMax else { return false }
                let name = state.members[state.current].process.name
                state.verdict = .stalled("\(name) has made no step for \(idleSeconds) seconds")
                return true
            }
            if hasStalled { return }
        }
    }
}
