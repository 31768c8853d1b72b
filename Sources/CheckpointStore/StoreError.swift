// The error type of the store: what failed, where (medium, checkpoint, region, pages), what to do.
//
// Invariant: an operation of the store either does what it says or throws one of these; it never
// returns bytes that it has not verified.

import Media
import StoreFormat
import Units

/// A store refused or failed an operation.
public struct StoreError: Error, Sendable, CustomStringConvertible {
    /// What kind of failure. A struct and not an enum, so that kinds can be added.
    public struct Code: RawRepresentable, Hashable, Sendable, CustomStringConvertible {
        public var rawValue: String
        public init(rawValue: String) { self.rawValue = rawValue }
        public var description: String { rawValue }
        /// The medium holds no store.
        public static let notAStore = Code(rawValue: "not-a-store")
        /// Stored bytes are damaged, or they contradict each other.
        public static let corrupt = Code(rawValue: "corrupt")
        /// The medium is shorter than the store on it.
        public static let truncated = Code(rawValue: "truncated")
        /// The store uses a format version or a feature that this program does not know.
        public static let unsupported = Code(rawValue: "unsupported")
        /// The parent of a new checkpoint is not in the store any more.
        public static let wrongBase = Code(rawValue: "wrong-base")
        /// No room: on the medium, or in the store.
        public static let noSpace = Code(rawValue: "no-space")
        /// Somebody else holds a lock for longer than the caller wanted to wait.
        public static let busy = Code(rawValue: "busy")
        /// The store was opened for reading only, or can be.
        public static let readOnly = Code(rawValue: "read-only")
        /// A flush failed earlier through this handle: nothing may be assumed about the medium. Reopen.
        public static let storeFailed = Code(rawValue: "store-failed")
        /// There is no such checkpoint, region or medium.
        public static let notFound = Code(rawValue: "not-found")
        /// A checkpoint, region or medium of that name is there already.
        public static let exists = Code(rawValue: "exists")
        /// A name that was pointed at the checkpoint keeps it from being deleted.
        public static let referenced = Code(rawValue: "referenced")
        /// What the caller handed in can't be stored: a bad name, size or range.
        public static let invalidInput = Code(rawValue: "invalid-input")
        /// The medium or an input file failed to read or write.
        public static let ioFailed = Code(rawValue: "io-failed")
        /// The system does not let this process do that.
        public static let permission = Code(rawValue: "permission")
        /// The operation was cancelled by its caller.
        public static let cancelled = Code(rawValue: "cancelled")
    }

    public var code: Code
    /// What went wrong, as a phrase.
    public var reason: String
    /// What the caller can do about it, as a sentence; empty when there is nothing to suggest.
    public var remedy: String
    /// The store's medium, by its locator; empty when none is concerned.
    public var medium: String
    /// Where on the medium.
    public var offset: MediumOffset?
    /// The checkpoint concerned, by name.
    public var checkpoint: String?
    /// The region concerned, by name.
    public var region: String?
    /// The pages concerned.
    public var pages: Range<PageIndex>?

    public init(
        _ code: Code, _ reason: String, remedy: String = "", medium: String = "", offset: MediumOffset? = nil,
        checkpoint: String? = nil, region: String? = nil, pages: Range<PageIndex>? = nil
    ) {
        self.code = code
        self.reason = reason
        self.remedy = remedy
        self.medium = medium
        self.offset = offset
        self.checkpoint = checkpoint
        self.region = region
        self.pages = pages
    }

    public var description: String {
        var place = medium
        if let checkpoint { place += (place.isEmpty ? "" : ", ") + "checkpoint \(checkpoint)" }
        if let region { place += (place.isEmpty ? "" : ", ") + "region \(region)" }
        if let pages { place += (place.isEmpty ? "" : ", ") + "pages \(pages.lowerBound)..<\(pages.upperBound)" }
        if let offset { place += (place.isEmpty ? "" : ", ") + "offset \(offset)" }
        let text = place.isEmpty ? reason : "\(place): \(reason)"
        return remedy.isEmpty ? text : "\(text). \(remedy)"
    }

    /// This error with the place filled in where it was not known further down.
    func at(
        checkpoint: String? = nil, region: String? = nil, pages: Range<PageIndex>? = nil
    ) -> StoreError {
        var error = self
        error.checkpoint = self.checkpoint ?? checkpoint
        error.region = self.region ?? region
        error.pages = self.pages ?? pages
        return error
    }

    /// What a medium's error means to the store.
    public init(_ error: MediumError) {
        let code: Code =
            switch error.code {
            case .notFound: .notFound
            case .exists, .foreignContent: .exists
            case .readOnly: .readOnly
            case .busy: .busy
            case .permission: .permission
            case .noSpace: .noSpace
            case .outOfRange: .truncated
            case .flushFailed: .storeFailed
            case .invalidLocator: .invalidInput
            case .unsupported: .invalidInput
            default: .ioFailed
            }
        var reason = "can't \(error.operation)"
        if let length = error.length { reason += " \(length) bytes" }
        reason += ": \(error.reason)"
        self.init(code, reason, remedy: error.remedy, medium: error.medium, offset: error.offset)
    }
}

extension StoreError {
    /// Whether it says that something stored can't be read, rather than that the store can't be used.
    var isDamage: Bool { [.corrupt, .truncated, .ioFailed].contains(code) }
}

/// Runs an operation of a medium and turns its error into the store's.
@inline(__always)
func onMedium<T>(_ body: () throws(MediumError) -> T) throws(StoreError) -> T {
    do { return try body() } catch { throw StoreError(error) }
}

extension Medium {
    /// `count` bytes as they are on the medium, unverified.
    func bytes(at offset: MediumOffset, count: Int) throws(StoreError) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: count)
        // The standard library's closure can't throw typed errors: what went wrong is carried out by hand.
        let failure: MediumError? = unsafe bytes.withUnsafeMutableBytes { buffer in
            do throws(MediumError) {
                unsafe try read(at: offset, into: buffer)
                return nil
            } catch { return error }
        }
        if let failure { throw StoreError(failure) }
        return bytes
    }

    /// Damage found at `pointer`, as the store's error.
    func corrupt(_ error: FormatError, at offset: MediumOffset) -> StoreError {
        StoreError(
            .corrupt, "\(error)",
            remedy: "Run `ckstore verify` to see which checkpoints and pages are concerned.",
            medium: name, offset: offset)
    }
}
