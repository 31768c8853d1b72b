// The reference machine as checkpoints want it: what a monitor has to add to be linked with ckstore.

import CheckpointCore
import LiveCheckpoint
import MachineMemory
import Units
import VirtualDisks

/// A virtual disk behind the machine's disk controller.
extension VirtualDisk: DMADisk {
    public var byteLength: ByteCount { geometry.diskLength }

    public func submit(
        _ operation: DMAOperation, at offset: ByteCount, _ buffer: DMABuffer?, completion: @escaping @Sendable (Result<Void, EngineError>) -> Void
    ) {
        let kind: DiskOperation =
            switch operation {
            case .read: .read
            case .write: .write
            case .flush: .flush
            }
        let target = buffer.map { GuestBuffer($0.memory, offset: $0.offset, byteCount: $0.byteCount) }
        submit(DiskRequest(kind, at: DiskOffset(offset.rawValue), target, completion: completion))
    }
}

/// A reference machine whose disks are virtual disks, for a `LiveCheckpointer`.
public struct CheckpointedMachine: Machine {
    public let machine: ReferenceMachine
    public let disks: [VirtualDisk]

    /// - Parameter disks: those that the machine was made with, in the same order.
    public init(_ machine: ReferenceMachine, disks: [VirtualDisk]) {
        precondition(machine.disks.count == disks.count, "the machine's disks")
        self.machine = machine
        self.disks = disks
    }

    public static let identity = MachineIdentity(
        hypervisor: "ckstore-reference", version: "1", machineType: "reference-1", architecture: "x86_64")

    public var name: String { machine.name }
    public var identity: MachineIdentity { Self.identity }
    public var virtualCPUCount: Int { machine.virtualCPUCount }
    public var memory: [GuestMemory] { machine.memory }
    /// One piece behind the other.
    public var physicalRanges: [MachineRecord.PhysicalRange] {
        var start: UInt64 = 0
        return memory.map { memory in
            defer { start += memory.byteLength.rawValue }
            return .init(block: memory.name, blockOffset: 0, physicalAddress: start, byteLength: memory.byteLength.rawValue)
        }
    }

    public func pause() throws(EngineError) {
        machine.pause()
        if let failure = machine.failure {
            machine.resume()
            throw failure
        }
    }
    public func resume() throws(EngineError) { machine.resume() }
    public func deviceState() throws(EngineError) -> [UInt8] { try machine.deviceState() }
    public func settledDeviceState(_ state: [UInt8]) throws(EngineError) -> [UInt8] { try machine.settledDeviceState(state) }
}
