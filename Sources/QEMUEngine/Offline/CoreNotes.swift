// The notes of an ELF core of x86-64: what debuggers read as threads, and what QEMU adds for those that debug kernels.
//
// Invariant: each note is padded to 4 bytes; all CPUs' statuses come before what QEMU adds.

import Units

/// Little-endian fields of an ELF file.
struct CoreBytes {
    private(set) var bytes: [UInt8] = []

    mutating func put(_ value: some FixedWidthInteger) {
        unsafe withUnsafeBytes(of: value.littleEndian) { unsafe bytes.append(contentsOf: $0) }
    }
    mutating func put(_ more: [UInt8]) { bytes += more }
    mutating func put(zeros count: Int) { bytes += [UInt8](repeating: 0, count: count) }
    mutating func pad(to unit: Int) { put(zeros: (unit - bytes.count % unit) % unit) }
}

enum CoreNotes {
    private static let processStatus: UInt32 = 1
    private static let hypervisorStateVersion: UInt32 = 1

    /// All notes of a machine. CPU n is thread n + 1.
    static func encoded(_ cpus: [VirtualCPU]) -> [UInt8] {
        var notes = CoreBytes()
        for (number, cpu) in cpus.enumerated() {
            put(&notes, name: "CORE", type: processStatus, status(cpu, thread: UInt32(number + 1)))
        }
        for cpu in cpus { put(&notes, name: "QEMU", type: 0, hypervisorState(cpu)) }
        return notes.bytes
    }

    private static func put(_ notes: inout CoreBytes, name: String, type: UInt32, _ content: [UInt8]) {
        notes.put(UInt32(name.utf8.count + 1))
        notes.put(UInt32(content.count))
        notes.put(type)
        notes.put(Array(name.utf8) + [0])
        notes.pad(to: 4)
        notes.put(content)
        notes.pad(to: 4)
    }

    /// `struct elf_prstatus` of x86-64: 336 bytes, the thread's number at 32, the registers at 112.
    private static func status(_ cpu: VirtualCPU, thread: UInt32) -> [UInt8] {
        var bytes = CoreBytes()
        bytes.put(zeros: 32)
        bytes.put(thread)
        bytes.put(zeros: 76)
        let (g, s) = (cpu.general, cpu.segments)
        for register in [15, 14, 13, 12, 5, 3, 11, 10, 9, 8, 0, 1, 2, 6, 7] { bytes.put(g[register]) }
        // No system call was under way, as far as a debugger of programs would have it.
        bytes.put(UInt64.max)
        for value in [cpu.instructionPointer, UInt64(s[1].selector), cpu.flags, g[4], UInt64(s[2].selector), s[4].base, s[5].base] {
            bytes.put(value)
        }
        for segment in [3, 0, 4, 5] { bytes.put(UInt64(s[segment].selector)) }
        bytes.put(zeros: 8)
        return bytes.bytes
    }

    /// What QEMU's own dumps have: version, size, registers, segments, control registers.
    private static func hypervisorState(_ cpu: VirtualCPU) -> [UInt8] {
        var fields = CoreBytes()
        for register in [0, 3, 1, 2, 6, 7, 4, 5] + Array(8...15) { fields.put(cpu.general[register]) }
        fields.put(cpu.instructionPointer)
        fields.put(cpu.flags)
        let segments = [1, 3, 0, 4, 5, 2].map { cpu.segments[$0] }
        for segment in segments + [cpu.localTable, cpu.task, cpu.globalTable, cpu.interruptTable] {
            for value in [segment.selector, segment.limit, segment.flags, 0] { fields.put(value) }
            fields.put(segment.base)
        }
        for value in cpu.control + [cpu.kernelGSBase] { fields.put(value) }
        var bytes = CoreBytes()
        bytes.put(hypervisorStateVersion)
        bytes.put(UInt32(fields.bytes.count + 8))
        bytes.put(fields.bytes)
        return bytes.bytes
    }
}
