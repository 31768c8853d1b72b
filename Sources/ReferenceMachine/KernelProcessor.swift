// A virtual processor of the kernel: run, stopped, its state taken and put back.
//
// Invariants:
// - One thread runs it; its state is taken and set only while that thread is outside of `run`.
// - State is taken only after `run` has answered `.kicked` or `.halted`: input and output of ports is complete then.

import CKVM
import CLinux
import CheckpointCore
import Glibc
import Units

/// The kernel's side of one processor.
@safe final class KernelProcessor: @unchecked Sendable {
    /// Why a processor came out of the guest. Bytes are valid until it runs again.
    @safe enum Exit {
        /// Somebody wants it to stop, or a signal came.
        case kicked
        case halted
        /// The guest has written numbers of `size` bytes to a port.
        case output(port: UInt16, size: Int, bytes: UnsafeRawBufferPointer)
        /// The guest waits for numbers of `size` bytes from a port: to be put into `bytes` before it runs again.
        case input(port: UInt16, size: Int, bytes: UnsafeMutableRawBufferPointer)
        /// It can't go on.
        case stopped(reason: UInt32, detail: UInt64)
    }

    /// How many structures of the kernel make up the state.
    static let partCount = Int(CK_LAST_PART) - Int(CK_FIRST_PART) + 1

    private let descriptor: OwnedDescriptor
    private let shared: UnsafeMutableRawPointer
    private let sharedLength: Int
    private let partLengths: [Int]
    private let place: String

    init(
        _ kernel: OwnedDescriptor, _ machine: OwnedDescriptor, _ index: Int, features: ProcessorFeatures, place: String
    ) throws(EngineError) {
        var lengths: [Int] = []
        for part in Self.parts {
            lengths.append(Int(try checked(ck_processor_part_size(machine.number, part), "ask for the size of its state", place: place)))
        }
        partLengths = lengths
        self.place = place
        var shared: UnsafeMutableRawPointer?
        var sharedLength = 0
        let number = unsafe ck_machine_create_processor(kernel.number, machine.number, UInt32(index), &shared, &sharedLength)
        descriptor = OwnedDescriptor(owning: try checked(number, "make a virtual processor", place: place))
        unsafe self.shared = shared!
        self.sharedLength = sharedLength
        let result = unsafe ck_processor_set_cpuid(descriptor.number, features.entries, Int32(features.entryCount))
        try load(result, "the features that the guest was told of")
    }

    deinit { unsafe ck_processor_unmap(shared, sharedLength) }

    // MARK: Running

    /// Makes the calling thread the one that runs it. Signals for the process go to other threads from here on.
    func adoptThread() throws(EngineError) {
        try checked(ck_processor_adopt_thread(descriptor.number), "prepare a processor's thread", place: place)
    }

    /// Runs the guest until something happens.
    func run() throws(EngineError) -> Exit {
        var exit = unsafe ck_exit()
        let result = unsafe ck_processor_run(descriptor.number, shared, &exit)
        if result == -EINTR { return .kicked }
        try checked(result, "run the guest", place: place)
        let byteCount = unsafe Int(exit.size) * Int(exit.count)
        switch unsafe exit.kind {
        case CK_EXIT_PORT_OUT:
            let bytes = unsafe UnsafeRawBufferPointer(start: exit.data, count: byteCount)
            return unsafe .output(port: exit.port, size: Int(exit.size), bytes: bytes)
        case CK_EXIT_PORT_IN:
            let bytes = unsafe UnsafeMutableRawBufferPointer(start: exit.data, count: byteCount)
            return unsafe .input(port: exit.port, size: Int(exit.size), bytes: bytes)
        case CK_EXIT_HALT: return .halted
        default: return unsafe .stopped(reason: exit.reason, detail: exit.detail)
        }
    }

    /// While true, `run` completes what is to be completed and answers `.kicked`.
    func setStop(_ isWanted: Bool) { unsafe ck_processor_set_stop(shared, isWanted) }

    // MARK: State

    /// Lets it start in 64-bit mode.
    func start(_ registers: ck_start) throws(EngineError) {
        let result = unsafe withUnsafePointer(to: registers) { unsafe ck_processor_start(descriptor.number, $0) }
        try checked(result, "start a processor", place: place)
    }

    func state(_ registerIndexes: [UInt32], isHalted: Bool) throws(EngineError) -> ProcessorState {
        var state = ProcessorState(isHalted: isHalted, parts: [], registers: [])
        for (part, length) in zip(Self.parts, partLengths) {
            var bytes = [UInt8](repeating: 0, count: length)
            try checked(unsafe ck_processor_get_part(descriptor.number, part, &bytes), "take a processor's state", place: place)
            state.parts.append(bytes)
        }
        for index in registerIndexes {
            var value: UInt64 = 0
            // Kernels list registers that a processor with the guest's features may not have.
            let result = unsafe ck_processor_get_register(descriptor.number, index, &value)
            if result == -EINVAL { continue }
            try checked(result, "take a processor's register", place: place)
            state.registers.append(.init(index: index, value: value))
        }
        return state
    }

    /// Puts a state back. Throws `.mismatch` when this host's processors can't take it.
    func load(_ state: ProcessorState) throws(EngineError) {
        for (part, (bytes, length)) in zip(Self.parts, zip(state.parts, partLengths)) {
            guard bytes.count == length else {
                throw mismatch("part \(part.rawValue) of the state has \(bytes.count) bytes, this host's has \(length)")
            }
            try load(unsafe ck_processor_set_part(descriptor.number, part, bytes), "part \(part.rawValue) of the state")
        }
        for register in state.registers {
            let result = ck_processor_set_register(descriptor.number, register.index, register.value)
            try load(result, "register 0x\(String(register.index, radix: 16))")
        }
    }

    private static let parts = (CK_FIRST_PART...CK_LAST_PART).map { ck_processor_part(rawValue: UInt32($0)) }

    private func load(_ result: Int32, _ what: String) throws(EngineError) {
        if result == -EINVAL { throw mismatch("it does not take \(what)") }
        try checked(result, "load \(what)", place: place)
    }

    private func mismatch(_ reason: String) -> EngineError {
        EngineError(
            .mismatch, "this host's processor is another than the one that was saved: \(reason)",
            remedy: "Restore on a host with the same processor and kernel features.", place: place)
    }
}
