// The one error type of the media layer: what failed, where, and what to do about it.

import Units

/// A medium refused or failed an operation.
public struct MediumError: Error, Hashable, Sendable, CustomStringConvertible {
    /// What kind of failure. A struct and not an enum, so that kinds can be added.
    public struct Code: RawRepresentable, Hashable, Sendable, CustomStringConvertible {
        public var rawValue: String
        public init(rawValue: String) { self.rawValue = rawValue }
        public var description: String { rawValue }
        /// The locator is not of the form that its kind wants.
        public static let invalidLocator = Code(rawValue: "invalid-locator")
        /// There is no such device, file or shared memory.
        public static let notFound = Code(rawValue: "not-found")
        /// It is there already and creating it was asked for.
        public static let exists = Code(rawValue: "exists")
        /// It carries something else's signature (a file system, a partition table) and force was not given.
        public static let foreignContent = Code(rawValue: "foreign-content")
        /// The system does not let this process do that.
        public static let permission = Code(rawValue: "permission")
        /// The medium is open for reading only.
        public static let readOnly = Code(rawValue: "read-only")
        /// Somebody else holds a lock that excludes this.
        public static let busy = Code(rawValue: "busy")
        /// No room on the medium.
        public static let noSpace = Code(rawValue: "no-space")
        /// The range lies behind the end of the medium (a truncated file, a smaller device).
        public static let outOfRange = Code(rawValue: "out-of-range")
        /// The device or file failed to read or write.
        public static let ioFailed = Code(rawValue: "io-failed")
        /// A flush failed: nothing may be assumed about what was written since the last one.
        public static let flushFailed = Code(rawValue: "flush-failed")
        /// The medium can't do that.
        public static let unsupported = Code(rawValue: "unsupported")
    }

    public var code: Code
    /// The medium, by its locator.
    public var medium: String
    /// What was being done, as a verb phrase: "read", "reserve space".
    public var operation: String
    /// Where on the medium, when the failure has a place.
    public var offset: MediumOffset?
    /// How many bytes the operation was about.
    public var length: ByteCount?
    /// The system's error number, or 0.
    public var errno: Int32
    /// What went wrong, as a phrase.
    public var reason: String
    /// What the caller can do about it, as a sentence; empty when there is nothing to suggest.
    public var remedy: String

    public init(
        _ code: Code, medium: String, operation: String, offset: MediumOffset? = nil, length: ByteCount? = nil,
        errno: Int32 = 0, reason: String, remedy: String = ""
    ) {
        self.code = code
        self.medium = medium
        self.operation = operation
        self.offset = offset
        self.length = length
        self.errno = errno
        self.reason = reason
        self.remedy = remedy
    }

    public var description: String {
        var text = "\(medium): can't \(operation)"
        if let offset {
            text += length.map { " \($0) bytes" } ?? ""
            text += " at offset \(offset)"
        }
        text += ": \(reason)"
        return remedy.isEmpty ? text : "\(text). \(remedy)"
    }
}
