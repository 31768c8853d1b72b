// Guests on real processors and real disk files, checkpointed live into a store, killed, brought back from it, run on.

import CheckpointCore
import CheckpointStore
import FaultHarness
import Foundation
import LiveCheckpoint
import MachineMemory
import ReferenceMachine
import StoreTesting
import Testing
import Threading
import Units
import VirtualDisks

/// A machine over files, with what it needs.
private final class FileMachine {
    let machine: ReferenceMachine
    let memory: GuestMemory
    let disks: [VirtualDisk]
    private let workers: WorkerThreads

    /// - Parameter make: makes the machine over its memory and disks.
    init(_ images: [String], _ memory: GuestMemory, _ make: (GuestMemory, [VirtualDisk]) throws -> ReferenceMachine) throws {
        workers = try WorkerThreads(count: 3)
        self.memory = memory
        do {
            var disks: [VirtualDisk] = []
            for (index, image) in images.enumerated() {
                disks.append(
                    try VirtualDisk(
                        "disk\(index)", parent: try FileBackend(image, workers: workers), workers: workers, groupSize: .kibibytes(4)))
            }
            self.disks = disks
            machine = try make(memory, disks)
        } catch {
            workers.close()
            throw error
        }
    }

    func close() {
        machine.close()
        for disk in disks { disk.drain() }
        workers.close()
    }
}

extension ReferenceMachineTests {
    @Suite(.serialized) struct StoreTests {
        @Test(arguments: GuestMemory.Sharing.allCases)
        func `checkpointed live, killed and restored from the store, a machine comes to the same end as an undisturbed one`(
            _ sharing: GuestMemory.Sharing
        ) async throws {
            let seed = printedSeed()
            try await onPlainThread {
                for processors in [1, 2] {
                    let scratch = try ScratchStore()
                    let store = StoreBackedDataStore(scratch.store)
                    let requests = 800
                    let model = Workload.model(requests, seed, disks: processors)
                    let images = (0..<processors).map { scratch.folder + "/disk\($0).img" }
                    for (index, image) in images.enumerated() {
                        try Data(Workload.diskContent(seed, index)).write(to: URL(fileURLWithPath: image))
                    }
                    let running = try FileMachine(images, try Workload.memory(sharing)) { memory, disks in
                        try ReferenceMachine("live", memory: [memory], disks: disks, virtualCPUCount: processors, program: Workload.disk(requests, seed))
                    }
                    defer { running.close() }
                    let names = try Self.checkpointUntilTheEnd(running, store, scratch.folder, seed: seed)
                    try require(running.machine.printed == model.output, "the machine printed \(running.machine.printed), not \(model.output)")
                    try require(names.count >= 2, "\(names.count) checkpoints, nothing was shown")
                    for (name, printed) in names {
                        let ending = try Self.restored(name, from: store, in: scratch.folder, sharing, processors)
                        let whole = printed + ending.output
                        try require(String(decoding: whole, as: UTF8.self) == model.output, "\(name): it printed \(String(decoding: whole, as: UTF8.self))")
                        for (index, disk) in ending.disks.enumerated() {
                            try require(disk == (try [UInt8](Data(contentsOf: URL(fileURLWithPath: images[index])))), "\(name): disk \(index) differs")
                        }
                        try require(ending.memory == running.memory.content, "\(name): the memory at the end differs")
                    }
                    let left = try FileManager.default.contentsOfDirectory(atPath: scratch.folder).filter { $0.hasSuffix(".cow") }
                    try require(left.isEmpty, "overlays are left: \(left)")
                    try require(try scratch.store.verify().isSound, "the store is damaged")
                }
            }
        }

        /// Takes checkpoints while the guest runs; answers their names and what the guest had printed at each.
        private static func checkpointUntilTheEnd(
            _ running: FileMachine, _ store: StoreBackedDataStore, _ folder: String, seed: UInt64
        ) throws -> [(name: String, printed: [UInt8])] {
            var random = SeededGenerator(seed: seed)
            let printed = Lock<[UInt8]>([])
            var options = LiveCheckpointer.Options()
            let machine = running.machine
            // The guest stands still between the capture of its devices and its going on.
            options.step = { step in if step == .switchDisks { printed.withLock { $0 = machine.serialOutput } } }
            let checkpointer = try LiveCheckpointer(
                CheckpointedMachine(running.machine, disks: running.disks), store: store, overlayFolder: folder, options: options)
            defer { checkpointer.close() }
            var names: [(String, [UInt8])] = []
            running.machine.resume()
            while try !running.machine.waitUntilHalted(milliseconds: 0), names.count < 10 {
                let name = "c\(names.count)"
                let report = try checkpointer.checkpoint(name)
                try require(report.unfinished.isEmpty, "\(name): \(report.unfinished)")
                names.append((name, printed.withLock { $0 }))
                usleep(UInt32(random.below(5000)))
            }
            try require(try running.machine.waitUntilHalted(milliseconds: 60_000), "the guest does not come to its end")
            for disk in running.disks { disk.drain() }
            return names
        }

        /// Brings a checkpoint back into new memory and new disk files, and lets it run to its end.
        private static func restored(
            _ name: String, from store: StoreBackedDataStore, in folder: String, _ sharing: GuestMemory.Sharing, _ processors: Int
        ) throws -> Ending {
            let restore = try MachineRestore(try store.source(name))
            try restore.check(CheckpointedMachine.identity)
            let images = (0..<processors).map { folder + "/back\($0).img" }
            for (index, image) in images.enumerated() {
                let content = Lock([UInt8](repeating: 0, count: Workload.diskLength.int))
                unsafe try restore.disk("disk\(index)") { (offset, bytes) throws(EngineError) in
                    content.withLock { unsafe $0.replaceSubrange(offset.int..<offset.int + bytes.count, with: bytes) }
                }
                try Data(content.withLock { $0 }).write(to: URL(fileURLWithPath: image))
            }
            let state = try restore.deviceState()
            let running = try FileMachine(images, try restore.memory(sharing: sharing)[0]) { memory, disks in
                try ReferenceMachine(restoring: state, "restored", memory: [memory], disks: disks)
            }
            defer { running.close() }
            try running.machine.finish()
            for disk in running.disks { disk.drain() }
            var ending = Ending(running.machine, running.memory)
            ending.disks = try images.map { [UInt8](try Data(contentsOf: URL(fileURLWithPath: $0))) }
            return ending
        }
    }
}
