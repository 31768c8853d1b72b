// Toy machines as processors of real guests: on a thread of their own, or step by step under the test's hand.

import CheckpointCore
import GuestRollback
import Threading
import Units

/// A guest as its machine sees it.
final class GuestWorld: ToyWorld, @unchecked Sendable {
    var guest: RollbackGuest!
    let index: ProcessorIndex
    /// Pages that the guest was told are read-only.
    let told = Lock<[PageIndex]>([])

    init(_ index: ProcessorIndex) { self.index = index }

    func store(_ value: UInt64, at address: GuestAddress) throws -> Bool {
        told.withLock { $0 = [] }
        _ = try unsafe withUnsafeBytes(of: value.littleEndian) { unsafe try guest.store($0, at: address, by: index) }
        let pages = told.withLock { $0 }
        guard pages.allSatisfy({ $0 == address.page }) else { throw TestFailure("told of \(pages), stored at \(address)") }
        return pages.isEmpty
    }

    func load(_ address: GuestAddress) throws -> UInt64 {
        var value: UInt64 = 0
        try unsafe withUnsafeMutableBytes(of: &value) { unsafe try guest.load($0, from: address) }
        return UInt64(littleEndian: value)
    }

    func setReadOnly(_ isReadOnly: Bool, _ page: PageIndex) throws { try guest.setReadOnly(page..<page + PageCount(1), isReadOnly) }
    func submit(_ request: GuestRequest) throws { try guest.submit(request) }
}

/// What the tests need of a processor besides what the guest does.
protocol ToyProcessor: GuestProcessor {
    var world: GuestWorld { get }
    var machine: ToyMachine { get }
}

/// Steps when the test says so, on the test's thread.
final class SteppedProcessor: ToyProcessor {
    let world: GuestWorld
    private struct State {
        var machine: ToyMachine
        var arrived: [RequestCompletion] = []

        mutating func takeIn() {
            for completion in arrived { machine.complete(completion) }
            arrived = []
        }
    }
    private let registers: Lock<State>
    let pauses = Lock(0)
    /// Makes `restore` fail once.
    let failsToRestore = Lock(false)

    init(_ machine: ToyMachine) {
        world = GuestWorld(machine.layout.index)
        registers = Lock(State(machine: machine))
    }

    var machine: ToyMachine {
        registers.withLock { registers in
            registers.takeIn()
            return registers.machine
        }
    }

    func step() throws -> ToyMachine.Outcome {
        // Not under the lock: a request may be completed meanwhile.
        var machine = machine
        let outcome = try machine.run(in: world)
        registers.withLock { $0.machine = machine }
        return outcome
    }

    func pause() { pauses.withLock { $0 += 1 } }
    func resume() {}
    func state() -> [UInt8] { machine.encoded() }
    func restore(_ bytes: [UInt8]) throws(EngineError) {
        if failsToRestore.withLock({ flag in
            defer { flag = false }
            return flag
        }) {
            throw EngineError(.refused, "not now")
        }
        registers.withLock { registers in
            registers.arrived = []
            registers.machine.decode(bytes)
        }
    }
    func complete(_ completion: RequestCompletion) { registers.withLock { $0.arrived.append(completion) } }
    func violation(at page: PageIndex) { world.told.withLock { $0.append(page) } }
}

/// Runs on a thread of its own.
final class ThreadProcessor: ToyProcessor, @unchecked Sendable {
    private struct State {
        var machine: ToyMachine
        var arrived: [RequestCompletion] = []
        var wantsPause = true
        var isStanding = true
        var isEnded = false
        var failure: (any Error)?
    }
    let world: GuestWorld
    private let registers: Lock<State>
    /// Called while everything stands still and the state is taken.
    let whenStateIsTaken = Lock<(@Sendable () -> Void)?>(nil)
    private let thread = Lock<PlainThread?>(nil)

    init(_ machine: ToyMachine) {
        world = GuestWorld(machine.layout.index)
        registers = Lock(State(machine: machine))
        thread.withLock { $0 = PlainThread { self.run() } }
    }

    var machine: ToyMachine { registers.withLock { $0.machine } }

    func pause() {
        registers.withLock { $0.wantsPause = true }
        registers.wake()
        registers.waitFor { $0.isStanding || $0.isEnded ? () : nil }
    }
    func resume() {
        registers.withLock { $0.wantsPause = false }
        registers.wake()
    }
    func state() -> [UInt8] {
        whenStateIsTaken.withLock { $0 }?()
        return registers.withLock { state in
            Self.takeIn(&state)
            return state.machine.encoded()
        }
    }
    func restore(_ bytes: [UInt8]) {
        registers.withLock { state in
            state.arrived = []
            state.machine.decode(bytes)
        }
    }
    func complete(_ completion: RequestCompletion) {
        registers.withLock { $0.arrived.append(completion) }
        registers.wake()
    }
    func violation(at page: PageIndex) { world.told.withLock { $0.append(page) } }

    /// Waits until it has nothing more to do; throws what went wrong. False after `milliseconds`.
    func waitUntilHalted(milliseconds: Int) throws -> Bool {
        try registers.waitFor(milliseconds: milliseconds) { (state) throws in
            if let failure = state.failure { throw failure }
            return state.machine.isHalted ? true : nil
        } ?? false
    }

    func end() {
        registers.withLock { $0.isEnded = true }
        registers.wake()
        thread.withLock { thread in
            thread?.join()
            thread = nil
        }
    }

    private static func takeIn(_ state: inout State) {
        for completion in state.arrived { state.machine.complete(completion) }
        state.arrived = []
    }

    private func run() {
        var isBlocked = false
        while var machine = registers.waitFor({ state -> ToyMachine?? in
            if state.isEnded { return .some(nil) }
            if state.wantsPause {
                isBlocked = false
                if state.isStanding { return nil }
                state.isStanding = true
                registers.wake()
                return nil
            }
            if isBlocked && state.arrived.isEmpty { return nil }
            state.isStanding = false
            Self.takeIn(&state)
            return .some(state.machine)
        }) {
            do {
                isBlocked = try machine.run(in: world) != .stepped
                registers.withLock { $0.machine = machine }
                if machine.isHalted { registers.wake() }
            } catch {
                registers.withLock { state in
                    state.failure = error
                    state.isEnded = true
                }
                registers.wake()
            }
        }
    }
}
