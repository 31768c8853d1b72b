// What an engine needs of the place where checkpoints are kept.
//
// Invariants:
// - A checkpoint is visible, whole and durable, when `commit` has returned, and not at all before.
// - Bytes that a source returns have been verified; damage is an error.

import StoreFormat
import Units

/// A place where engines keep checkpoints. `StoreBackedDataStore` is the one that comes with ckstore.
///
/// Thread-safe. Calls block: make them on threads of your own.
public protocol CheckpointDataStore: Sendable {
    /// Begins a checkpoint.
    /// - Parameter parent: the checkpoint whose equal pages are not stored again; nil: none.
    /// - Throws: `.store` when the name is taken or bad, the parent is not there, the store is full or fails.
    func begin(_ name: String, parent: String?) throws(EngineError) -> any CheckpointSink
    /// Opens a checkpoint for reading. It stays readable as long as the source lives, whatever is deleted.
    func source(_ name: String) throws(EngineError) -> any CheckpointSource
    /// The newest checkpoint's name; nil when there is none.
    func latest() throws(EngineError) -> String?
}

/// A checkpoint being written. Thread-safe. Ends with `commit` or `abort`; one that is dropped is aborted.
public protocol CheckpointSink: Sendable {
    /// Identifies the checkpoint for good, in this store and in others.
    var id: CheckpointID { get }
    /// The parent's identity; nil when there is none.
    var parentID: CheckpointID? { get }
    /// Adds a region, or returns the one that was added. Pages that are never put are the parent's, else zero.
    func addRegion(_ name: String, kind: RegionKind, byteLength: ByteCount) throws(EngineError) -> any RegionSink
    /// Adds a region with `bytes` as its whole content.
    func putBlob(_ name: String, _ bytes: [UInt8]) throws(EngineError)
    /// Sets a label.
    func setLabel(_ key: String, _ value: String) throws(EngineError)
    /// Makes everything under way and the commit throw `.cancelled`. From any thread.
    func cancel()
    /// Makes it durable and visible.
    func commit() throws(EngineError) -> CheckpointReceipt
    /// Gives it up without a trace. Harmless after a commit.
    func abort()
}

/// Takes the pages of one region, in any order, from any thread.
public protocol RegionSink: Sendable {
    /// Puts consecutive pages; a page that is put again replaces what was put before.
    /// - Parameter isStable: true when nobody changes the bytes before this returns.
    func write(_ bytes: UnsafeRawBufferPointer, at first: PageIndex, isStable: Bool) throws(EngineError)
    /// Puts one page, copied before this returns.
    func put(page: PageIndex, _ bytes: UnsafeRawBufferPointer) throws(EngineError)
    /// Makes pages zero, whatever the parent has there.
    func putZeros(_ pages: Range<PageIndex>) throws(EngineError)
}

/// What a commit came to.
public struct CheckpointReceipt: Sendable {
    /// The checkpoint's identity.
    public var id: CheckpointID
    /// Pages that were stored because the parent has them not.
    public var newPages: PageCount
    /// Bytes that they took, compressed, with their index.
    public var storedBytes: ByteCount

    public init(id: CheckpointID, newPages: PageCount, storedBytes: ByteCount) {
        self.id = id
        self.newPages = newPages
        self.storedBytes = storedBytes
    }
}

/// A checkpoint open for reading. Thread-safe.
public protocol CheckpointSource: Sendable {
    var name: String { get }
    var id: CheckpointID { get }
    /// Its regions, in the order of their names.
    var regions: [RegionSummary] { get }
    func region(_ name: String) throws(EngineError) -> any RegionSource
    /// The whole content of a region that is no longer than `limit`; `.corrupt` when it is longer.
    func blob(_ name: String, limit: ByteCount) throws(EngineError) -> [UInt8]
}

/// One region of a checkpoint.
public struct RegionSummary: Sendable, Equatable {
    public var name: String
    public var kind: RegionKind
    public var byteLength: ByteCount

    public init(name: String, kind: RegionKind, byteLength: ByteCount) {
        self.name = name
        self.kind = kind
        self.byteLength = byteLength
    }
}

/// The pages of one region, each verified before it is returned. Thread-safe.
public protocol RegionSource: Sendable {
    var byteLength: ByteCount { get }
    /// Reads consecutive pages; `buffer` has exactly their size.
    func read(pages: Range<PageIndex>, into buffer: UnsafeMutableRawBufferPointer) throws(EngineError)
    /// Calls `body` on several threads for each 2 MiB span that has pages other than zero: with the span's first page, the
    /// pages of it that are not zero (relative to that), and the bytes of the span.
    func forEachSpanOfData(
        _ body: @escaping @Sendable (PageIndex, [Range<Int>], UnsafeRawBufferPointer) throws(EngineError) -> Void
    ) throws(EngineError)
    /// The pages that are not known to be zero, in order, joined where they touch.
    func dataRanges() throws(EngineError) -> [Range<PageIndex>]
}
