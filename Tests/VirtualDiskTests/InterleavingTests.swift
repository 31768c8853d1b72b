// Every interleaving of a few requests with a checkpoint, and every mutant caught by one of them.

import FaultHarness
import Foundation
import Testing
import Threading
import VirtualDisks

/// A set of runs that is explored completely.
struct Exploration: Sendable {
    var name: String
    /// How many requests.
    var length = 0
    /// What they may touch.
    var places: [Range<Int>] = []
    /// These instead.
    var fixed: [Scenario] = []
    var options: [TraceOptions]

    /// Only some scenarios, chosen by this seed; nil: all.
    var sampleSeed: UInt64?

    var scenarios: [Scenario] {
        guard fixed.isEmpty else { return fixed }
        let kinds = places.flatMap { place in [DiskOperation.read, .write].map { ($0, place) } }
        let all = (0..<length).reduce([[]]) { lists, _ in lists.flatMap { list in kinds.map { list + [$0] } } }
        guard let sampleSeed else { return all.map { Scenario($0) } }
        var generator = SeededGenerator(seed: sampleSeed)
        return all.shuffled(using: &generator).prefix(24).map { Scenario($0) }
    }

    /// Runs everything on two threads. Throws the first failure; returns how many runs there were.
    func explore(_ rules: any DiskRules) throws -> Int {
        let all = scenarios.flatMap { scenario in options.map { (scenario, $0) } }
        let state = Lock<(next: Int, runs: Int, failure: TestFailure?)>((0, 0, nil))
        PlainThreads.run(2) { _ in
            do {
                let pool = try TraceMemory()
                while let (scenario, options) = state.withLock({ state -> (Scenario, TraceOptions)? in
                    guard state.next < all.count, state.failure == nil else { return nil }
                    defer { state.next += 1 }
                    return all[state.next]
                }) {
                    let runs = try explore(scenario, options, rules, pool)
                    state.withLock { $0.runs += runs }
                }
            } catch { state.withLock { $0.failure = $0.failure ?? TestFailure("\(name): \(error)") } }
        }
        let (runs, failure) = state.withLock { ($0.runs, $0.failure) }
        if let failure { throw failure }
        return runs
    }

    private func explore(_ scenario: Scenario, _ options: TraceOptions, _ rules: any DiskRules, _ pool: TraceMemory) throws -> Int {
        var choices = EveryChoice()
        var runs = 0
        repeat {
            do { try Trace<EveryChoice>(scenario, options, rules: rules, pool).run(&choices) } catch {
                throw TestFailure("\(error), after \(scenario); \(options.mode), choices \(choices)")
            }
            runs += 1
        } while choices.advance()
        return runs
    }

    static let fine: [TraceOptions] = [ManualBackend.Mode.effectAtIssue, .effectAtCompletion].map {
        TraceOptions(mode: $0, hasJobEvents: true, processorEvents: 1)
    }
    static let coarse = [TraceOptions()]

    /// Two sectors of a group, one of the next, both at their border, the whole short group at the end.
    static let two = Exploration(name: "two requests", length: 2, places: [0..<1, 1..<2, 8..<9, 7..<9, 16..<19], options: fine)
    static let three = Exploration(name: "three requests", length: 3, places: [0..<1, 1..<2, 8..<9, 0..<2], options: coarse)
    /// A read that is issued again while the group that it is about has come into the overlay, and is being written there.
    static let overtaken = Exploration(
        name: "an overtaken read", fixed: [Scenario([(.read, 0..<1), (.write, 1..<2), (.write, 0..<1)])], options: Array(fine[1...]))
    /// All of them only in long runs: half a million interleavings.
    static let four = Exploration(
        name: "four requests", length: 4, places: [0..<1, 1..<2], options: coarse,
        sampleSeed: ProcessInfo.processInfo.environment["CKSTORE_LONG_TESTS"] == nil ? UInt64.random(in: 0...UInt64.max) : nil)
}

@Suite(.serialized) struct InterleavingTests {
    @Test(arguments: 0..<4)
    func `claim 23: pending writes reach both disks, new ones the ongoing one, pending reads both memories, new ones the ongoing one`(
        _ number: Int
    ) async throws {
        let exploration = [Exploration.two, .three, .four, .overtaken][number]
        let start = Date()
        let runs = try await onPlainThread { try exploration.explore(StandardDiskRules()) }
        let sample = exploration.sampleSeed.map { "those of seed \($0)" } ?? "all"
        print("\(exploration.name), \(sample): \(runs) interleavings in \(Date().timeIntervalSince(start)) s")
        #expect(runs > 500)
    }

    @Test(arguments: Mutant.allCases)
    func `claims 15, 16, 17, 18, 25, 26, 28: a rule that is not followed is noticed`(_ mutant: Mutant) async throws {
        let failure = try await onPlainThread {
            for exploration in [Exploration.two, .overtaken, .three] {
                do { _ = try exploration.explore(BrokenRules(mutant)) } catch { return "\(error)" }
            }
            return ""
        }
        print("\(mutant): \(failure)")
        #expect(!failure.isEmpty)
    }

    @Test func `long random traces keep the invariant`() async throws {
        let seed = UInt64.random(in: 0...UInt64.max)
        print("seed \(seed)")
        try await onPlainThread {
            let pool = try TraceMemory(.kibibytes(512))
            for number in 0..<400 as Range<UInt64> {
                var choices = RandomChoice(seed: seed &+ number)
                var options = TraceOptions(mode: .effectAtCompletion, hasJobEvents: true, processorEvents: 30, hasEffectEvents: true)
                if choices.choose(4) == 0 { options.mode = .effectAtIssue }
                do {
                    let scenario = Scenario(seed: seed &+ number, length: 50)
                    try Trace<RandomChoice>(scenario, options, rules: StandardDiskRules(), pool).run(&choices)
                } catch { throw TestFailure("\(error), seed \(seed &+ number)") }
            }
        }
    }
}
