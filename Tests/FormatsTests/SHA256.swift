// SHA-256 (FIPS 180-4), since the sample stores' expectations are written with it and no library of ours has it.

struct SHA256 {
    private var state: [UInt32] = [
        0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19,
    ]
    private var buffer: [UInt8] = []
    private var length: UInt64 = 0

    mutating func update(_ bytes: some Sequence<UInt8>) {
        let before = buffer.count
        buffer.append(contentsOf: bytes)
        length += UInt64(buffer.count - before)
        var at = 0
        while buffer.count - at >= 64 {
            compress(at)
            at += 64
        }
        buffer.removeFirst(at)
    }

    /// The digest as 64 hexadecimal digits; nothing can be added afterwards.
    mutating func finish() -> String {
        let bits = length * 8
        buffer.append(0x80)
        while buffer.count % 64 != 56 { buffer.append(0) }
        buffer.append(contentsOf: (0..<8).map { UInt8(truncatingIfNeeded: bits >> (56 - 8 * $0)) })
        for at in stride(from: 0, to: buffer.count, by: 64) { compress(at) }
        let digits = Array("0123456789abcdef")
        return String(
            state.flatMap { word in (0..<8).map { digits[Int(word >> (28 - 4 * UInt32($0)) & 15)] } })
    }

    private mutating func compress(_ at: Int) {
        var w = [UInt32](repeating: 0, count: 64)
        for i in 0..<16 {
            w[i] = (0..<4).reduce(0) { $0 << 8 | UInt32(buffer[at + 4 * i + $1]) }
        }
        for i in 16..<64 {
            let s0 = rotated(w[i - 15], 7) ^ rotated(w[i - 15], 18) ^ w[i - 15] >> 3
            let s1 = rotated(w[i - 2], 17) ^ rotated(w[i - 2], 19) ^ w[i - 2] >> 10
            w[i] = w[i - 16] &+ s0 &+ w[i - 7] &+ s1
        }
        var (a, b, c, d) = (state[0], state[1], state[2], state[3])
        var (e, f, g, h) = (state[4], state[5], state[6], state[7])
        for i in 0..<64 {
            let s1 = rotated(e, 6) ^ rotated(e, 11) ^ rotated(e, 25)
            let t1 = h &+ s1 &+ ((e & f) ^ (~e & g)) &+ Self.constants[i] &+ w[i]
            let s0 = rotated(a, 2) ^ rotated(a, 13) ^ rotated(a, 22)
            let t2 = s0 &+ ((a & b) ^ (a & c) ^ (b & c))
            (h, g, f, e, d, c, b, a) = (g, f, e, d &+ t1, c, b, a, t1 &+ t2)
        }
        for (i, value) in [a, b, c, d, e, f, g, h].enumerated() { state[i] &+= value }
    }

    private func rotated(_ x: UInt32, _ n: UInt32) -> UInt32 { x >> n | x << (32 - n) }

    /// The fractional parts of the cube roots of the first 64 primes.
    private static let constants: [UInt32] = {
        var primes: [UInt64] = []
        var candidate: UInt64 = 2
        while primes.count < 64 {
            if primes.allSatisfy({ candidate % $0 != 0 }) { primes.append(candidate) }
            candidate += 1
        }
        return primes.map(cubeRootFraction)
    }()

    /// The first 32 bits of the fraction of the cube root of `n`: the greatest x with x^3 <= n * 2^96.
    private static func cubeRootFraction(_ n: UInt64) -> UInt32 {
        var x: UInt64 = 0
        for bit in (0..<36).reversed() {
            let next = x | 1 << UInt64(bit)
            if UInt128(next) * UInt128(next) * UInt128(next) <= UInt128(n) << 96 { x = next }
        }
        return UInt32(truncatingIfNeeded: x)
    }
}
