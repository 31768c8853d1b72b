// Decoders meet bytes that nobody meant, and neither trap nor take long.

import Foundation
import StoreFormat
import Testing
import Units

@Suite struct `Decoders survive whatever they are given` {
    /// What `exerciseDecoder` takes: its choice, whether to repair, the bytes.
    private static let seeds: [[UInt8]] =
        Samples.blocks.map { [$0.kind.rawValue, 1] + $0.bytes }
        + [[0, 1] + Samples.pinned(Vectors.slot), [11, 0] + Samples.pinned(Vectors.pointer)]
        + [[13, 0] + Samples.pinned(Vectors.catalogValue)] + Samples.blocks.map { [12, 0] + $0.bytes }

    @Test func `mutated samples with right checksums`() {
        var random = SeededRandom()
        announce("mutations", random)
        for _ in 0..<90_000 {
            var input = Self.seeds[random.below(Self.seeds.count)]
            for _ in 0...random.below(4) { mutate(&input, &random) }
            exerciseDecoder(input)
        }
    }

    @Test func `random bytes with right magics, lengths and checksums`() {
        var random = SeededRandom()
        announce("random bytes", random)
        for _ in 0..<10_000 {
            let choice = UInt8(random.below(16))
            exerciseDecoder([choice, UInt8(random.below(256))] + random.bytes(random.below(300)))
        }
    }

    /// Prints the seed before anything can trap, past the buffers of standard output.
    private func announce(_ what: String, _ random: SeededRandom) {
        FileHandle.standardError.write(Data("\(what): CKSTORE_TEST_SEED=\(random.seed)\n".utf8))
    }

    /// Changes one thing behind the first two bytes; mostly the fields near the start, which say more.
    private func mutate(_ input: inout [UInt8], _ random: inout SeededRandom) {
        guard input.count > 34 else { return }
        let limit = random.below(2) == 0 ? min(input.count, 160) : input.count
        let at = 2 + random.below(limit - 2)
        switch random.below(6) {
        case 0: input[at] ^= 1 << UInt8(random.below(8))
        case 1: input[at] = [0, 1, 0x7F, 0x80, 0xFF][random.below(5)]
        case 2: input[at] = UInt8(random.below(256))
        case 3: for i in at..<min(at + 8, input.count) { input[i] = 0xFF }
        case 4: input.removeSubrange(at..<min(at + 1 + random.below(60), input.count))
        default: input.insert(contentsOf: input[at..<min(at + 1 + random.below(60), input.count)], at: at)
        }
    }

    @Test func `the fuzzer's corpus`() throws {
        let corpus = URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
            .appending(path: "Fuzz/corpus")
        let files = try FileManager.default.contentsOfDirectory(at: corpus, includingPropertiesForKeys: nil)
        #expect(files.count >= 16, "the corpus is there")
        for file in files { exerciseDecoder([UInt8](try Data(contentsOf: file))) }
    }
}
