// The error type of live checkpoints: what failed, where, what to do.
//
// Invariant: an operation that throws has left the machine as it found it, or says in its documentation what
// it leaves.

import CheckpointStore
import Glibc

/// Taking, keeping or bringing back a live machine's checkpoint failed.
public struct EngineError: Error, Sendable, CustomStringConvertible {
    /// What kind of failure. A struct and not an enum, so that kinds can be added.
    public struct Code: RawRepresentable, Hashable, Sendable, CustomStringConvertible {
        public var rawValue: String
        public init(rawValue: String) { self.rawValue = rawValue }
        public var description: String { rawValue }
        /// The store, or its medium, refused or failed: see `storeError`.
        public static let store = Code(rawValue: "store")
        /// Nobody answers at the machine's control socket, or the connection broke.
        public static let connection = Code(rawValue: "connection")
        /// The other side does not keep to its protocol.
        public static let protocolViolation = Code(rawValue: "protocol-violation")
        /// The machine refused a command.
        public static let refused = Code(rawValue: "refused")
        /// No answer in the time allowed.
        public static let timeout = Code(rawValue: "timeout")
        /// The machine's process has ended.
        public static let exited = Code(rawValue: "exited")
        /// This machine, kernel or version can't do what is needed.
        public static let unsupported = Code(rawValue: "unsupported")
        /// Somebody else is at work on the machine, or it is in no state for this.
        public static let busy = Code(rawValue: "busy")
        /// There is no such thing.
        public static let notFound = Code(rawValue: "not-found")
        /// What the caller handed in can't be used.
        public static let invalidInput = Code(rawValue: "invalid-input")
        /// The checkpoint does not fit the machine that should load it.
        public static let mismatch = Code(rawValue: "mismatch")
        /// Too little memory on this host.
        public static let noMemory = Code(rawValue: "no-memory")
        /// No room on a file system of this host.
        public static let noSpace = Code(rawValue: "no-space")
        /// Bytes that were handed over are damaged or contradict each other.
        public static let corrupt = Code(rawValue: "corrupt")
        /// The system does not let this process do that.
        public static let permission = Code(rawValue: "permission")
        /// A system call failed.
        public static let ioFailed = Code(rawValue: "io-failed")
        /// The operation was cancelled by its caller.
        public static let cancelled = Code(rawValue: "cancelled")
    }

    public var code: Code
    /// What went wrong, as a phrase.
    public var reason: String
    /// What the caller can do about it, as a sentence; empty when there is nothing to suggest.
    public var remedy: String
    /// What it concerns: a socket, a process, a disk, a RAM block; empty when there is no such place.
    public var place: String
    /// The store's own error, when the code is `.store`.
    public var storeError: StoreError?

    public init(_ code: Code, _ reason: String, remedy: String = "", place: String = "") {
        self.code = code
        self.reason = reason
        self.remedy = remedy
        self.place = place
    }

    /// What a store's error means to an engine: the same. A cancelled save is a cancelled operation.
    public init(_ error: StoreError) {
        self.init(error.code == .cancelled ? .cancelled : .store, error.reason, remedy: error.remedy)
        storeError = error
    }

    /// The error of a system call that just failed with `number`.
    public init(system what: String, _ number: Int32, remedy: String = "", place: String = "") {
        let code: Code =
            switch number {
            case ENOENT, ESRCH: .notFound
            case EPERM, EACCES: .permission
            case ENOMEM: .noMemory
            case ENOSPC, EDQUOT: .noSpace
            case ENOSYS, EOPNOTSUPP: .unsupported
            default: .ioFailed
            }
        self.init(code, "can't \(what): \(unsafe String(cString: strerror(number)))", remedy: remedy, place: place)
    }

    /// This error, saying also what went wrong when its consequences were to be mended.
    public func adding(_ other: EngineError) -> EngineError {
        var error = self
        error.remedy = [remedy, "Besides, the machine could not be brought back whole: \(other)."].filter { !$0.isEmpty }.joined(separator: " ")
        error.storeError?.remedy = error.remedy
        return error
    }

    public var description: String {
        if let storeError { return storeError.description }
        let text = place.isEmpty ? reason : "\(place): \(reason)"
        return remedy.isEmpty ? text : "\(text). \(remedy)"
    }
}

/// Runs an operation of a store and turns its error into an engine's.
@inlinable public func onStore<T>(_ body: () throws(StoreError) -> T) throws(EngineError) -> T {
    do { return try body() } catch { throw EngineError(error) }
}
