// Identities that the format writes into blocks: who wrote a block, and whose it is.
//
// Invariant: a checkpoint id is never 0 in a store; 0 stands for "none" on the medium only and is
// nil in memory.

/// The identity of a region within a checkpoint: the 64-bit XXH3 hash of its name.
public struct RegionKey: Quantity {
    public var rawValue: UInt64
    @inlinable public init(_ rawValue: UInt64) { self.rawValue = rawValue }
    /// 16 hexadecimal digits.
    public var description: String { hexadecimal(rawValue) }
}

/// The identity of a checkpoint: random, never 0 in a store.
///
/// It is coded as its 16 hexadecimal digits, since JSON numbers of 64 bits lose digits in many readers.
public struct CheckpointID: Quantity {
    public var rawValue: UInt64
    @inlinable public init(_ rawValue: UInt64) { self.rawValue = rawValue }

    /// Parses the form of `description`: exactly 16 hexadecimal digits, not all zero; nil for anything else.
    public init?(hex: some StringProtocol) {
        let digits = hex.utf8
        guard digits.count == 16, digits.allSatisfy({ Character(Unicode.Scalar($0)).isHexDigit }),
            let value = UInt64(hex, radix: 16), value != 0
        else { return nil }
        rawValue = value
    }

    /// A new random id; never 0.
    public static func random() -> CheckpointID { CheckpointID(UInt64.random(in: 1...UInt64.max)) }

    /// 16 hexadecimal digits.
    public var description: String { hexadecimal(rawValue) }

    public init(from decoder: any Decoder) throws {
        let text = try decoder.singleValueContainer().decode(String.self)
        guard let id = CheckpointID(hex: text) else {
            throw DecodingError.dataCorrupted(
                .init(codingPath: decoder.codingPath, debugDescription: "a checkpoint id is 16 hexadecimal digits"))
        }
        self = id
    }

    public func encode(to encoder: any Encoder) throws {
        var container = encoder.singleValueContainer()
        try container.encode(description)
    }
}

/// Who wrote a block: the id of the checkpoint, or the generation of the commit for catalog and
/// segment-table nodes.
public struct BlockBirth: Quantity {
    public var rawValue: UInt64
    @inlinable public init(_ rawValue: UInt64) { self.rawValue = rawValue }
    /// The birth of a block that belongs to a checkpoint.
    @inlinable public init(_ id: CheckpointID) { rawValue = id.rawValue }
    /// The birth of a block that a commit writes for itself.
    @inlinable public init(_ generation: Generation) { rawValue = generation.rawValue }
    /// 16 hexadecimal digits.
    public var description: String { hexadecimal(rawValue) }
}
