// System D, properties 4 and 5: what each strategy copies, and what becomes of writes that a buffer or log has no room for.

import CheckpointCore
import FaultHarness
import Foundation
import MachineMemory
import Rollback
import Testing
import Threading
import Units

@Suite(.serialized) struct CostTests {
    @Test func `property 4: at the checkpoint strategy 5 copies nothing and strategy 3 exactly the dirty set`() async throws {
        try await onPlainThread {
            let seed = newSeed()
            let trace = Trace(seed: seed, pageCount: 96, length: 1000)
            for kind in RollbackStrategyKind.allCases {
                let memory = try GuestMemory("ram", byteLength: ByteCount(96 * pageSize), sharing: .shared)
                try withRollback(kind, memory) { rollback in
                    _ = try run(trace, rollback) { event, before in
                        guard case .checkpoint = event else { return }
                        let copied = rollback.statistics.pagesCopiedAtCheckpoint.int
                        switch kind {
                        case .postImageBlockStates, .preImageLog, .postImageTwoBitmaps:
                            try require(copied == 0, "seed \(seed): \(kind) copied \(copied) pages")
                        case .postImageBitmap, .postImageLocal, .postImageRemote:
                            try require(copied == before.written.count, "seed \(seed): \(kind) copied \(copied) pages of \(before.written.count)")
                        }
                    }
                }
            }
        }
    }

    @Test func `property 4: strategy 6 logs each block at most once per epoch`() async throws {
        try await onPlainThread {
            let memory = try GuestMemory("ram", byteLength: .kibibytes(256))
            try withRollback(.preImageLog, memory) { rollback in
                for epoch in UInt8(1)..<5 {
                    let before = rollback.statistics.pagesCopiedFirst
                    for round in UInt8(0)..<20 {
                        for page in 0..<Int(epoch) * 3 { unsafe memory.bytes[page * pageSize + Int(round)] = round ^ epoch }
                    }
                    let logged = (rollback.statistics.pagesCopiedFirst - before).int
                    try require(logged == Int(epoch) * 3, "\(logged) blocks were logged, \(Int(epoch) * 3) written")
                    try rollback.checkpoint(state: [])
                }
            }
        }
    }

    @Test(arguments: [RollbackStrategyKind.postImageLocal, .postImageRemote, .preImageLog])
    func `property 5: overflow forces a checkpoint and loses nothing`(_ kind: RollbackStrategyKind) async throws {
        try await onPlainThread {
            let seed = newSeed()
            let (forced, writes) = try CrowdedMemory(kind, seed: seed, capacity: 7, pageCount: 64).run()
            try require(forced > 5, "seed \(seed): \(forced) forced checkpoints in \(writes) writes")
        }
    }

    @Test(arguments: RollbackStrategyKind.allCases)
    func `device state that there is no room for is refused, and nothing has happened`(_ kind: RollbackStrategyKind) async throws {
        try await onPlainThread {
            let memory = try GuestMemory("ram", byteLength: .kibibytes(256))
            var options = RollbackOptions()
            let medium = FaultMedium(SimulatedDevice(size: .zero))
            if kind != .postImageRemote { options.medium = medium }
            try withRollback(kind, memory, state: [1], options: options) { rollback in
                unsafe memory.bytes[100] = 1
                try requireRefusal(.invalidInput) { try rollback.checkpoint(state: [UInt8](repeating: 7, count: 1 << 20)) }
                try require(try rollback.rollback() == [1], "another checkpoint")
                try rollback.checkpoint(state: [2])
                try rollback.settle()
            }
        }
    }

    @Test func `a buffer that can overflow needs somebody who takes a checkpoint`() async throws {
        try await onPlainThread {
            for kind in [RollbackStrategyKind.postImageLocal, .postImageRemote, .preImageLog] {
                let memory = try GuestMemory("ram", byteLength: .kibibytes(256))
                var options = RollbackOptions()
                options.capacity = PageCount(UInt64(5))
                do {
                    try withRollback(kind, memory, options: options) { _ in }
                    throw Mismatch("\(kind) took it")
                } catch let error as EngineError { try require(error.code == .invalidInput, "\(error)") }
            }
        }
    }
}
