// A small virtual machine on /dev/kvm: how a hypervisor is linked with checkpoints.
//
// Invariants:
// - While it is paused, nothing of it changes but the data of disk reads that were pending: processors stand still with nothing left
//   to complete, no request is issued, and no completion is told.
// - Its state together with its memory and disks, all of one pause and with the results of the requests that were pending then, is the
//   whole machine: restored, it goes on as this one does.
// - Memory outlives it; disks belong to their owner.

import CheckpointCore
import MachineMemory
import Units

/// One or more processors, memory, disks, a serial port. Thread-safe, but `pause` and `resume` come in pairs, from whatever threads.
///
/// A new machine stands still until `resume`. Call `close` before it is let go.
public final class ReferenceMachine: Sendable {
    /// What people know it by.
    public let name: String
    /// The guest's memory: one piece behind the other from address 0.
    public let memory: [GuestMemory]
    /// The disks, in the order in which the guest numbers them.
    public let disks: [any DMADisk]
    /// How many processors it has.
    public var virtualCPUCount: Int { kernel.processors.count }

    /// The most processors that a machine can have.
    public static let maximumVirtualCPUCount = GuestStart.maximumProcessorCount

    private let kernel: KernelMachine
    private let devices: MachineDevices
    private let threads: ProcessorThreads

    /// Why this process can't have such machines, and what to do about it; nil when it can.
    public static var unavailability: EngineError? { KernelMachine.unavailability() }

    /// Makes a new machine and puts a program into its memory, which should be zero.
    ///
    /// - Parameters:
    ///   - memory: at least 2 MiB in the first piece, at most 3 GiB in all.
    ///   - virtualCPUCount: 1 to `maximumVirtualCPUCount`.
    /// - Throws: `.notFound`, `.permission`, `.unsupported` when /dev/kvm can't be used; `.invalidInput` for memory or a program that do
    ///   not fit; `.noMemory`, `.ioFailed` from the system.
    public convenience init(
        _ name: String, memory: [GuestMemory], disks: [any DMADisk] = [], virtualCPUCount: Int = 1, program: GuestProgram
    ) throws(EngineError) {
        let range = 1...Self.maximumVirtualCPUCount
        guard range.contains(virtualCPUCount), max(memory.count, disks.count) <= MachineState.maximumPieceCount else {
            throw EngineError(
                .invalidInput, "a machine of \(virtualCPUCount) processors, \(memory.count) pieces of memory, \(disks.count) disks",
                remedy: "Give it \(range) processors, and at most \(MachineState.maximumPieceCount) of the others.", place: name)
        }
        let space = try GuestAddressSpace(memory, name: name)
        let kernel = try KernelMachine(space, processorCount: virtualCPUCount, features: nil, name: name)
        try GuestStart.prepare(space, program, name: name)
        for (index, processor) in kernel.processors.enumerated() {
            try processor.start(GuestStart.registers(processor: index, of: virtualCPUCount, program.arguments))
        }
        try self.init(
            name, space, disks, kernel, DeviceState(diskCount: disks.count, processorCount: virtualCPUCount),
            isHalted: Array(repeating: false, count: virtualCPUCount))
    }

    /// Brings a machine back from what `deviceState` has returned; it stands still until `resume`, and goes on where it was paused.
    ///
    /// Requests that were pending are completed by `resume`, with the status that is recorded in the state: they are not carried out again.
    ///
    /// - Parameters:
    ///   - memory, disks: as they were, with the results of the requests that were pending. Their content may be filled in until `resume`.
    /// - Throws: `.corrupt` when the state is damaged or contradicts itself, `.unsupported` when a newer version saved it, `.mismatch`
    ///   when memory, disks or this host's processors differ; what making a machine throws.
    public convenience init(
        restoring state: [UInt8], _ name: String, memory: [GuestMemory], disks: [any DMADisk] = []
    ) throws(EngineError) {
        let state = try MachineState(decoding: state, place: name)
        let space = try GuestAddressSpace(memory, name: name)
        try state.checkFits(space, disks, name: name)
        let kernel = try KernelMachine(space, processorCount: state.processors.count, features: state.features, name: name)
        for (processor, saved) in zip(kernel.processors, state.processors) { try processor.load(saved) }
        try self.init(name, space, disks, kernel, state.devices, isHalted: state.processors.map(\.isHalted))
    }

