// The n-th call of every kind fails, for every n, once and for ever.
//
// Invariant: after a fault the store is as before the operation or as after it, and the operation says which
// unless it threw.

import CheckpointStore
import FaultHarness
import Media
import StoreTesting
import Testing
import Units

/// A call that fails, and what the store may throw because of it.
struct InjectedFault: Sendable, CustomStringConvertible {
    var rule: FaultRule
    var codes: Set<StoreError.Code>
    var description: String { "\(rule.operation) \(rule.occurrence): \(rule.effect)" }

    private static func effects(on operation: OperationKind) -> [(FaultEffect, Set<StoreError.Code>)] {
        let broken: (FaultEffect, Set<StoreError.Code>) = (.fail(.ioFailed), [.ioFailed, .storeFailed])
        let short: (FaultEffect, Set<StoreError.Code>) =
            (.shorten(to: ByteCount(512), .ioFailed), [.ioFailed, .storeFailed])
        let full: (FaultEffect, Set<StoreError.Code>) = (.fail(.noSpace), [.noSpace, .storeFailed])
        switch operation {
        case .read: return [broken, short]
        case .write: return [broken, full, short]
        case .reserve: return [full]
        case .flush:
            return [FlushFailure.keepWrites, .dropWrites, .revertWrites, .mixed(seed: 3)].map {
                (.failFlush($0), [.storeFailed])
            }
        case .discard, .resize, .refreshSize, .lock, .unlock, .queryLock: return [broken]
        }
    }

    /// Every fault of an operation that makes `count` calls of this kind. Of many reads, some are chosen.
    static func all(on operation: OperationKind, count: Int) -> [InjectedFault] {
        let stride = operation == .read && !ProgrammeSize.isLong ? max(1, count / 12) : 1
        return Swift.stride(from: 1, through: count, by: stride).flatMap { number in
            effects(on: operation).flatMap { effect, codes in
                [Occurrence.nth(number), .from(number)].map {
                    InjectedFault(rule: FaultRule(operation, $0, effect), codes: codes)
                }
            }
        }
    }
}

/// Runs operations while calls fail.
struct FaultProgramme: Sendable {
    var defects: EngineDefects = []

    private func environment(_ seed: UInt64) -> StoreEnvironment {
        var environment = testEnvironment(seed: seed)
        environment.defects = defects
        return environment
    }

    /// Runs the last operation of `sequence` once for every fault. Returns how many faults struck.
    func run(_ sequence: [StoreOperation], kinds: [OperationKind] = OperationKind.allCases) throws -> Int {
        let prepared = BaseStore.young.device.fork()
        var model = BaseStore.young.model
        let store = try CheckpointStore.open(FaultMedium(prepared), environment: testEnvironment(seed: 77))
        for operation in sequence.dropLast() {
            let step = Step(operation, on: model)
            try step.perform(on: store)
            model = step.after
        }
        store.close()
        let step = Step(sequence[sequence.count - 1], on: model)
        let calls = try countCalls(step, on: prepared.fork())
        var struck = 0
        for kind in kinds {
            for (number, fault) in InjectedFault.all(on: kind, count: calls.callCount(of: kind)).enumerated() {
                do { if try run(step, fault, on: prepared.fork(), seed: UInt64(number)) { struck += 1 } } catch {
                    throw Mismatch("\(sequence), \(fault): \(error)")
                }
            }
        }
        return struck
    }

    private func countCalls(_ step: Step, on device: SimulatedDevice) throws -> FaultPlan {
        let store = try CheckpointStore.open(FaultMedium(device), environment: environment(5))
        defer { store.close() }
        try step.perform(on: store)
        return device.faults
    }

    private func run(_ step: Step, _ fault: InjectedFault, on device: SimulatedDevice, seed: UInt64) throws -> Bool {
        device.faults.add(fault.rule)
        let medium = FaultMedium(device)
        defer { medium.close() }
        var store: CheckpointStore?
        var failure: StoreError?
        do {
            let opened = try CheckpointStore.open(medium, environment: environment(5))
            store = opened
            try step.perform(on: opened)
        } catch let error as StoreError { failure = error }
        let hasStruck = device.faults.firedCount > 0
        device.faults.clear()
        if let failure, !fault.codes.contains(failure.code) { throw Mismatch("threw \(failure.code): \(failure)") }
        // Deleting goes on when an index can't be read, says so, and leaves the space that it could not find.
        let check = StoreCheck(
            step: step, isAcknowledged: failure == nil, seed: seed, allowsLostSpace: failure != nil && fault.rule.operation == .read)
        if let store { try self.check(store, failure, check) }
        medium.close()
        if fault.rule.operation == .flush {
            for mode in [CrashMode.none, .all, .randomSubset] { try check.run(on: device.powerCut(mode, seed: seed).device) }
        }
        try check.run(on: device)
        return hasStruck
    }

