// The registers of a checkpoint's virtual CPUs, as device state has them.
//
// Invariant: numbers are the guest's, in the order in which QEMU's x86 CPU keeps them: general registers by their encoding (ax, cx,
// dx, bx, sp, bp, si, di, 8-15), segments es, cs, ss, ds, fs, gs.

import CheckpointCore
import MigrationStream

/// One virtual CPU of the x86-64 architecture.
struct VirtualCPU {
    struct Segment {
        var selector: UInt32
        var base: UInt64
        var limit: UInt32
        var flags: UInt32

        fileprivate init(_ fields: FieldReader) throws(EngineError) {
            selector = UInt32(truncatingIfNeeded: try fields.number("selector"))
            base = try fields.number("base")
            limit = UInt32(truncatingIfNeeded: try fields.number("limit"))
            flags = UInt32(truncatingIfNeeded: try fields.number("flags"))
        }
    }

    /// By encoding.
    var general: [UInt64] = []
    var instructionPointer: UInt64
    var flags: UInt64
    /// es, cs, ss, ds, fs, gs.
    var segments: [Segment] = []
    var localTable: Segment
    var task: Segment
    var globalTable: Segment
    var interruptTable: Segment
    /// cr0 to cr4; cr1 is 0.
    var control: [UInt64]
    var extendedFeatures: UInt64
    var kernelGSBase: UInt64

    private init(_ fields: FieldReader) throws(EngineError) {
        for index in 0..<16 { general.append(try fields.number("env.regs", element: index)) }
        instructionPointer = try fields.number("env.eip")
        flags = try fields.number("env.eflags")
        for index in 0..<6 { segments.append(try Segment(try fields.group("env.segs", element: index))) }
        localTable = try Segment(try fields.group("env.ldt"))
        task = try Segment(try fields.group("env.tr"))
        globalTable = try Segment(try fields.group("env.gdt"))
        interruptTable = try Segment(try fields.group("env.idt"))
        control = [
            try fields.number("env.cr[0]"), 0, try fields.number("env.cr[2]"), try fields.number("env.cr[3]"),
            try fields.number("env.cr[4]"),
        ]
        extendedFeatures = try fields.number("env.efer")
        kernelGSBase = try fields.number("env.kernelgsbase")
    }

    /// All CPUs, by number.
    /// - Throws: `.unsupported` when the state does not describe itself or has no such CPUs, `.corrupt` when it contradicts itself.
    static func all(in state: DeviceState) throws(EngineError) -> [VirtualCPU] {
        let description = try StateDescription(state)
        var cpus: [VirtualCPU] = []
        for section in state.sections(named: "cpu") {
            cpus.append(try VirtualCPU(try description.reader(of: section, in: state)))
        }
        guard !cpus.isEmpty else {
            throw EngineError(.unsupported, "the device state has no virtual CPU", remedy: "`--format raw` exports memory alone.")
        }
        return cpus
    }

    /// True when addresses are translated by page tables of four or five levels.
    var isInLongMode: Bool { extendedFeatures & 1 << 10 != 0 && control[0] & 1 << 31 != 0 }
    var hasFiveLevels: Bool { control[4] & 1 << 12 != 0 }
}
