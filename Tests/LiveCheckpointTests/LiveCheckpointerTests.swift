// A machine with memory and a real disk file, checkpointed while both are being written.

import CheckpointCore
import CheckpointStore
import FaultHarness
import Foundation
@testable import LiveCheckpoint
import MachineMemory
import StoreTesting
import Testing
import Threading
import Units
import VirtualDisks

/// A machine without processors: what runs is the test.
final class QuietMachine: Machine {
    let name = "quiet"
    let identity = MachineIdentity(hypervisor: "test", version: "1", machineType: "quiet", architecture: "none")
    let virtualCPUCount = 1
    let memory: [GuestMemory]
    let disks: [VirtualDisk]
    let physicalRanges: [MachineRecord.PhysicalRange] = []
    let state = Lock((paused: 0, resumed: 0, refusesToStop: false))

    init(_ memory: [GuestMemory], _ disks: [VirtualDisk]) {
        self.memory = memory
        self.disks = disks
    }

    func pause() throws(EngineError) {
        guard !state.withLock({ $0.refusesToStop }) else { throw EngineError(.timeout, "a processor does not stop", remedy: "Look at the guest.") }
        state.withLock { $0.paused += 1 }
    }
    func resume() throws(EngineError) { state.withLock { $0.resumed += 1 } }
    func deviceState() throws(EngineError) -> [UInt8] { [1, 2, 3] }
    func settledDeviceState(_ state: [UInt8]) throws(EngineError) -> [UInt8] { state }
}

@Suite(.serialized) struct LiveCheckpointerTests {
    @Test func `the steps come in the order of the flow chart, and the checkpoint has memory, disk and state`() async throws {
        try await onPlainThread {
            let scratch = try ScratchStore()
            let store = StoreBackedDataStore(scratch.store)
            let image = scratch.folder + "/disk.img"
            try Data(repeating: 7, count: (1 << 20) + 512).write(to: URL(fileURLWithPath: image))
            let workers = try WorkerThreads(count: 2)
            defer { workers.close() }
            let disk = try VirtualDisk("vda", parent: try FileBackend(image, workers: workers), workers: workers)
            let memory = try GuestMemory("ram", byteLength: .mebibytes(4), sharing: .shared)
            let machine = QuietMachine([memory], [disk])
            var options = LiveCheckpointer.Options()
            let steps = Lock<[LiveStep]>([])
            options.step = { step in
                steps.withLock { $0.append(step) }
                // The machine goes on as soon as it may.
                if step == .saveDeviceState { unsafe memory.bytes[0] = 99 }
            }
            let checkpointer = try LiveCheckpointer(machine, store: store, overlayFolder: scratch.folder, options: options)
            defer { checkpointer.close() }
            unsafe memory.bytes[0] = 1
            let report = try checkpointer.checkpoint("one")
            guard steps.withLock({ $0 }) == LiveStep.allCases.filter({ $0 != .waitForAllRequests }), report.steps == report.steps.sorted() else {
                throw TestFailure("steps \(report.steps)")
            }
            let restore = try MachineRestore(try store.source("one"))
            let back = try restore.memory(sharing: .anonymous)[0]
            guard unsafe back.bytes[0] == 1, try restore.deviceState() == [1, 2, 3] else { throw TestFailure("other memory or state") }
            let content = Lock([UInt8](repeating: 0, count: (1 << 20) + 512))
            unsafe try restore.disk("vda") { (offset, bytes) throws(EngineError) in
                content.withLock { unsafe $0.replaceSubrange(offset.int..<offset.int + bytes.count, with: bytes) }
            }
            guard content.withLock({ $0.allSatisfy { $0 == 7 } }) else { throw TestFailure("other disk content") }
        }
    }
}
