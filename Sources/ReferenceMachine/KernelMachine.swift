// A virtual machine of the kernel: its memory and processors.
//
// Invariants:
// - The guest's memory is this process's: what traps this process's writes traps the guest's.
// - There is no interrupt controller and no interrupt: guests poll, and one that has halted never goes on.
// - Descriptors and shared pages are given back with the objects that own them.

import CKVM
import CLinux
import CheckpointCore
import Glibc
import Units

/// The kernel's side of a machine.
@safe final class KernelMachine: Sendable {
    /// What guests are told of their processors.
    let features: ProcessorFeatures
    let processors: [KernelProcessor]
    /// Numbers of the registers that belong to a processor's state on this kernel.
    private let registerIndexes: [UInt32]

    /// - Parameter features: what the guest has been told before; nil: what this host can offer.
    /// - Throws: `.notFound`, `.permission`, `.unsupported` when there is no usable /dev/kvm; `.mismatch` when this host can't offer
    ///   `features`; `.ioFailed`, `.noMemory` from the system.
    init(_ space: GuestAddressSpace, processorCount: Int, features: ProcessorFeatures?, name: String) throws(EngineError) {
        let kernel = try Self.openKernel(name)
        let machine = OwnedDescriptor(owning: try checked(ck_kvm_create_machine(kernel.number), "make a virtual machine", place: name))
        for (slot, piece) in space.pieces.enumerated() {
            try checked(
                unsafe ck_machine_set_memory(
                    machine.number, UInt32(slot), piece.start.rawValue, piece.memory.bytes.baseAddress!, piece.memory.byteLength.rawValue),
                "give the machine its memory", place: name)
        }
        registerIndexes = try Self.registerIndexes(kernel, name)
        let offered = try Self.offeredFeatures(kernel, name)
        try features?.checkOffered(by: offered, place: name)
        self.features = features ?? offered
        var processors: [KernelProcessor] = []
        for index in 0..<processorCount {
            processors.append(try KernelProcessor(kernel, machine, index, features: self.features, place: "\(name), processor \(index)"))
        }
        self.processors = processors
    }

    /// Why /dev/kvm can't be used by this process; nil when it can.
    static func unavailability() -> EngineError? {
        do throws(EngineError) {
            let kernel = try openKernel("")
            let machine = try checked(ck_kvm_create_machine(kernel.number), "make a virtual machine", place: "/dev/kvm")
            ck_close(machine)
            return nil
        } catch { return error }
    }

    /// The state of a processor that stands still.
    func state(of index: Int, isHalted: Bool) throws(EngineError) -> ProcessorState {
        try processors[index].state(registerIndexes, isHalted: isHalted)
    }

    private static func openKernel(_ name: String) throws(EngineError) -> OwnedDescriptor {
        var missing: UnsafePointer<CChar>?
        switch unsafe ck_kvm_open(&missing) {
        case -ENOTSUP:
            let what = unsafe missing.map { unsafe String(cString: $0) } ?? "something"
            throw EngineError(.unsupported, "this kernel's virtual machines lack \(what)", remedy: "Use a newer kernel.", place: "/dev/kvm")
        case -EPROTO:
            throw EngineError(
                .unsupported, "it does not speak version 12 of the interface", remedy: "Use Linux 2.6.22 or newer.", place: "/dev/kvm")
        case let result:
            return OwnedDescriptor(
                owning: try checked(
                    result, "use the kernel's virtual machines", place: "/dev/kvm",
                    remedy: "Load the module kvm_amd or kvm_intel, and give this user access to /dev/kvm."))
        }
    }

    private static func registerIndexes(_ kernel: OwnedDescriptor, _ name: String) throws(EngineError) -> [UInt32] {
        var indexes = [UInt32](repeating: 0, count: MachineState.maximumRegisterCount)
        let count = unsafe ck_kvm_state_registers(kernel.number, &indexes, Int32(indexes.count))
        return Array(indexes.prefix(Int(try checked(count, "ask for the kernel's model-specific registers", place: name))))
    }

    private static func offeredFeatures(_ kernel: OwnedDescriptor, _ name: String) throws(EngineError) -> ProcessorFeatures {
        var entries = [UInt8](repeating: 0, count: ProcessorFeatures.maximumLength)
        let count = unsafe ck_kvm_host_cpuid(kernel.number, &entries, Int32(entries.count / Int(ck_cpuid_entry_size)))
        let length = Int(try checked(count, "ask what processors can be offered", place: name)) * Int(ck_cpuid_entry_size)
        return ProcessorFeatures(entries: Array(entries.prefix(length)))
    }
}
