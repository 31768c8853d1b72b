// The one source of chance in the harness: every random choice comes from a printed 64-bit seed.

/// SplitMix64: small, fast in debug builds, and good enough to pick schedules and torn writes.
public struct SeededGenerator: RandomNumberGenerator, Sendable {
    private var state: UInt64

    /// Starts the sequence that belongs to `seed`.
    public init(seed: UInt64) { state = seed }

    /// Starts a sequence that belongs to all of `parts` in this order: one stream per (seed, point,
    /// mode, ordinal), so that a single image can be made again without making the ones before it.
    public init(seed: UInt64, _ parts: UInt64...) {
        state = seed
        for part in parts { state = SeededGenerator.mix(state &+ 0x9E37_79B9_7F4A_7C15) ^ part }
        state = SeededGenerator.mix(state)
    }

    public mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        return SeededGenerator.mix(state)
    }

    /// A number in `0..<bound`, `bound` at least 1. The bias of the plain remainder is below 2^-32
    /// for every bound used here, and it costs a tenth of `Int.random` in debug builds.
    public mutating func below(_ bound: Int) -> Int { Int(next() % UInt64(bound)) }

    /// True with a probability of `numerator` / `denominator`.
    public mutating func chance(_ numerator: Int, in denominator: Int) -> Bool { below(denominator) < numerator }

    /// SplitMix64's output function: spreads every bit of `value` over the whole word.
    static func mix(_ value: UInt64) -> UInt64 {
        var z = value
        z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
        return z ^ (z >> 31)
    }
}
