// A working machine with a real store, whose checkpoints are made to fail.

import CheckpointCore
import CheckpointStore
import FaultHarness
import Foundation
@testable import LiveCheckpoint
import MachineMemory
import Threading
import Units
@testable import VirtualDisks

final class FailureScene: Sendable {
    let scratch: LiveScratch
    let machine: WorkloadMachine
    let image: HeldImage
    let runner: WorkloadRunner
    let checkpointer: LiveCheckpointer
    /// Asked at each call of the store.
    let storeFault = Lock<(@Sendable (StoreCall) -> EngineError?)?>(nil)
    let onStep = Lock<(@Sendable (LiveStep) -> Void)?>(nil)
    let overlayFolder: String

    init(seed: UInt64, overlayFolder: String? = nil) throws {
        scratch = try LiveScratch()
        self.overlayFolder = overlayFolder ?? scratch.scratch.folder
        let content = (0..<44 * sectorSize).map { UInt8(truncatingIfNeeded: $0 / sectorSize &* 3 &+ 1) }
        image = HeldImage(content)
        let disk = try VirtualDisk("vda", parent: image, workers: HeldJobs(), groupSize: .kibibytes(4))
        let ram = try GuestMemory("ram", byteLength: .kibibytes(48), sharing: .shared)
        machine = WorkloadMachine(ram, disk, diskContent: content)
        var options = LiveCheckpointer.Options()
        options.workers = 2
        options.step = { [onStep] step in onStep.withLock { $0 }?(step) }
        let hooked = HookedStore(inner: scratch.data) { [storeFault] (call) throws(EngineError) in
            if let error = storeFault.withLock({ $0 })?(call) { throw error }
        }
        checkpointer = try LiveCheckpointer(machine, store: hooked, overlayFolder: self.overlayFolder, options: options)
        runner = WorkloadRunner(machine, image, seed: seed)
    }

    /// A checkpoint that has to succeed and to be right.
    @discardableResult
    func succeed(_ name: String) throws -> LiveCheckpointReport {
        let report = try checkpointer.checkpoint(name)
        let expected = machine.modelAtStop!
        let content = try scratch.data.source(name).content()
        if let difference = WorkloadModel.difference(content["memory:ram"]!, expected.memory) { throw TestFailure("\(name): memory: \(difference)") }
        if let difference = WorkloadModel.difference(content["disk:vda"]!, expected.disk) { throw TestFailure("\(name): disk: \(difference)") }
        guard Registers(decoding: content["state:devices"]!) == expected.registers else { throw TestFailure("\(name): other registers") }
        return report
    }

    /// A checkpoint that has to fail with this code, and to leave the machine running, its disk on the image, and the store without a trace.
    func fail(_ name: String, _ code: EngineError.Code) throws {
        do {
            try checkpointer.checkpoint(name)
            throw TestFailure("\(name) did not fail")
        } catch let error as EngineError {
            guard error.code == code else { throw TestFailure("\(name): \(error)") }
        }
        try checkUnharmed(name)
    }

    func checkUnharmed(_ name: String) throws {
        guard try !scratch.scratch.store.snapshot().checkpoints().contains(where: {
            $0.name == name }) else { throw TestFailure("\(name) is in the store")
        }
        guard machine.disk.state.withLock({ $0.overlays.isEmpty && $0.checkpoint == nil }) else {
            throw TestFailure("\(name): the disk has an overlay")
        }
        let left = try FileManager.default.contentsOfDirectory(atPath: overlayFolder).filter { $0.hasSuffix(".cow") }
        guard left.isEmpty else { throw TestFailure("\(name) leaves \(left)") }
        guard runner.makesProgress() else { throw TestFailure("\(name): the machine does not go on") }
    }

    /// Ends the machine, and compares it with one that never had a checkpoint.
    func finish() throws {
        runner.stop()
        image.state.withLock { $0.holds = false }
        if let error = checkpointer.close() { throw error }
        if let difference = machine.difference(diskContent: image.content) { throw TestFailure(difference) }
        guard try scratch.scratch.store.verify().isSound else { throw TestFailure("the store is damaged") }
    }
}
