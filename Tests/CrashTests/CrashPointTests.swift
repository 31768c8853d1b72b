// Power is cut at every write and flush of every workload of up to three operations.
//
// Invariant: a sequence is explored over its last operation only: its beginning is a sequence of its own.

import CheckpointStore
import FaultHarness
import Foundation
import Media
import StoreTesting
import Testing
import Units

/// Explores the crashes of workloads over the real store.
struct CrashProgramme: Sendable {
    var name: String
    var plan: CrashExplorer.Plan
    var base = BaseStore.young
    var environment: @Sendable (UInt64) -> StoreEnvironment = { testEnvironment(seed: $0) }
    /// Makes the medium break its promises while the workload runs.
    var defect: SeededDefect?
    /// Of how many images one is crashed again while it recovers; nil: none.
    var recoveryPeriod: UInt64?

    private func name(_ sequence: [StoreOperation]) -> String {
        ([name] + sequence.map { "\($0)" }).joined(separator: "-")
    }

    /// Runs `sequence` and cuts power within its last operation.
    func explore(_ sequence: [StoreOperation], seed: UInt64) throws -> CrashReport {
        let device = base.device.fork()
        let name = name(sequence)
        let store = try CheckpointStore.open(FaultMedium(device), environment: environment(seed))
        defer { store.close() }
        var model = base.model
        for operation in sequence.dropLast() {
            let step = Step(operation, on: model)
            try step.perform(on: store)
            model = step.after
        }
        let step = Step(sequence[sequence.count - 1], on: model)
        return try CrashExplorer(name, seed: seed, plan: plan).explore(device) { device in
            defect?.install(on: device)
            try step.perform(on: store)
            device.mark("acknowledged")
        } check: { image in
            let check = StoreCheck(step: step, isAcknowledged: !image.marks.isEmpty, seed: image.fingerprint)
            if let recoveryPeriod, image.fingerprint % recoveryPeriod == 0 {
                try crashAgain(image.device.fork(), check, name: name, seed: seed)
            }
            try check.run(on: image.device)
        }
    }

    /// Cuts power while the store is opened and saved into for the first time after a crash.
    private func crashAgain(_ device: SimulatedDevice, _ check: StoreCheck, name: String, seed: UInt64) throws {
        var plan = CrashExplorer.Plan()
        plan.exhaustiveModes = [.none, .all, .prefix, .dropOne]
        plan.randomImageCount = 20
        let outcome = Guarded<Step?>(nil)
        try CrashExplorer(name + "-again", seed: seed, plan: plan).explore(device) { device in
            let store = try CheckpointStore.open(FaultMedium(device), environment: environment(~seed))
            defer { store.close() }
            let next = Step(.saveIncremental, on: try check.state(of: store))
            outcome.with { $0 = next }
            try next.perform(on: store)
            device.mark("acknowledged")
        } check: { image in
            guard let step = outcome.with({ $0 }) else { throw Mismatch("nothing was recovered") }
            try StoreCheck(step: step, isAcknowledged: !image.marks.isEmpty, seed: image.fingerprint).run(on: image.device)
        }
    }

    /// Explores all of `sequences` on several threads. Returns how many images were checked.
    func explore(_ sequences: [[StoreOperation]], workers: Int = 2) throws -> CrashReport {
        keepFreedMemory()
        // A replay is about one of them.
        let replayed = ProcessInfo.processInfo.environment[CrashExplorer.replayVariable]?.split(separator: " ").first
        let indexes = sequences.indices.filter { replayed == nil || name(sequences[$0]) == replayed! }
        let state = Guarded((next: 0, report: CrashReport(), failure: nil as (any Error)?))
        PlainThreads.run(workers) { _ in
            while let index = state.with({ state -> Int? in
                guard state.failure == nil, state.next < indexes.count else { return nil }
                defer { state.next += 1 }
                return indexes[state.next]
            }) {
                do {
                    let report = try explore(sequences[index], seed: UInt64(index) + 1)
                    state.with { $0.report.add(report) }
                } catch { state.with { $0.failure = $0.failure ?? error } }
            }
        }
        let (report, failure) = state.with { ($0.report, $0.failure) }
        if let failure { throw failure }
        if replayed != nil { return CrashReport.replay }
        return report
    }
}

