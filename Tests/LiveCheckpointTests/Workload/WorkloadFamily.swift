// Families of short programs of which every interleaving with a checkpoint is run, and long programs by a seed.

import FaultHarness
import Foundation
import LiveCheckpoint
import Threading
import Units
import VirtualDisks

/// How much is run.
enum WorkloadSize {
    static let isLong = ProcessInfo.processInfo.environment["CKSTORE_LONG_TESTS"] == "1"
    static let isQuick: Bool = {
        #if DEBUG
            return !isLong
        #else
            return !isLong && ProcessInfo.processInfo.environment["CKSTORE_QUICK_TESTS"] == "1"
        #endif
    }()

    /// How many of something are tried where an ordinary run tries `count`.
    static func scaled(_ count: Int) -> Int { isLong ? count * 20 : isQuick ? max(1, count / 10) : count }
}

/// Programs, and the points at which their interleavings differ.
struct WorkloadFamily: Sendable {
    var name: String
    var programs: [[Instruction]]
    /// So many instructions of each are executed before the checkpoint begins.
    var instructionsBefore = 0
    /// So many are executed, and their requests completed, as soon as the machine goes on.
    var instructionsAtResume = 0
    var points: ChoicePoints
    var effects: [HeldImage.Effect] = [.atCompletion]
    /// Reading and writing overlays are events of their own.
    var holdsJobs = false

    /// Runs everything on two threads, with a machine for each program. Throws the first failure; returns how many runs there were.
    func explore(_ rules: any DiskRules = StandardDiskRules()) throws -> Int {
        let all = programs.flatMap { program in effects.map { (program, $0) } }
        let state = Lock<(next: Int, runs: Int, failure: TestFailure?)>((0, 0, nil))
        PlainThreads.run(2) { _ in
            while let (program, effect) = state.withLock({ state -> ([Instruction], HeldImage.Effect)? in
                guard state.next < all.count, state.failure == nil else { return nil }
                defer { state.next += 1 }
                return all[state.next]
            }) {
                do {
                    let runs = try explore(program, effect, rules)
                    state.withLock { $0.runs += runs }
                } catch { state.withLock { $0.failure = $0.failure ?? TestFailure("\(name): \(error)") } }
            }
        }
        let (runs, failure) = state.withLock { ($0.runs, $0.failure) }
        if let failure { throw failure }
        return runs
    }

    private func explore(_ program: [Instruction], _ effect: HeldImage.Effect, _ rules: any DiskRules) throws -> Int {
        let scene = try WorkloadScene(rules: rules, consumesAtOnce: true, effect: effect, holdsJobs: holdsJobs)
        defer { scene.close() }
        let choices = Choices()
        var runs = 0
        repeat {
            runs += 1
            do { try scene.run(program, choices, points, before: instructionsBefore, atResume: instructionsAtResume) } catch {
                throw TestFailure("\(error); run \(runs) of \(program), effects \(effect), \(choices), steps \(scene.steps.map(\.rawValue))")
            }
        } while choices.advance()
        return runs
    }

    // MARK: The families

    /// All sequences of requests to some places, each with a slot of its own, then a write to every page.
    private static func programs(_ length: Int, _ places: [Range<Int>], slots: [Int], touches: Bool = true) -> [[Instruction]] {
        let kinds = places.flatMap { place in [DiskOperation.read, .write].map { ($0, place) } }
        let sequences = (0..<length).reduce([[]]) { (sequences: [[Instruction]], number) in
            sequences.flatMap { sequence in
                kinds.map { sequence + [.submit(slot: slots[number], $0.0, sectors: $0.1)] }
            }
        }
        return sequences.map { $0 + (touches ? [.touchAll] : []) }
    }

    /// Two requests: the same sector, its neighbour in the group, one across the border of two groups; before, in and after the stop.
    static let instant = WorkloadFamily(
        name: "two requests around the instant", programs: programs(2, [0..<1, 1..<2, 7..<9], slots: [0, 1]),
        points: ChoicePoints(steps: Set<LiveStep>([.stop, .captureDeviceState, .reissueReads]).union(WorkloadSize.isLong ? [.saveDeviceState] : [])),
        effects: WorkloadSize.isQuick ? [.atCompletion] : [.atIssue, .atCompletion])

