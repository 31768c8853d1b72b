// System D, property 3: a fault between any two steps leaves the old checkpoint or the new one.

import CheckpointCore
import FaultHarness
import Foundation
import MachineMemory
import Rollback
import Testing
import Units

/// What happens around the fault: one checkpoint that stands, writes, the next one, perhaps a rollback.
private struct Episode {
    static let pageCount = 48
    let seed: UInt64
    /// Whether writers go on after the call with the fault, before the rollback.
    let goesOn: Bool
    /// The pages that are written, and how often in an epoch.
    var writtenPages = Episode.pageCount
    var writeCount = 40

    /// Checkpoints with a fault at the n-th step of a kind. False when there were fewer.
    func run(
        _ kind: RollbackStrategyKind, _ rules: FaultAtStep, at target: (RollbackStep, Int), rollingBack: Bool,
        usedRules: (any RollbackRules)? = nil
    ) throws -> Bool {
        let memory = try GuestMemory("ram", byteLength: ByteCount(Self.pageCount * pageSize), sharing: .shared)
        var hasFired = false
        rules.disarm()
        try withRollback(kind, memory, rules: usedRules ?? rules) { rollback in
            var random = SeededGenerator(seed: seed)
            var model = Model(pageCount: Self.pageCount)
            try write(&random, rollback, &model, writeCount)
            try rollback.checkpoint(state: [1])
            // Steps in the background are those of the next checkpoint then.
            try rollback.settle()
            model.apply(.checkpoint([1]))
            let old = model
            try write(&random, rollback, &model, writeCount)
            rules.arm(target.0, target.1)
            var new = model
            new.apply(.checkpoint([2]))
            if rollingBack {
                do throws(EngineError) { _ = try rollback.rollback() } catch { try check(error, rules) }
            } else {
                do throws(EngineError) {
                    try rollback.checkpoint(state: [2])
                    try rollback.settle()
                } catch { try check(error, rules) }
            }
            hasFired = rules.hasFired
            rules.disarm()
            if goesOn, !rollingBack { try write(&random, rollback, &model, writeCount) }
            let state = try rollback.rollback()
            guard let stands = state == old.state ? old : (state == new.state && !rollingBack ? new : nil) else { throw Mismatch("state \(state)") }
            try memory.requireEqual(stands.checkpoint, "\(kind), state \(state)")
            try goOn(&random, rollback, stands)
        }
        return hasFired
    }

    /// Everything works as if nothing had been.
    private func goOn(_ random: inout SeededGenerator, _ rollback: MemoryRollback, _ stands: Model) throws {
        var model = stands
        model.memory = stands.checkpoint
        for round in UInt8(3)..<6 {
            try write(&random, rollback, &model, 20)
            try rollback.checkpoint(state: [round])
            model.apply(.checkpoint([round]))
            try write(&random, rollback, &model, 20)
            model.apply(.rollback)
            try require(try rollback.rollback() == [round], "the state of checkpoint \(round)")
            try rollback.memory.requireEqual(model.memory, "checkpoint \(round) after a fault")
        }
    }

    private func write(_ random: inout SeededGenerator, _ rollback: MemoryRollback, _ model: inout Model, _ count: Int) throws {
        for _ in 0..<count {
            let event = TraceEvent.write(
                offset: random.below(writtenPages) * pageSize + random.below(pageSize - 8), count: 8, value: UInt8(random.below(256)))
            try rollback.memory.write(event, announcingTo: rollback)
            model.apply(event)
        }
    }

    private func check(_ error: EngineError, _ rules: FaultAtStep) throws {
        guard rules.hasFired else { throw error }
    }
}

@Suite(.serialized) struct FaultTests {
    @Test func `property 3: a fault between any two steps yields the old or the new checkpoint, never a mix`() async throws {
        let seen = try await onPlainThread {
            let seed = newSeed()
            var seen: [RollbackStrategyKind: Set<RollbackStep>] = [:]
            for kind in RollbackStrategyKind.allCases {
                for (rollingBack, goesOn) in [(false, false), (false, true), (true, false)] {
                    let rules = FaultAtStep()
                    for step in RollbackStep.allCases {
                        for number in 1... {
                            do {
                                let episode = Episode(seed: seed, goesOn: goesOn)
                                guard try episode.run(kind, rules, at: (step, number), rollingBack: rollingBack) else { break }
                                seen[kind, default: []].insert(step)
                            } catch {
                                throw Mismatch(
                                    "seed \(seed), \(kind), \(step) \(number), rolling back \(rollingBack), going on \(goesOn): \(error)")
                            }
                        }
                    }
                }
            }
            return seen
        }
        #expect(seen[.postImageLocal] == [.begun, .copied, .protected, .committed, .drained, .restored])
        #expect(seen[.postImageRemote] == [.begun, .protected, .copied, .marked, .committed, .restored])
        #expect(seen[.postImageBitmap] == [.begun, .protected, .committed, .copied, .restored])
        #expect(seen[.postImageTwoBitmaps] == [.begun, .protected, .committed, .drained, .restored])
        #expect(seen[.postImageBlockStates] == [.begun, .protected, .restored])
        #expect(seen[.preImageLog] == [.begun, .protected, .cleared, .restored])
    }

    @Test func `mutant: strategy 4 without copying first loses the checkpoint`() async throws {
        try await onPlainThread {
            try Self.writeWhileCopyingWaits(NoCopyFirst(copiesFirst: true))
            do { try Self.writeWhileCopyingWaits(NoCopyFirst(copiesFirst: false)) } catch is Mismatch { return }
            throw Mismatch("the mutant was not caught")
        }
    }

    private static func writeWhileCopyingWaits(_ rules: NoCopyFirst) throws {
        let memory = try GuestMemory("ram", byteLength: .kibibytes(256))
        try withRollback(.postImageTwoBitmaps, memory, rules: rules) { rollback in
            defer { rules.letGo() }
            // Every second page, so that each is a piece of its own.
            for page in stride(from: 0, to: 64, by: 2) { unsafe memory.bytes[page * pageSize] = 1 }
            let expected = unsafe [UInt8](memory.bytes)
            try rollback.checkpoint(state: [1])
            for page in stride(from: 0, to: 64, by: 2) { unsafe memory.bytes[page * pageSize] = 2 }
            rules.letGo()
            try rollback.settle()
            _ = try rollback.rollback()
            try memory.requireEqual(expected, "strategy 4")
        }
    }

    @Test func `mutant: strategy 6 replayed forward loses the checkpoint`() async throws {
        try await onPlainThread {
            let seed = newSeed()
            let faults = FaultAtStep()
            // Few pages, so that the same are written before and after the fault; few writes, so that the log has room for both.
            let episode = Episode(seed: seed, goesOn: true, writtenPages: 16, writeCount: 12)
            let target = (RollbackStep.cleared, 1)
            try require(try episode.run(.preImageLog, faults, at: target, rollingBack: false), "there was no fault")
            do {
                _ = try episode.run(.preImageLog, faults, at: target, rollingBack: false, usedRules: ForwardReplay(faults: faults))
            } catch is Mismatch { return }
            throw Mismatch("seed \(seed): the mutant was not caught")
        }
    }
}
