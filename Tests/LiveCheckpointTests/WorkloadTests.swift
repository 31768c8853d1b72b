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
        let count = WorkloadSize.scaled(600)
        print("seeds \(first) and \(count - 1) more")
        try await onPlainThread {
            for seed in first..<first + UInt64(count) { try RandomWorkload().run(seed: seed) }
        }
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
