// A 128-bit hash value as the store keeps it.
//
// Invariant: nothing but the two halves of a 128-bit integer; which function made it is said where
// it is used.

/// A 128-bit hash: the checksum of a block or slot, or the hash of a page.
public struct Hash128: Hashable, Sendable, Codable, CustomStringConvertible {
    /// The less significant 64 bits, stored first.
    public var low: UInt64
    /// The more significant 64 bits.
    public var high: UInt64

    @inlinable public init(low: UInt64, high: UInt64) {
        self.low = low
        self.high = high
    }

    /// The hash whose bits are all clear; stands for "no hash", for example of a zero page.
    public static let zero = Hash128(low: 0, high: 0)

    /// 32 hexadecimal digits, the most significant first: the canonical form of XXH libraries.
    public var description: String { hexadecimal(high) + hexadecimal(low) }
}

/// 16 lower-case hexadecimal digits, zero padded.
package func hexadecimal(_ value: UInt64) -> String {
    let digits = String(value, radix: 16)
    return String(repeating: "0", count: 16 - digits.count) + digits
}
