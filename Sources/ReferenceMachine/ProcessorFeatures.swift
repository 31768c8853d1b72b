// What a guest has been told of its processors, which it relies on for ever.
//
// Invariant: a guest never gets a host that lacks something it has been told of.

import CKVM
import CheckpointCore
import Units

/// The answers to a guest's CPUID instructions.
struct ProcessorFeatures: Equatable, Sendable {
    static let maximumLength = 256 * Int(ck_cpuid_entry_size)

    /// Entries of the kernel's structure: leaf, subleaf, flags, EAX to EDX, three numbers that are 0; 32 bits each.
    let entries: [UInt8]
    var entryCount: Int { entries.count / Int(ck_cpuid_entry_size) }

    /// Registers of a leaf whose bits stand for features.
    private struct FeatureWord {
        var leaf: UInt32
        var subleaf: UInt32 = 0
        /// EAX is 0.
        var registers: [Int]
    }

    private static let featureWords = [
        FeatureWord(leaf: 1, registers: [2, 3]),
        FeatureWord(leaf: 7, registers: [1, 2, 3]),
        FeatureWord(leaf: 7, subleaf: 1, registers: [0, 3]),
        // The state that XSAVE keeps, and how.
        FeatureWord(leaf: 0xd, registers: [0]),
        FeatureWord(leaf: 0xd, subleaf: 1, registers: [0]),
        FeatureWord(leaf: 0x8000_0001, registers: [2, 3]),
        FeatureWord(leaf: 0x8000_0008, registers: [1]),
    ]

    /// Throws `.mismatch` when `host` lacks features that are promised here.
    func checkOffered(by host: ProcessorFeatures, place: String) throws(EngineError) {
        for word in Self.featureWords {
            let promised = try registers(word, place)
            let offered = try host.registers(word, place)
            for register in word.registers where promised[register] & ~offered[register] != 0 {
                let missing = String(promised[register] & ~offered[register], radix: 16)
                throw EngineError(
                    .mismatch,
                    "this host's processors lack features that the guest relies on: leaf 0x\(String(word.leaf, radix: 16)), subleaf "
                        + "\(word.subleaf), register \(register), bits 0x\(missing)",
                    remedy: "Restore on a host with the same kind of processor, or a newer one.", place: place)
            }
        }
    }

    /// EAX to EDX; zeros when nothing is said of the leaf.
    private func registers(_ word: FeatureWord, _ place: String) throws(EngineError) -> [UInt32] {
        var reader = StateReader(entries[...], place: place)
        for _ in 0..<entryCount {
            var numbers: [UInt32] = []
            for _ in 0..<Int(ck_cpuid_entry_size) / 4 { numbers.append(try reader.number()) }
            if numbers[0] == word.leaf, numbers[1] == word.subleaf { return Array(numbers[3...6]) }
        }
        return [0, 0, 0, 0]
    }
}