    private init(
        _ name: String, _ space: GuestAddressSpace, _ disks: [any DMADisk], _ kernel: KernelMachine, _ saved: DeviceState, isHalted: [Bool]
    ) throws(EngineError) {
        self.name = name
        memory = space.pieces.map { $0.memory }
        self.disks = disks
        self.kernel = kernel
        devices = MachineDevices(serial: SerialPort(saved.serial), disks: DiskController(space, disks, saved))
        threads = try ProcessorThreads(kernel.processors, isHalted: isHalted, devices, name: name)
    }

    deinit { precondition(threads.isClosed, "a machine is closed by its owner") }

    // MARK: Running

    /// Whether it stands still between `pause` and `resume`, or before the first `resume`.
    public var isPaused: Bool { threads.isPaused }
    /// Why a processor can't go on, if so.
    public var failure: EngineError? { threads.failure }

    /// Stops all processors and returns when they stand still. Requests that are pending at disks stay so: reads may still arrive in
    /// memory, but the guest is not told. A machine that is paused already is a programmer's mistake.
    public func pause() {
        threads.pause()
        devices.disks.pause()
    }

    /// Lets the processors go on, and tells the guest of what disks have completed meanwhile. A machine that is not paused is a
    /// programmer's mistake.
    public func resume() {
        threads.resume()
        devices.disks.resume()
    }

    /// True once all processors have halted, false when that takes longer than `milliseconds`. Throws what a processor failed with.
    public func waitUntilHalted(milliseconds: Int) throws(EngineError) -> Bool {
        try threads.waitUntilHalted(milliseconds: milliseconds)
    }

    /// Stops the machine for ever. What disks complete later changes nothing but the buffers of reads. Harmless when done before.
    public func close() {
        threads.close()
        devices.disks.close()
    }

    // MARK: State

    /// All of a paused machine that is not in memory and on disks: processors, serial port, disk registers, pending requests. A machine
    /// that runs is a programmer's mistake.
    ///
    /// Keep it with memory and disks that have the results of the pending requests. When one of these may fail, let
    /// `settledDeviceState` record it.
    ///
    /// - Throws: `.ioFailed` when the kernel does not give the state; what a processor failed with.
    public func deviceState() throws(EngineError) -> [UInt8] {
        precondition(isPaused, "a machine that runs has no state")
        if let failure { throw failure }
        var processors: [ProcessorState] = []
        for (index, isHalted) in threads.isHalted.enumerated() { processors.append(try kernel.state(of: index, isHalted: isHalted)) }
        let empty = DeviceState(diskCount: disks.count, processorCount: virtualCPUCount)
        return MachineState(
            memoryLengths: memory.map(\.byteLength), diskLengths: disks.map { $0.byteLength }, features: kernel.features,
            processors: processors, devices: devices.saved(empty)
        ).encode()
    }

    /// The state that `deviceState` returned last, with the status that its pending requests have had since: to be asked for when they
    /// are done, while the machine runs or stands still.
    ///
    /// - Throws: `.busy` while one of them is still pending; `.invalidInput` for a state that is not this machine's last one.
    public func settledDeviceState(_ saved: [UInt8]) throws(EngineError) -> [UInt8] {
        var state = try MachineState(decoding: saved, place: name)
        let outcomes = devices.disks.outcomes
        guard state.devices.pending.map(\.number) == outcomes.keys.sorted() else {
            throw EngineError(
                .invalidInput, "the device state is not the one that was saved last", remedy: "Hand in that one.", place: name)
        }
        for index in state.devices.pending.indices {
            let status = outcomes[state.devices.pending[index].number]!
            guard status != .outstanding else {
                throw EngineError(
                    .busy, "requests that were pending when the state was saved are not done", remedy: "Ask again later.", place: name)
            }
            state.devices.pending[index].status = status
        }
        return state.encode()
    }

    // MARK: Serial port

    /// What the guest has printed since this object was made; the first 16 MiB.
    public var serialOutput: [UInt8] { devices.serial.output }
    /// How many bytes the guest has printed in all its lives.
    public var serialOutputCount: ByteCount { devices.serial.saved.sentCount }

    /// Sends bytes to the guest.
    /// - Throws: `.busy` when 64 KiB are waiting to be read by it.
    public func sendSerialInput(_ bytes: [UInt8]) throws(EngineError) {
        guard devices.serial.send(bytes) else {
            throw EngineError(.busy, "the guest does not read its serial port", remedy: "Send less, or later.", place: name)
        }
    }
}
