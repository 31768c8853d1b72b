// What the guest programs compute, computed without a machine.
//
// Invariant: written from what `ckvmguests.h` and the programs say; nothing here comes from a run.

import Units

/// The programs' generator of random numbers.
struct Xorshift {
    var value: UInt64

    init(seed: UInt64, processor: UInt64) { value = (processor + 1) &* 0x9e37_79b9_7f4a_7c15 ^ seed | 1 }

    mutating func next() -> UInt64 {
        value ^= value << 13
        value ^= value >> 7
        value ^= value << 17
        return value
    }
}

extension UInt64 {
    func rotated(by count: UInt64) -> UInt64 { self << count | self >> (64 - count) }
    /// One digest of the processors' ones.
    init(folding digests: [UInt64]) { self = digests.reduce(0) { $0.rotated(by: 9) &+ $1 } }
    /// As the programs print it.
    var printed: String { (String(repeating: "0", count: 16) + String(self, radix: 16)).suffix(16) + "\n" }
}

/// `GuestProgram.counter`.
struct CounterModel {
    var digest: UInt64 = 0
    /// The parts of all processors, one behind the other.
    var words: [UInt64]
    var output: String

    init(processors: Int, stages: Int, roundsPerStage: Int, partLength: ByteCount, seed: UInt64) {
        let wordsPerPart = partLength.int / 8
        words = Array(repeating: 0, count: processors * wordsPerPart)
        var random = (0..<processors).map { Xorshift(seed: seed, processor: UInt64($0)) }
        var digests = Array(repeating: UInt64(0), count: processors)
        var sums = digests
        for _ in 0..<stages {
            for processor in 0..<processors {
                for _ in 0..<roundsPerStage {
                    let number = random[processor].next()
                    let place = processor * wordsPerPart + Int(number & (partLength.rawValue - 8)) / 8
                    words[place] &+= number
                    digests[processor] = digests[processor].rotated(by: 5) ^ words[place]
                }
                sums[processor] &+= digests[processor]
            }
            let published = digests
            for processor in 0..<processors {
                digests[processor] = digests[processor].rotated(by: 7) &+ published[(processor + 1) % processors]
            }
        }
        digest = UInt64(
            folding: (0..<processors).map { processor in
                let first = Xorshift(seed: seed, processor: UInt64(processor)).value
                return ((digests[processor] ^ sums[processor]) &+ first) ^ (first & 0xffff_ffff)
            })
        output = String(repeating: ".", count: stages) + digest.printed
    }
}

/// One processor of `GuestProgram.disk`.
struct DiskModel {
    var digest: UInt64 = 0
    var disk: [UInt8]
    /// Its four buffers.
    var memory = [UInt8](repeating: 0, count: 1 << 16)
    private static let slots = 4
    private static let slotLength = 1 << 14
    private static let stride = 128

    private struct Slot {
        var status: UInt64 = 1
        var isRead = false
        var byteCount = 0
    }

    init(processor: Int, requests: Int, sectors: UInt64, seed: UInt64, disk: [UInt8]) {
        self.disk = disk
        var random = Xorshift(seed: seed, processor: UInt64(processor))
        var slots = Array(repeating: Slot(), count: Self.slots)
        for number in 0..<requests + Self.slots {
            let slot = slots[number % Self.slots]
            let buffer = number % Self.slots * Self.slotLength
            digest = digest.rotated(by: 5) ^ slot.status
            if slot.isRead {
                for offset in Self.places(slot.byteCount) { digest = digest.rotated(by: 5) &+ word(buffer + offset) }
            }
            if number < requests { slots[number % Self.slots] = issue(random.next(), buffer, sectors, &random) }
        }
    }

    private mutating func issue(_ choice: UInt64, _ buffer: Int, _ sectors: UInt64, _ random: inout Xorshift) -> Slot {
        let byteCount = Int(choice & 7 + 1) * 512
        if choice >> 48 & 0x3c == 0 { return Slot(byteCount: byteCount) }
        let start = Int(choice >> 8 & (sectors - 1)) * 512
        let isRead = choice >> 48 & 2 == 0
        if !isRead { for offset in Self.places(byteCount) { store(random.next(), buffer + offset) } }
        guard start + byteCount <= disk.count else { return Slot(status: 2, isRead: isRead, byteCount: byteCount) }
        if isRead {
            memory.replaceSubrange(buffer..<buffer + byteCount, with: disk[start..<start + byteCount])
        } else {
            disk.replaceSubrange(start..<start + byteCount, with: memory[buffer..<buffer + byteCount])
        }
        return Slot(isRead: isRead, byteCount: byteCount)
    }

    /// The places of a buffer that the program looks at, in its order.
    private static func places(_ byteCount: Int) -> some Sequence<Int> { Swift.stride(from: byteCount - stride, through: 0, by: -stride) }

    private func word(_ offset: Int) -> UInt64 { (0..<8).reduce(0) { $0 | UInt64(memory[offset + $1]) << ($1 * 8) } }

    private mutating func store(_ value: UInt64, _ offset: Int) {
        for byte in 0..<8 { memory[offset + byte] = UInt8(truncatingIfNeeded: value >> (byte * 8)) }
    }
}