@Suite(.serialized) struct CrashPointTests {
    private static func plan(random: Int) -> CrashExplorer.Plan {
        var plan = CrashExplorer.Plan()
        plan.randomImageCount = ProgrammeSize.scaled(random)
        return plan
    }

    @Test func `every workload of up to three operations survives a power cut at any write or flush`() async throws {
        let report = try await onPlainThread {
            let programme = CrashProgramme(name: "young", plan: Self.plan(random: 250), recoveryPeriod: ProgrammeSize.recoveryPeriod)
            return try programme.explore(ProgrammeSize.sequences)
        }
        print("crash points of a young store: \(report)")
        #expect(report.isReplay || report.imageCount > (ProgrammeSize.isQuick ? 500 : 50_000))
    }

    @Test func `workloads on a store that has gone round its slot ring survive a power cut`() async throws {
        let report = try await onPlainThread {
            let programme = CrashProgramme(
                name: "old", plan: Self.plan(random: 330), base: .old,
                recoveryPeriod: ProgrammeSize.recoveryPeriod)
            return try programme.explore((1...2).flatMap { sequences(of: $0) })
        }
        print("crash points of an old store: \(report)")
        #expect(report.isReplay || report.imageCount > (ProgrammeSize.isQuick ? 200 : 5_000))
    }

    @Test func `compacting a catalog of many checkpoints survives a power cut`() async throws {
        let report = try await onPlainThread {
            let base = BaseStore.crowded
            let store = try CheckpointStore.open(FaultMedium(base.device.fork()), environment: testEnvironment(seed: 4))
            let rewritten = try store.compactAll().rewrittenNodes
            store.close()
            guard rewritten > 3 else { throw Mismatch("\(rewritten) nodes were old: nothing to crash") }
            // Many checkpoints take long to check: not every subset of the writes.
            var plan = Self.plan(random: 120)
            plan.exhaustiveModes = [.none, .all, .prefix, .dropOne]
            let programme = CrashProgramme(name: "crowded", plan: plan, base: base, recoveryPeriod: ProgrammeSize.recoveryPeriod)
            let workloads: [[StoreOperation]] = [[.compact], [.delete, .compact], [.compact, .saveIncremental], [.compact, .delete]]
            return try programme.explore(ProgrammeSize.isQuick ? Array(workloads.prefix(1)) : workloads)
        }
        print("crash points of a crowded catalog: \(report)")
        #expect(report.isReplay || report.imageCount > (ProgrammeSize.isQuick ? 50 : 500))
    }

    @Test func `branches, deletions in any order and names that move survive a power cut`() async throws {
        let report = try await onPlainThread {
            let programme = CrashProgramme(name: "branching", plan: Self.plan(random: 120), recoveryPeriod: ProgrammeSize.recoveryPeriod)
            return try programme.explore((1...(ProgrammeSize.isQuick ? 2 : 4)).flatMap { sequences(of: $0, from: StoreOperation.branching) })
        }
        print("crash points of a branching store: \(report)")
        #expect(report.isReplay || report.imageCount > (ProgrammeSize.isQuick ? 200 : 20_000))
    }

    @Test func `what comes from another store, in steps or cut short, survives a power cut, and can be gone on with`() async throws {
        let report = try await onPlainThread {
            let programme = CrashProgramme(name: "receiving", plan: Self.plan(random: 120), recoveryPeriod: ProgrammeSize.recoveryPeriod)
            return try programme.explore(ProgrammeSize.receiving)
        }
        print("crash points of a store that receives: \(report)")
        #expect(report.isReplay || report.imageCount > (ProgrammeSize.isQuick ? 200 : 5_000))
    }

    @Test func `persistent memory may evict any line at any time`() async throws {
        let report = try await onPlainThread {
            var plan = CrashExplorer.Plan()
            plan.exhaustiveModes = []
            plan.randomModes = [.persistentMemory]
            plan.randomImageCount = ProgrammeSize.scaled(40)
            return try CrashProgramme(name: "pmem", plan: plan).explore(ProgrammeSize.sequences)
        }
        print("persistent memory: \(report)")
        #expect(report.isReplay || report.imageCount > (ProgrammeSize.isQuick ? 50 : 8_000))
    }
}
