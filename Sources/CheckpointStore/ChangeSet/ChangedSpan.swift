// The changes of one span of 512 pages, and their content on demand.
//
// Invariant: pages behind the newer region's end are not among the changes: its length says that they are gone.

import PageCodec
import StoreFormat
import Units

/// What changed within one span of a region. Thread-safe.
public struct ChangedSpan: Sendable {
    /// The span's first page in the region.
    public var firstPage: PageIndex { span.firstPage }
    /// Pages of the span that have new content, which is not zero: ascending ranges within 0..<512.
    public let written: [Range<Int>]
    /// Pages of the span that were not zero and are now: ascending ranges within 0..<512.
    public let zeroed: [Range<Int>]

    private let region: RegionReader
    private let span: SpanIndex
    private let map: SpanMap

    init(region: RegionReader, span: SpanIndex, older: SpanMap, newer: SpanMap) throws(StoreError) {
        self.region = region
        self.span = span
        map = newer
        let (first, end) = (span.firstPage.rawValue, region.record.pageCount.rawValue)
        let limit = end > first ? Int(min(end - first, UInt64(pagesPerSpan))) : 0
        var (written, zeroed): ([Range<Int>], [Range<Int>]) = ([], [])
        try newer.forEachDifference(since: older) { (pages, kind) throws(StoreError) in
            let pages = pages.clamped(to: 0..<limit)
            guard !pages.isEmpty else { return }
            guard kind != .onlyInOlder else { return zeroed.append(pages) }
            if let last = written.last, last.upperBound == pages.lowerBound {
                written[written.count - 1] = last.lowerBound..<pages.upperBound
            } else {
                written.append(pages)
            }
        }
        (self.written, self.zeroed, pageCount) = (written, zeroed, limit)
    }

    /// How many pages of the span the region has.
    package let pageCount: Int
    /// True when all pages of the span are zero now.
    package var isZero: Bool { map.storedPages == 0 }
    var isEmpty: Bool { written.isEmpty && zeroed.isEmpty }
    /// How many pages have new content.
    public var writtenPages: PageCount { PageCount(written.reduce(0) { $0 + $1.count }) }
    /// How many pages have become zero.
    public var zeroedPages: PageCount { PageCount(zeroed.reduce(0) { $0 + $1.count }) }

    /// Puts the pages with new content at their places in `buffer`, which has 512 pages: page q of the span at q * 4096. The rest of it
    /// is left as it is.
    /// - Throws: `.corrupt` where a page is damaged; what reading throws.
    public func read(into buffer: UnsafeMutableRawBufferPointer) throws(StoreError) {
        precondition(buffer.count == pagesPerSpan * pageSize, "the buffer must have 512 pages")
        guard let base = buffer.baseAddress else { return }
        try unsafe placing(base) { _, _, _ in false }
    }

    /// Hands the pages with new content over run by run: runs that are wanted whole as they are stored, verified but not decoded.
    ///
    /// - Parameters:
    ///   - buffer: 512 pages; gets the pages of all other runs, page q of the span at q * 4096.
    ///   - body: gets a run's pages (ascending), how its payload is coded, and the payload.
    /// - Returns: the pages that are in `buffer`.
    package func takeRuns(
        into buffer: UnsafeMutableRawBufferPointer,
        _ body: ([UInt16], RunCodec, UnsafeRawBufferPointer) -> Void
    ) throws(StoreError) -> [UInt16] {
        precondition(buffer.count == pagesPerSpan * pageSize, "the buffer must have 512 pages")
        guard let base = buffer.baseAddress else { return [] }
        var left = pages
        unsafe try placing(base) { pages, codec, payload in
            unsafe body(pages, codec, payload)
            for page in pages { left.remove(Int(page)) }
            return true
        }
        var rest: [UInt16] = []
        left.forEach { rest.append(UInt16($0)) }
        return rest
    }

    private var pages: PageSet { written.reduce(PageSet()) { $0.union(PageSet($1)) } }

    private func placing(
        _ base: UnsafeMutableRawPointer, _ whole: ([UInt16], RunCodec, UnsafeRawBufferPointer) -> Bool
    ) throws(StoreError) {
        do throws(StoreError) {
            try region.withDecoder { decoder throws(StoreError) in
                unsafe try decoder.place(pages, of: map, key: region.record.key, span: span, at: base, orTake: whole)
            }
        } catch {
            throw error.at(
                checkpoint: region.checkpoint.info.name, region: region.record.name, pages: firstPage..<firstPage + PageCount(pagesPerSpan))
        }
    }
}
