// Feature bits: how a program knows that a store is beyond it. FORMAT.md 3.1, registry.md.
//
// Invariant: a bit is claimed in registry.md and here, once and for ever.

/// Which of a slot's three feature masks.
public enum FeatureMask: UInt8, Hashable, Sendable, CaseIterable, CustomStringConvertible {
    /// An unknown bit: refuse to open.
    case incompat = 1
    /// An unknown bit: open for reading only.
    case readOnlyCompat
    /// An unknown bit: ignore.
    case compat

    public var description: String {
        switch self {
        case .incompat: "incompatible"
        case .readOnlyCompat: "read-only compatible"
        case .compat: "compatible"
        }
    }
}

/// The name of a feature bit, written into slots so that programs that don't know the bit can say what it is.
public struct FeatureName: Hashable, Sendable {
    public var mask: FeatureMask
    /// 0..63.
    public var bit: UInt8
    /// 1 to 29 printable ASCII characters.
    public var name: String

    public init(mask: FeatureMask, bit: UInt8, name: String) {
        self.mask = mask
        self.bit = bit
        self.name = name
    }

    static let encodedLength = 32
    static let maximumNameLength = 29

    func check() throws(FormatError) {
        let isPrintable = name.utf8.allSatisfy { (0x20...0x7E).contains($0) }
        try StoreFormat.check(
            bit < 64 && (1...Self.maximumNameLength).contains(name.utf8.count) && isPrintable, "slot",
            "the name of a feature")
    }
}

/// The features that this version knows.
public enum Feature {
    /// Incompatible bit 0: the store was made before the format was declared stable. Read, never written.
    public static let draft: UInt64 = 1 << 0
    /// Incompatible bit 1: blocks have been moved, and pointers lead to them by the forwarding tree.
    public static let forwarding: UInt64 = 1 << 1
    /// Read-only compatible bit 0: the lineage tree is kept. Every store has it but drafts.
    public static let lineage: UInt64 = 1 << 0

    /// Every incompatible bit that this version knows.
    public static let knownIncompat: UInt64 = draft | forwarding
    /// Every read-only compatible bit that this version knows.
    public static let knownReadOnlyCompat: UInt64 = lineage

    /// The names of all features that this version knows.
    public static let names: [FeatureName] = [
        FeatureName(mask: .incompat, bit: 0, name: "draft"),
        FeatureName(mask: .incompat, bit: 1, name: "forwarding"),
        FeatureName(mask: .readOnlyCompat, bit: 0, name: "lineage"),
    ]

    /// The name entries of a slot with these bits: one for each that this version knows.
    public static func names(incompat: UInt64, readOnlyCompat: UInt64, compat: UInt64) -> [FeatureName] {
        names.filter { name in
            switch name.mask {
            case .incompat: incompat >> UInt64(name.bit) & 1 == 1
            case .readOnlyCompat: readOnlyCompat >> UInt64(name.bit) & 1 == 1
            case .compat: compat >> UInt64(name.bit) & 1 == 1
            }
        }
    }

    /// Throws `.unknownFeature`, naming every incompatible feature of `slot` that this version does not know.
    public static func check(_ slot: Slot) throws(FormatError) {
        try check(incompat: slot.incompat, names: slot.featureNames)
    }

    /// Whether `slot` has a feature that lets this version read the store, but not write it.
    public static func requiresReadOnly(_ slot: Slot) -> Bool {
        slot.readOnlyCompat & ~knownReadOnlyCompat != 0 || slot.incompat & draft != 0
    }

    /// What writing `slot`'s store needs that this version does not know, by name where there is one.
    public static func unknownForWriting(_ slot: Slot) -> [String] {
        list(slot.readOnlyCompat & ~knownReadOnlyCompat, .readOnlyCompat, slot.featureNames)
    }

    private static func list(_ bits: UInt64, _ mask: FeatureMask, _ names: [FeatureName]) -> [String] {
        (UInt8(0)..<64).filter { bits >> UInt64($0) & 1 == 1 }.map { bit in
            names.first { $0.mask == mask && $0.bit == bit }.map { "\"\($0.name)\"" } ?? "bit \(bit)"
        }
    }

    static func check(incompat: UInt64, names: [FeatureName]) throws(FormatError) {
        let unknown = incompat & ~knownIncompat
        if unknown == 0 { return }
        let list = list(unknown, .incompat, names)
        throw FormatError(
            .unknownFeature, subject: "slot",
            reason: "the store needs features that this version does not know: \(list.joined(separator: ", "))")
    }
}
