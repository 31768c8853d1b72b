// System D, properties 1, 2 and 4: what a rollback brings back, and what it costs to be able to.

import CheckpointCore
import FaultHarness
import Foundation
import MachineMemory
import Rollback
import Testing
import Units

@Suite(.serialized) struct TraceTests {
    private static let pageCount = 96

    @Test func `property 1: after a rollback memory equals the checkpoint byte for byte`() async throws {
        try await onPlainThread {
            let seed = newSeed()
            for kind in RollbackStrategyKind.allCases {
                for sharing in GuestMemory.Sharing.allCases {
                    for round in UInt64(0)..<6 {
                        let memory = try GuestMemory("ram", byteLength: ByteCount(Self.pageCount * pageSize), sharing: sharing)
                        try withRollback(kind, memory) { rollback in
                            _ = try run(Trace(seed: seed &+ round, pageCount: Self.pageCount, length: 300), rollback)
                        }
                    }
                }
            }
        }
    }

    @Test func `property 2: all six strategies give the same images on one trace`() async throws {
        try await onPlainThread {
            let seed = newSeed()
            let trace = Trace(seed: seed, pageCount: Self.pageCount, length: 1500)
            var results: [RollbackStrategyKind: [UInt64]] = [:]
            for kind in RollbackStrategyKind.allCases {
                let memory = try GuestMemory("ram", byteLength: ByteCount(Self.pageCount * pageSize), sharing: .shared)
                try withRollback(kind, memory) { results[kind] = try run(trace, $0) }
            }
            try require(results.count == 6 && Set(results.values).count == 1, "seed \(seed): the images differ")
            try require(results[.preImageLog]!.count > 50, "seed \(seed): the trace has no checkpoints")
        }
    }
}

extension TraceTests {
    @Test(arguments: [GuestMemory.Pages.transparentHuge, .huge])
    func `property 1: so it does in huge pages, written in part`(_ pages: GuestMemory.Pages) async throws {
        try await onPlainThread {
            let seed = newSeed()
            for kind in RollbackStrategyKind.allCases {
                let made = Result { try GuestMemory("ram", byteLength: .mebibytes(4), pages: pages) }
                // The pool of huge pages is the machine's, and may be empty.
                if pages == .huge, case .failure(let error) = made { return print("not tried: \(error)") }
                let memory = try made.get()
                try withRollback(kind, memory) { _ = try run(Trace(seed: seed, pageCount: 1024, length: 150), $0) }
            }
        }
    }

    @Test(arguments: RollbackStrategyKind.allCases)
    func `property 1: so it does when threads write at the same time`(_ kind: RollbackStrategyKind) async throws {
        try await onPlainThread {
            let seed = newSeed()
            for round in UInt64(0)..<4 { _ = try CrowdedMemory(kind, seed: seed &+ round, capacity: nil, pageCount: 128).run() }
        }
    }
}
