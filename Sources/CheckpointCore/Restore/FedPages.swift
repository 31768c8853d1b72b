// Pages on their way from the store to a machine.
//
// Invariant: the bytes are what the store verified, and nobody changes them as long as the object lives.

import CheckpointStore
import PageCodec
import Units

/// Consecutive pages of one block that a feed has handed out. Its memory goes back to the feed when it is dropped.
public final class FedPages: Sendable {
    /// The block that they belong to.
    public let block: MemoryBlockIndex
    public let pages: Range<PageIndex>
    private let buffer: AlignedBuffer?
    private let feed: PageFeed

    init(block: MemoryBlockIndex, pages: Range<PageIndex>, buffer: AlignedBuffer?, feed: PageFeed) {
        self.block = block
        self.pages = pages
        self.buffer = buffer
        self.feed = feed
    }

    deinit { if let buffer { feed.release(buffer, byteCount: byteCount) } }

    private var byteCount: Int { (pages.upperBound - pages.lowerBound).bytes.int }

    /// True when they are known to be zero, all of them; then there are no bytes to look at.
    public var areZero: Bool { buffer == nil }

    /// Calls `body` with the bytes of all pages; not for pages that are known to be zero.
    public func withBytes<R, E: Error>(_ body: (UnsafeRawBufferPointer) throws(E) -> R) throws(E) -> R {
        guard let buffer else { preconditionFailure("pages that are known to be zero have no bytes") }
        return try unsafe body(UnsafeRawBufferPointer(start: buffer.base, count: byteCount))
    }

    /// Calls `body` for each page in order with its bytes; nil: it is zero.
    public func forEachPage<E: Error>(_ body: (PageIndex, UnsafeRawBufferPointer?) throws(E) -> Void) throws(E) {
        for offset in 0..<(pages.upperBound - pages.lowerBound).int {
            var bytes: UnsafeRawBufferPointer?
            if let buffer {
                unsafe bytes = UnsafeRawBufferPointer(start: buffer.base + offset * pageSize, count: pageSize)
                if unsafe isZero(bytes!) { unsafe bytes = nil }
            }
            try unsafe body(pages.lowerBound + PageCount(offset), bytes)
        }
    }
}
