// A machine at one instant, taken the simple way: everything copied while it stands still.
//
// Invariant: memory and disk have the results of the requests that were pending, as the state wants it.

import CheckpointCore
import MachineMemory
import ReferenceMachine

/// State, memory and disks of a paused machine.
struct SavedMachine {
    var state: [UInt8]
    var memory: [UInt8]
    var disks: [[UInt8]]

    /// Of a paused machine; waits for its disks.
    init(_ machine: ReferenceMachine, _ memory: GuestMemory, _ disks: [TestDisk] = []) throws {
        let taken = try machine.deviceState()
        for disk in disks { disk.drain() }
        state = try machine.settledDeviceState(taken)
        self.memory = memory.content
        self.disks = disks.map(\.content)
    }

    /// Calls `body` with a new machine in new memory, which has not been resumed yet.
    func restore<R>(
        _ sharing: GuestMemory.Sharing, seed: UInt64, _ body: (ReferenceMachine, GuestMemory, [TestDisk]) throws -> R
    ) throws -> R {
        let memory = try Workload.memory(sharing)
        memory.fill(self.memory)
        let disks = disks.map { TestDisk($0, seed: seed) }
        defer { for disk in disks { disk.close() } }
        let machine = try ReferenceMachine(restoring: state, "restored", memory: [memory], disks: disks)
        defer { machine.close() }
        return try body(machine, memory, disks)
    }
}

/// What a run leaves: to be compared with that of an undisturbed one.
struct Ending: Equatable {
    var output: [UInt8]
    var memory: [UInt8]
    var disks: [[UInt8]]

    init(_ machine: ReferenceMachine, _ memory: GuestMemory, _ disks: [TestDisk] = [], printedBefore: [UInt8] = []) {
        output = printedBefore + machine.serialOutput
        self.memory = memory.content
        self.disks = disks.map(\.content)
    }

    /// What differs from `other`.
    func difference(from other: Ending) -> String? {
        if output != other.output {
            return "it printed \(String(decoding: output, as: UTF8.self)), not \(String(decoding: other.output, as: UTF8.self))"
        }
        if memory != other.memory { return "memory differs at \(memory.indices.first { memory[$0] != other.memory[$0] }!)" }
        if disks != other.disks { return "a disk differs" }
        return nil
    }
}
