// Checkpoints of the workload machine: every interleaving of short programs, and long programs by a seed, against the model.

import FaultHarness
import Foundation
import Testing
import VirtualDisks

@Suite(.serialized) struct WorkloadTests {
    @Test(arguments: WorkloadFamily.all.indices)
    func `every interleaving of a short program leaves the checkpoint and the machine as the model says`(_ index: Int) async throws {
        let family = WorkloadFamily.all[index]
        let start = Date()
        let runs = try await onPlainThread { try family.explore() }
        print("\(family.name): \(runs) interleavings in \(Date().timeIntervalSince(start)) s")
        fflush(nil)
        #expect(runs > 100)
    }

    @Test func `long programs with many checkpoints leave all of them and the machine as the model says`() async throws {
        let first = UInt64.random(in: 0...UInt64(UInt32.max))
        let count = WorkloadSize.scaled(400)
        print("seeds \(first) and \(count - 1) more")
        try await onPlainThread {
            for seed in first..<first + UInt64(count) { try RandomWorkload().run(seed: seed) }
        }
    }

    @Test func `what is read and written at random while overlays are committed in rounds is what it should be`() async throws {
        let first = UInt64.random(in: 0...UInt64(UInt32.max))
        let count = WorkloadSize.scaled(60)
        print("seeds \(first) and \(count - 1) more")
        try await onPlainThread { for seed in first..<first + UInt64(count) { try Self.commitInRounds(seed) } }
    }

    private static func commitInRounds(_ seed: UInt64) throws {
        let scene = try WorkloadScene(sectorCount: 320, consumesAtOnce: false)
        defer { scene.close() }
        let program = WorkloadProgram.random(seed: seed, length: 80, layout: scene.machine.layout, sectorCount: 320)
        // More groups than are merged while requests wait; of a slot that the program has not used yet.
        scene.onStep = { step in
            guard step == .saveDeviceState else { return }
            for group in 0..<24 {
                scene.machine.execute(.submit(slot: 0, .write, sectors: group * 8 + 1..<group * 8 + 3))
                scene.completeAll()
                scene.machine.execute(.consume(slot: 0))
            }
        }
        do {
            let report = try scene.run(program, Choices(seed: seed), ChoicePoints(steps: [.commitOverlays], whileCommitting: true))
            guard report.commits["vda"]?.rounds ?? 0 >= 1 else { throw TestFailure("no round while requests went on: \(report.commits)") }
        } catch { throw TestFailure("seed \(seed): \(error)") }
    }

    @Test func `machines at work on threads of their own are checkpointed right, again and again`() async throws {
        let first = UInt64.random(in: 0...UInt64(UInt32.max))
        let count = WorkloadSize.scaled(20)
        print("seeds \(first) and \(count - 1) more")
        try await onPlainThread {
            for seed in first..<first + UInt64(count) {
                let scene = try FailureScene(seed: seed)
                for number in 0..<12 { try scene.succeed("\(number)") }
                guard scene.runner.makesProgress() else { throw TestFailure("seed \(seed): the machine does not go on") }
                try scene.finish()
            }
        }
    }
}
