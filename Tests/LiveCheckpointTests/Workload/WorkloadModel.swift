// The oracle: the workload machine with nothing asynchronous in it.
//
// A request takes effect as it is submitted. So what the model holds when the machine stops is the checkpoint that is due: the memory at the stop with
// the results of pending reads, the disk with pending writes in it [claim 23]. And what it holds in the end is the machine that never had a checkpoint.

import Glibc
import Units
import VirtualDisks

struct WorkloadModel: Sendable, Equatable {
    var memory: [UInt8]
    var disk: [UInt8]
    var registers: Registers

    mutating func execute(_ instruction: Instruction, _ layout: WorkloadLayout) {
        switch instruction {
        case .touch(let page): store(registers.accumulator ^ registers.counter, at: layout.scratch(page, registers.counter))
        case .touchAll:
            for page in layout.pagesWithBuffers { store(registers.accumulator ^ UInt64(page), at: layout.scratch(page, registers.counter)) }
        case .submit(let slot, let operation, let sectors):
            let bytes = sectors.lowerBound * sectorSize..<sectors.upperBound * sectorSize
            let buffer = layout.buffer(slot).prefix(bytes.count)
            if operation == .write { disk.replaceSubrange(bytes, with: memory[buffer]) }
            if operation == .read { memory.replaceSubrange(buffer, with: disk[bytes]) }
            registers.slots[slot] = .done
            registers.lengths[slot] = UInt16(bytes.count)
        case .consume(let slot):
            let buffer = layout.buffer(slot).prefix(Int(registers.lengths[slot]))
            registers.mix(memory[buffer].reduce(0) { $0 &* 31 &+ UInt64($1) })
            if !buffer.isEmpty { store(registers.accumulator, at: buffer.lowerBound) }
            registers.slots[slot] = .idle
        }
        registers.counter += 1
    }

    private mutating func store(_ value: UInt64, at start: Int) {
        for byte in 0..<8 { memory[start + byte] = UInt8(truncatingIfNeeded: value >> (8 * UInt64(byte))) }
    }

    /// The first place where bytes differ from what they should be; nil: none does.
    static func difference(_ found: [UInt8], _ expected: [UInt8]) -> String? {
        guard found.count == expected.count else { return "\(found.count) bytes, not \(expected.count)" }
        // A comparison of arrays takes a hundred times as long in debug builds.
        let isEqual = unsafe found.withUnsafeBytes { found in
            unsafe expected.withUnsafeBytes { unsafe memcmp(found.baseAddress!, $0.baseAddress!, $0.count) == 0 }
        }
        guard !isEqual, let index = found.indices.first(where: { found[$0] != expected[$0] }) else { return nil }
        return "byte \(index) (page \(index / pageSize) + \(index % pageSize), sector \(index / sectorSize)) is \(found[index]), not \(expected[index])"
    }
}