    /// Three requests; slots share pages.
    static let three = WorkloadFamily(
        name: "three requests", programs: programs(3, WorkloadSize.isQuick ? [0..<1] : [0..<1, 1..<2], slots: [0, 2, 1]),
        points: ChoicePoints(steps: [.stop, .reissueReads]))

    /// Four requests on one sector: order alone.
    static let four = WorkloadFamily(
        name: "four requests", programs: programs(4, [0..<1], slots: [0, 1, 2, 3], touches: WorkloadSize.isLong),
        points: ChoicePoints(steps: [.stop, .reissueReads]))

    /// A read under way whose page is written, then writes to its group and to its own sector, with the overlay's workers in any order.
    static let reissue = WorkloadFamily(
        name: "a read issued again",
        programs: [0..<1, 7..<9].map { place in
            [
                .submit(slot: 0, .read, sectors: place), .touch(page: 0), .submit(slot: 3, .write, sectors: 3..<4),
                .submit(slot: 4, .write, sectors: place),
            ]
        }, instructionsBefore: 1, points: ChoicePoints(steps: [.reissueReads]), holdsJobs: true)

    /// A request under way, then another and writes to pages that are saved already, being saved, or not yet.
    static let saving = WorkloadFamily(
        name: "while memory is saved",
        programs: [DiskOperation.read, .write].flatMap { first in
            [DiskOperation.read, .write].map { second in
                [.submit(slot: 0, first, sectors: 0..<1), .submit(slot: 3, second, sectors: 0..<2), .touch(page: 3), .touch(page: 0)]
            }
        }, instructionsBefore: 1, points: ChoicePoints(steps: [.saveDeviceState, .clearMarks], whileSaving: true))

    /// Requests while the image is copied and the overlay goes back into it.
    static let commit = WorkloadFamily(
        name: "while the overlay is committed",
        programs: [
            [.submit(slot: 0, .write, sectors: 7..<9), .submit(slot: 1, .read, sectors: 8..<9), .submit(slot: 2, .write, sectors: 0..<1)],
            [.submit(slot: 0, .write, sectors: 0..<1), .submit(slot: 1, .write, sectors: 1..<2), .submit(slot: 2, .read, sectors: 0..<2)],
            [.submit(slot: 0, .write, sectors: 16..<19), .submit(slot: 1, .read, sectors: 17..<18), .submit(slot: 2, .write, sectors: 7..<9)],
        ], instructionsAtResume: 1, points: ChoicePoints(steps: [.clearMarks, .copyDisks, .commitOverlays], whileCommitting: true))

    static let all = [instant, three, reissue, saving, commit] + (WorkloadSize.isQuick ? [] : [four])
}

/// Long programs on one machine, checkpoint after checkpoint, everything chosen by a seed.
struct RandomWorkload {
    var checkpoints = 12
    var length = 30
    var rules: any DiskRules = StandardDiskRules()

    func run(seed: UInt64) throws {
        // A small machine, where requests meet often, or a larger one.
        let isSmall = seed & 8 == 0
        let (pageCount, sectorCount) = isSmall ? (6, WorkloadScene.sectorCount) : (12, 44)
        let scene = try WorkloadScene(
            pageCount: pageCount, sectorCount: sectorCount, rules: rules, consumesAtOnce: seed & 1 == 0, effect: seed & 2 == 0 ? .atIssue : .atCompletion,
            holdsJobs: seed & 4 == 0)
        defer { scene.close() }
        for number in 0..<checkpoints {
            let seed = seed << 8 | UInt64(number)
            var program = WorkloadProgram.random(seed: seed, length: length, layout: scene.machine.layout, sectorCount: sectorCount)
            if scene.consumesAtOnce { program.removeAll { if case .consume = $0 { true } else { false } } }
            do { try scene.run(program, Choices(seed: seed), .all) } catch {
                throw TestFailure("\(error); checkpoint \(number) of seed \(seed >> 8), steps \(scene.steps.map(\.rawValue))")
            }
        }
    }
}
