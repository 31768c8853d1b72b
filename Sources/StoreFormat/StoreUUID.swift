// The identity of a store: drawn once, when it is created.

import Units

/// The random identity of a store.
public struct StoreUUID: Hashable, Sendable, CustomStringConvertible {
    private var high: UInt64
    private var low: UInt64

    private init(high: UInt64, low: UInt64) {
        self.high = high
        self.low = low
    }

    /// From 16 bytes in the order of the text form; another number is a programmer's mistake.
    public init(bytes: [UInt8]) {
        precondition(bytes.count == 16, "a UUID has 16 bytes")
        unsafe self.init(bytes.span.bytes, at: 0)
    }

    package init(_ bytes: RawSpan, at position: Int) {
        self.init(high: bytes.u64(position).byteSwapped, low: bytes.u64(position + 8).byteSwapped)
    }

    /// Parses the usual text form, 8-4-4-4-12 hexadecimal digits; nil for anything else.
    public init?(_ text: some StringProtocol) {
        let groups = text.utf8.split(separator: UInt8(ascii: "-"), omittingEmptySubsequences: false)
        guard groups.map(\.count) == [8, 4, 4, 4, 12] else { return nil }
        let digits = groups.joined().map { Character(Unicode.Scalar($0)) }
        guard digits.allSatisfy({ $0.isASCII && $0.isHexDigit }) else { return nil }
        high = UInt64(String(digits[..<16]), radix: 16)!
        low = UInt64(String(digits[16...]), radix: 16)!
    }

    /// A new random one (version 4).
    public static func random() -> StoreUUID {
        StoreUUID(
            high: .random(in: 0...UInt64.max) & ~0xF000 | 0x4000,
            low: .random(in: 0...UInt64.max) & ~(3 << 62) | (2 << 62))
    }

    /// The 16 bytes in the order of the text form.
    public var bytes: [UInt8] {
        [high, low].flatMap { half in (0..<8).map { UInt8(truncatingIfNeeded: half >> (56 - 8 * $0)) } }
    }

    /// The usual text form in lower case.
    public var description: String {
        let digits = Hash128(low: low, high: high).description
        var text = ""
        for (i, digit) in digits.enumerated() {
            if [8, 12, 16, 20].contains(i) { text += "-" }
            text.append(digit)
        }
        return text
    }
}