    /// The handle that met the fault refuses everything after a failed flush, and still reads after anything else.
    private func check(_ store: CheckpointStore, _ failure: StoreError?, _ check: StoreCheck) throws {
        guard failure?.code == .storeFailed else {
            return try store.requireEqual(try check.state(of: store).checkpoints, deep: false)
        }
        guard try fails(with: .storeFailed, { _ = try store.snapshot() }) else {
            throw Mismatch("the handle goes on after a flush has failed")
        }
    }

    /// Runs all of `sequences` on two threads. Returns how many faults struck.
    func run(_ sequences: [[StoreOperation]]) throws -> Int {
        keepFreedMemory()
        let state = Guarded((next: 0, struck: 0, failure: nil as (any Error)?))
        PlainThreads.run(2) { _ in
            while let sequence = state.with({ state -> [StoreOperation]? in
                guard state.failure == nil, state.next < sequences.count else { return nil }
                defer { state.next += 1 }
                return sequences[state.next]
            }) {
                do {
                    let struck = try run(sequence)
                    state.with { $0.struck += struck }
                } catch { state.with { $0.failure = $0.failure ?? error } }
            }
        }
        let (struck, failure) = state.with { ($0.struck, $0.failure) }
        if let failure { throw failure }
        return struck
    }
}

@Suite(.serialized) struct FaultInjectionTests {
    @Test func `any call that fails leaves the store as it was or as it should become`() async throws {
        let struck = try await onPlainThread {
            var workloads = (1...(ProgrammeSize.isQuick ? 1 : 2)).flatMap { sequences(of: $0) }
            workloads += sequences(of: 3).enumerated().filter { ProgrammeSize.isLong || $0.offset % 27 == 5 }.map(\.element)
            let received: [StoreOperation] = [.receive, .receiveInSteps, .receiveResumed, .prune, .branch, .deleteAny, .point]
            workloads += (ProgrammeSize.isQuick ? [] : received).map { [$0] }
            workloads += ProgrammeSize.isLong ? sequences(of: 2, from: received) : []
            return try FaultProgramme().run(workloads)
        }
        print("faults injected: \(struck)")
        #expect(struck > (ProgrammeSize.isQuick ? 1_000 : 3_000))
    }

    @Test func `a writer verifies a store whose last flush failed before it builds on it`() throws {
        try requirePoisonIsVerified([])
    }

    @Test func `a medium that fills up at any byte throws no space and loses nothing`() async throws {
        try await onPlainThread {
            for operation in [StoreOperation.saveFull, .saveIncremental, .commitGroup] {
                let step = Step(operation, on: BaseStore.young.model)
                for room in 0..<12 {
                    let device = BaseStore.young.device.fork()
                    device.setCapacityLimit(device.allocated + .kibibytes(UInt64(room) * 16))
                    let store = try CheckpointStore.open(FaultMedium(device), environment: testEnvironment(seed: 3))
                    var isDone = true
                    do { try step.perform(on: store) } catch let error as StoreError where [.noSpace, .storeFailed].contains(error.code) {
                        isDone = false
                    }
                    store.close()
                    device.setCapacityLimit(nil)
                    try StoreCheck(step: step, isAcknowledged: isDone, seed: 1).run(on: device)
                }
            }
        }
    }
}

/// A flush fails, a block is damaged, and then somebody wants to save.
func requirePoisonIsVerified(_ defects: EngineDefects) throws {
    let device = BaseStore.young.device.fork()
    let first = try CheckpointStore.open(FaultMedium(device), environment: testEnvironment(seed: 1))
    // The last flush of a save is the one of its slots.
    let step = Step(.saveFull, on: BaseStore.young.model)
    let flushes = try { () throws -> Int in
        let copy = BaseStore.young.device.fork()
        let store = try CheckpointStore.open(FaultMedium(copy), environment: testEnvironment(seed: 1))
        defer { store.close() }
        try step.perform(on: store)
        return copy.faults.callCount(of: .flush)
    }()
    let seen = device.faults.callCount(of: .flush)
    device.faults.add(FaultRule(.flush, .nth(flushes - seen), .failFlush(.dropWrites)))
    guard try fails(with: .storeFailed, { try step.perform(on: first) }) else { throw Mismatch("the flush did not fail") }
    first.close()
    let block = try reachableRanges(of: device).first { $0.count > 200 }
    guard let block else { throw Mismatch("nothing is reachable") }
    device.flipBit(1, at: MediumOffset(block.lowerBound + 100))
    var environment = testEnvironment(seed: 2)
    environment.defects = defects
    let second = try CheckpointStore.open(FaultMedium(device), environment: environment)
    defer { second.close() }
    guard try fails(with: .corrupt, { try Step(.saveEmpty, on: BaseStore.young.model).perform(on: second) }) else {
        throw Mismatch("a damaged store was built on after a failed flush")
    }
}
