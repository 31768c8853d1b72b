// The one error type of this module: which structure is not what the format says, and how.

/// Bytes are not what the format says they must be.
public struct FormatError: Error, Hashable, Sendable, CustomStringConvertible {
    /// What kind of violation. A struct and not an enum, so that kinds can be added.
    public struct Code: RawRepresentable, Hashable, Sendable, CustomStringConvertible {
        public var rawValue: String
        public init(rawValue: String) { self.rawValue = rawValue }
        public var description: String { rawValue }
        /// The bytes end before the structure does.
        public static let truncated = Code(rawValue: "truncated")
        /// The magic is not one of the format.
        public static let badMagic = Code(rawValue: "bad-magic")
        /// The bytes are not those that the checksum was taken of.
        public static let badChecksum = Code(rawValue: "bad-checksum")
        /// A length disagrees with its fields, its pointer or its limit.
        public static let wrongLength = Code(rawValue: "wrong-length")
        /// A sound block of another kind.
        public static let wrongKind = Code(rawValue: "wrong-kind")
        /// A sound block that somebody else wrote: stale or misdirected.
        public static let wrongBirth = Code(rawValue: "wrong-birth")
        /// A sound structure that belongs elsewhere: another region, span, level, slot or ring.
        public static let misplaced = Code(rawValue: "misplaced")
        /// A field has a value that the format does not allow there.
        public static let badField = Code(rawValue: "bad-field")
        /// A sound slot of another version of the format.
        public static let unsupportedVersion = Code(rawValue: "unsupported-version")
        /// A sound slot with a feature that this program does not know.
        public static let unknownFeature = Code(rawValue: "unknown-feature")
    }

    public var code: Code
    /// The structure, as a noun: "full leaf".
    public var subject: String
    /// What is wrong with it, as a phrase.
    public var reason: String

    public init(_ code: Code, subject: String, reason: String) {
        self.code = code
        self.subject = subject
        self.reason = reason
    }

    public var description: String { "\(subject): \(reason) (\(code))" }
}
