// What the workload machine does: a program of a few instructions, the registers that it works with, and where everything lies.
//
// Invariant: an instruction's effect depends on registers, memory and disk alone, never on when a request completes: so a machine without
// anything asynchronous says what is right.

import FaultHarness
import Units
import VirtualDisks

/// One instruction of the machine's processor.
enum Instruction: Sendable, Equatable, CustomStringConvertible {
    /// Writes eight bytes of a page, of a place where no buffer lies.
    case touch(page: Int)
    /// Touches every page that has a buffer in it.
    case touchAll
    /// Starts a request to or from a slot's buffer.
    case submit(slot: Int, DiskOperation, sectors: Range<Int>)
    /// Waits until a slot's request is over, works with its bytes, and changes some of them.
    case consume(slot: Int)

    var description: String {
        switch self {
        case .touch(let page): "touch \(page)"
        case .touchAll: "touch all"
        case .submit(let slot, let operation, let sectors): "\(operation) \(sectors) slot \(slot)"
        case .consume(let slot): "consume \(slot)"
        }
    }
}

/// Where things lie in the machine's memory. Of three pages the third has no buffer and is seldom written, so that what is saved comes in pieces.
struct WorkloadLayout: Sendable {
    let pageCount: Int
    var slotCount: Int { pageCount / 3 * 3 }
    static let slotBytes = 1536
    /// In a page: in front of it, behind it, everywhere else are buffers.
    private static let scratch = 3200

    /// Two of three buffers share a page, and one lies across two.
    func buffer(_ slot: Int) -> Range<Int> {
        let start = slot / 3 * 3 * pageSize + [0, 3584, 5632][slot % 3]
        return start..<start + Self.slotBytes
    }

    func scratch(_ page: Int, _ counter: UInt64) -> Int { page * pageSize + Self.scratch + Int(counter % 8) * 8 }
    var pagesWithBuffers: [Int] { (0..<pageCount).filter { $0 % 3 != 2 } }
}

/// What the processor and the device know: the machine's device state.
struct Registers: Sendable, Equatable {
    enum Slot: UInt8, Sendable { case idle, underWay, done, failed }

    /// Instructions done.
    var counter: UInt64 = 0
    var accumulator: UInt64 = 0x5eed
    var slots: [Slot]
    /// How many bytes each slot's request has.
    var lengths: [UInt16]

    init(slotCount: Int) {
        slots = [Slot](repeating: .idle, count: slotCount)
        lengths = [UInt16](repeating: 0, count: slotCount)
    }

    /// Little-endian, always of the same length.
    var encoded: [UInt8] {
        [counter, accumulator].flatMap { value in (0..<8).map { UInt8(truncatingIfNeeded: value >> (8 * UInt64($0))) } }
            + slots.map(\.rawValue) + lengths.flatMap { [UInt8($0 & 255), UInt8($0 >> 8)] }
    }

    init?(decoding bytes: [UInt8]) {
        guard bytes.count >= 16, (bytes.count - 16) % 3 == 0 else { return nil }
        let count = (bytes.count - 16) / 3
        self.init(slotCount: count)
        func number(_ start: Int) -> UInt64 { (0..<8).reduce(0) { $0 | UInt64(bytes[start + $1]) << (8 * UInt64($1)) } }
        counter = number(0)
        accumulator = number(8)
        for slot in 0..<count {
            guard let state = Slot(rawValue: bytes[16 + slot]) else { return nil }
            slots[slot] = state
            lengths[slot] = UInt16(bytes[16 + count + 2 * slot]) | UInt16(bytes[16 + count + 2 * slot + 1]) << 8
        }
    }

    mutating func mix(_ value: UInt64) {
        accumulator = (accumulator ^ value) &* 0xBF58_476D_1CE4_E5B9
        accumulator ^= accumulator >> 29
    }
}

/// Programs by a seed.
enum WorkloadProgram {
    /// At its end every slot has been consumed.
    static func random(seed: UInt64, length: Int, layout: WorkloadLayout, sectorCount: Int) -> [Instruction] {
        var random = SeededGenerator(seed: seed, 0x9709)
        var isBusy = [Bool](repeating: false, count: layout.slotCount)
        var program: [Instruction] = []
        while program.count < length {
            guard random.chance(2, in: 3) else {
                program.append(.touch(page: random.chance(1, in: 12) ? random.below(layout.pageCount) : layout.pagesWithBuffers.randomElement(using: &random)!))
                continue
            }
            let slot = random.below(layout.slotCount)
            if isBusy[slot] { program.append(.consume(slot: slot)) } else { program.append(request(slot, sectorCount, &random)) }
            isBusy[slot].toggle()
        }
        for slot in 0..<layout.slotCount where isBusy[slot] { program.append(.consume(slot: slot)) }
        return program
    }

    private static func request(_ slot: Int, _ sectorCount: Int, _ random: inout SeededGenerator) -> Instruction {
        if random.chance(1, in: 16) { return .submit(slot: slot, .flush, sectors: 0..<0) }
        let count = 1 + random.below(WorkloadLayout.slotBytes / sectorSize)
        // Most requests concern the same few sectors.
        let start = random.below((random.chance(3, in: 4) ? 8 : sectorCount) - count + 1)
        return .submit(slot: slot, random.chance(1, in: 2) ? .read : .write, sectors: start..<start + count)
    }
}
