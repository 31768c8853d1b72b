// Random numbers that a printed seed replays.

import Foundation

/// SplitMix64.
struct SeededRandom: RandomNumberGenerator {
    private var state: UInt64
    /// Replays the numbers: set CKSTORE_TEST_SEED to it.
    let seed: UInt64

    /// Of the environment's seed, or a fresh one.
    init() {
        seed = ProcessInfo.processInfo.environment["CKSTORE_TEST_SEED"].flatMap { UInt64($0) } ?? .random(in: 0...UInt64.max)
        state = seed
    }

    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
        return z ^ (z >> 31)
    }

    /// A number below `bound`.
    mutating func below(_ bound: Int) -> Int { Int(next() % UInt64(bound)) }

    /// `count` distinct numbers below `bound`, ascending.
    mutating func ascending(_ count: Int, below bound: Int) -> [Int] {
        var numbers = Set<Int>()
        while numbers.count < count { numbers.insert(below(bound)) }
        return numbers.sorted()
    }

    mutating func bytes(_ count: Int) -> [UInt8] { (0..<count).map { _ in UInt8(truncatingIfNeeded: next()) } }
}
