// A machine at one instant, taken the simple way: everything copied while it stands still.
//
// Invariant: memory and disk have the results of the requests that were pending, as the state wants it.

import CheckpointCore
import MachineMemory
import ReferenceMachine

/// State, memory and disk of a paused machine.
struct SavedMachine {
    var state: [UInt8]
    var memory: [UInt8]
    var disk: [UInt8]?

    /// Of a paused machine; waits for its disk.
    init(_ machine: ReferenceMachine, _ memory: GuestMemory, _ disk: TestDisk? = nil) throws {
        let taken = try machine.deviceState()
        disk?.drain()
        state = try machine.settledDeviceState(taken)
        self.memory = memory.content
        self.disk = disk?.content
    }

    /// A new machine in new memory, paused; `then` may be called once with it.
    func restore<R>(_ sharing: GuestMemory.Sharing, seed: UInt64, _ body: (ReferenceMachine, GuestMemory, TestDisk?) throws -> R) throws -> R {
        let memory = try Workload.memory(sharing)
        memory.fill(self.memory)
        let disk = self.disk.map { TestDisk($0, seed: seed) }
        defer { disk?.close() }
        let machine = try ReferenceMachine(restoring: state, "restored", memory: [memory], disks: disk.map { [$0] } ?? [])
        defer { machine.close() }
        return try body(machine, memory, disk)
    }
}

/// What a run leaves: to be compared with that of an undisturbed one.
struct Ending: Equatable {
    var output: [UInt8]
    var memory: [UInt8]
    var disk: [UInt8]?

    init(_ machine: ReferenceMachine, _ memory: GuestMemory, _ disk: TestDisk? = nil, printedBefore: [UInt8] = []) {
        output = printedBefore + machine.serialOutput
        self.memory = memory.content
        self.disk = disk?.content
    }

    /// What differs from `other`.
    func difference(from other: Ending) -> String? {
        if output != other.output { return "it printed \(String(decoding: output, as: UTF8.self)), not \(String(decoding: other.output, as: UTF8.self))" }
        if memory != other.memory { return "memory differs at \(memory.indices.first { memory[$0] != other.memory[$0] }!)" }
        if disk != other.disk { return "the disk differs" }
        return nil
    }
}
