// Everything of a machine that is not in its memory and on its disks, as values.
//
// Invariant: a state that was decoded agrees with itself; whether it fits a machine is checked by `checkFits`.

import CKVM
import CheckpointCore
import MachineMemory
import Units

/// One virtual processor.
struct ProcessorState: Equatable {
    /// A register that is named by a number.
    struct Register: Equatable {
        var index: UInt32
        var value: UInt64
    }

    /// It has executed HLT: without interrupts it never goes on.
    var isHalted = false
    /// The kernel's structures, in the order of `ck_processor_part`.
    var parts: [[UInt8]]
    var registers: [Register]
}

/// The serial port.
struct SerialState: Equatable {
    /// Bytes that were sent since the machine was new. They are in the outside world, not in the state.
    var sentCount = ByteCount.zero
    /// Received, not yet read by the guest.
    var input: [UInt8] = []
}

/// What a processor has written into its own set of a disk's registers.
struct DiskRegisters: Equatable {
    var sector: UInt32 = 0
    var bufferAddress: UInt32 = 0
    var sectorCount: UInt32 = 0
    var statusAddress: UInt32 = 0
}

/// A request's name, unique for a machine in all its lives.
struct RequestNumber: Quantity {
    var rawValue: UInt64
    init(_ rawValue: UInt64) { self.rawValue = rawValue }
}

/// What is known of a request, and what its status word says after its completion.
enum RequestStatus: UInt32 {
    case outstanding = 0
    case succeeded = 1
    case failed = 2
}

/// A request that the guest has not been told of the completion of.
struct PendingRequest: Equatable {
    var number: RequestNumber
    var disk: UInt32
    var operation: DMAOperation
    /// As the registers were when it was issued.
    var registers: DiskRegisters
    var status = RequestStatus.outstanding
    var statusAddress: GuestAddress { GuestAddress(UInt64(registers.statusAddress)) }
}

/// All devices.
struct DeviceState: Equatable {
    var serial = SerialState()
    /// For each disk, for each processor.
    var diskRegisters: [[DiskRegisters]]
    var nextRequest = RequestNumber(UInt64(0))
    /// In the order of their issue.
    var pending: [PendingRequest] = []

    init(diskCount: Int, processorCount: Int) {
        diskRegisters = Array(repeating: Array(repeating: DiskRegisters(), count: processorCount), count: diskCount)
    }
}

/// The whole machine.
struct MachineState: Equatable {
    var memoryLengths: [ByteCount]
    var diskLengths: [ByteCount]
    var features: ProcessorFeatures
    var processors: [ProcessorState]
    var devices: DeviceState

    /// Throws `.mismatch` when the machine that the state shall be loaded into has other memory or disks.
    func checkFits(_ space: GuestAddressSpace, _ disks: [any DMADisk], name: String) throws(EngineError) {
        try Self.compare(memoryLengths, space.pieces.map { $0.memory.byteLength }, "memory", name)
        try Self.compare(diskLengths, disks.map { $0.byteLength }, "disks", name)
        for request in devices.pending where !space.hasWord(at: request.statusAddress) {
            throw EngineError(
                .corrupt, "the device state is wrong: the status of request \(request.number) lies outside of the memory",
                remedy: "Use another checkpoint.", place: name)
        }
    }

    private static func compare(_ saved: [ByteCount], _ given: [ByteCount], _ what: String, _ name: String) throws(EngineError) {
        guard saved != given else { return }
        throw EngineError(
            .mismatch, "the machine was saved with \(what) of \(saved) bytes, and is to be restored with \(given)",
            remedy: "Restore it with \(what) of the same sizes in the same order.", place: name)
    }
}
