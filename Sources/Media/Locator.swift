// How people name a medium: `raw:/dev/sdb1`, `file:/var/lib/vm.ck`, `ram:name`, `flash:/mnt/pmem0/vm.ck`.
//
// Invariant: a `Locator` that exists is well-formed; whether there is anything behind it is another matter.

/// The name of a store medium: its kind, and where it is.
public struct Locator: Hashable, Sendable, CustomStringConvertible {
    /// The kind of medium.
    public let kind: MediumKind
    /// A path; for `ram:` the name of the shared memory.
    public let target: String

    /// The longest name of shared memory, in bytes.
    static let longestMemoryName = 200

    /// Parses `text`; a path alone means `file:`. Throws `.invalidLocator`.
    public init(_ text: String) throws(MediumError) {
        guard let colon = text.firstIndex(of: ":"), !text[..<colon].contains("/") else {
            try self.init(kind: .file, target: text, text: text)
            return
        }
        guard let kind = MediumKind(rawValue: String(text[..<colon])) else {
            let kinds = MediumKind.allCases.map { "\($0.rawValue):" }.joined(separator: ", ")
            throw Self.refusal(
                text, "there is no medium of the kind '\(text[..<colon])'",
                "Use one of \(kinds); a file with a colon in its name is written file:./name.")
        }
        try self.init(kind: kind, target: String(text[text.index(after: colon)...]), text: text)
    }

    /// Makes a locator from its parts. Throws `.invalidLocator`.
    public init(kind: MediumKind, target: String) throws(MediumError) {
        try self.init(kind: kind, target: target, text: "\(kind.rawValue):\(target)")
    }

    private init(kind: MediumKind, target: String, text: String) throws(MediumError) {
        guard !target.isEmpty else {
            throw Self.refusal(text, "nothing follows the kind", "Give a path, or a name for ram:.")
        }
        guard !target.utf8.contains(0) else {
            throw Self.refusal(text, "it contains a zero byte", "Give a path without zero bytes.")
        }
        if kind == .ram, !Self.isMemoryName(target) {
            throw Self.refusal(
                text, "'\(target)' can't name shared memory",
                "Use letters, digits, '-', '_' and '.', at most \(Self.longestMemoryName), not starting with '.'.")
        }
        self.kind = kind
        self.target = target
    }

    private static func isMemoryName(_ name: String) -> Bool {
        name.utf8.count <= longestMemoryName && !name.hasPrefix(".")
            && name.utf8.allSatisfy { byte in
                switch byte {
                case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
                    UInt8(ascii: "0")...UInt8(ascii: "9"), UInt8(ascii: "-"), UInt8(ascii: "_"), UInt8(ascii: "."):
                    true
                default: false
                }
            }
    }

    private static func refusal(_ text: String, _ reason: String, _ remedy: String) -> MediumError {
        MediumError(
            .invalidLocator, medium: text.isEmpty ? "an empty locator" : text, operation: "make out the locator",
            reason: reason, remedy: remedy)
    }

    /// The full form, `kind:target`.
    public var description: String { "\(kind.rawValue):\(target)" }
}
