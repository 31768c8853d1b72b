// A machine that is brought back goes on as the one that the checkpoint was taken of.

import CheckpointCore
import FaultHarness
import Foundation
@testable import LiveCheckpoint
import MachineMemory
import Testing
import Threading
import Units
import VirtualDisks

@Suite(.serialized) struct RerunTests {
    @Test func `a restored machine, run again from its registers, ends in the original's state`() async throws {
        let first = UInt64.random(in: 0...UInt64(UInt32.max))
        let count = WorkloadSize.scaled(20)
        print("seeds \(first) and \(count - 1) more")
        try await onPlainThread { for seed in first..<first + UInt64(count) { try Self.rerun(seed) } }
    }

    private static func rerun(_ seed: UInt64) throws {
        let scratch = try LiveScratch()
        let scene = try WorkloadScene(consumesAtOnce: false, store: scratch.data)
        defer { scene.close() }
        // An older checkpoint first, so that the one that is restored is an incremental one.
        let warmUp = WorkloadProgram.random(seed: seed &+ 1, length: 20, layout: scene.machine.layout, sectorCount: WorkloadScene.sectorCount)
        try scene.run(warmUp, Choices(seed: seed &+ 1), .all)
        let start = scene.machine.registers.counter
        let program = WorkloadProgram.random(seed: seed, length: 60, layout: scene.machine.layout, sectorCount: WorkloadScene.sectorCount)
        try scene.run(program, Choices(seed: seed), .all)

        let restore = try MachineRestore(try scratch.data.source("2"))
        try restore.check(scene.machine.identity)
        let ram = try restore.memory(sharing: .shared)[0]
        let content = Lock([UInt8](repeating: 0, count: scene.image.byteLength.int))
        unsafe try restore.disk("vda") { (offset, bytes) throws(EngineError) in
            content.withLock { unsafe $0.replaceSubrange(offset.int..<offset.int + bytes.count, with: bytes) }
        }
        guard let registers = Registers(decoding: try restore.deviceState()), !registers.slots.contains(.underWay) else {
            throw TestFailure("seed \(seed): requests have no outcome")
        }
        let image = HeldImage(content.withLock { $0 })
        let disk = try VirtualDisk("vda", parent: image, workers: HeldJobs(), groupSize: .kibibytes(4))
        let machine = WorkloadMachine(ram, disk, diskContent: image.content, registers: registers)
        // Its requests complete in another order than the original's: the newest first.
        for instruction in program.dropFirst(Int(registers.counter - start)) {
            while !machine.execute(instruction) { image.complete(image.held.last!) }
        }
        image.completeAll()
        guard machine.model == scene.machine.model else { throw TestFailure("seed \(seed): the model of the rerun differs") }
        if let difference = machine.difference(diskContent: image.content) { throw TestFailure("seed \(seed): \(difference)") }
    }
}
