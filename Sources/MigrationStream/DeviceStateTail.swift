// Whether device state ends as it has to, seen byte by byte.
//
// Invariants:
// - Device state ends with the last section's footer and an end-of-stream byte, and may have a description in JSON behind that whose
//   length ends it exactly; anything else is not complete.
// - The description has no byte of value 0 in it, so that the last place that looks like its start is its start.

/// Follows device state to its end.
struct DeviceStateTail: Sendable {
    /// The last 16 bytes, the newest least significant.
    private var recent: UInt128 = 0
    private var count: UInt64 = 0
    /// Where the last description that began would end, and where its JSON begins.
    private(set) var description: (start: UInt64, end: UInt64)?

    /// 7e id id id id 00 06 length*4 '{': the last footer, the end, and the first bytes of a description. Section ids are small.
    private static let descriptionMask: UInt128 = 0xff_ffff_0000_ffff_0000_0000_ff
    private static let descriptionPattern: UInt128 = 0x7e_0000_0000_0006_0000_0000_7b
    /// 7e id id id id 00.
    private static let endMask: UInt128 = 0xff_ffff_0000_ff
    private static let endPattern: UInt128 = 0x7e_0000_0000_00

    mutating func append(_ bytes: some Sequence<UInt8>) {
        for byte in bytes {
            recent = recent << 8 | UInt128(byte)
            count += 1
            guard byte == UInt8(ascii: "{"), recent & Self.descriptionMask == Self.descriptionPattern else { continue }
            let length = UInt64(UInt32(truncatingIfNeeded: recent >> 8))
            description = (count - 1, count - 1 + length)
        }
    }

    /// True when a description ends just here.
    var endsWithDescription: Bool {
        description?.end == count && UInt8(truncatingIfNeeded: recent) == UInt8(ascii: "}")
    }

    var isComplete: Bool { endsWithDescription || recent & Self.endMask == Self.endPattern }
}
