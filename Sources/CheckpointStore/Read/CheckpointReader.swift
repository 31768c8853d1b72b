// Reading the regions of a checkpoint: by page, by range, whole.

import Glibc
import StoreFormat
import Threading
import Units

/// A checkpoint opened for reading. Thread-safe.
public final class CheckpointReader: Sendable {
    /// The view that keeps it readable.
    public let snapshot: Snapshot
    /// What the checkpoint is.
    public let info: CheckpointInfo

    init(snapshot: Snapshot, info: CheckpointInfo) {
        self.snapshot = snapshot
        self.info = info
    }

    /// Opens the region called `name`. O(1).
    /// - Throws: `.notFound`.
    public func region(_ name: String) throws(StoreError) -> RegionReader {
        guard let record = info.record.regions.first(where: { Names.equal($0.name, name) }) else {
            throw StoreError(
                .notFound, "the checkpoint has no such region",
                remedy: "It has: \(info.record.regions.map(\.name).joined(separator: ", ")).",
                medium: snapshot.store.medium.name, checkpoint: info.name, region: name)
        }
        return RegionReader(checkpoint: self, record: record)
    }
}

/// Reads one region of a checkpoint. Every byte returned has been verified. Thread-safe.
///
/// Keeps decoded index nodes of the places read last, so that random reads cost one run each.
public final class RegionReader: Sendable {
    let checkpoint: CheckpointReader
    let record: RegionRecord
    private let store: CheckpointStore
    private let blocks: BlockReader
    private let cache: Lock<Cache>

    private struct Cache {
        var inner: [PageIndex: [UInt8: InnerNode]] = [:]
        var innerCount = 0
        var spans: [SpanIndex: SpanMap] = [:]
        var decoders: [RunDecoder] = []
    }
    /// Spans kept decoded: about 10 KiB each, the memory of 2 GiB of region.
    private static let cachedSpans = 1024
    private static let cachedInnerNodes = 256

    init(checkpoint: CheckpointReader, record: RegionRecord) {
        self.checkpoint = checkpoint
        self.record = record
        store = checkpoint.snapshot.store
        blocks = checkpoint.snapshot.blocks
        cache = Lock(Cache())
    }

    /// What the region is.
    public var info: RegionInfo { RegionInfo(record) }

    /// Copies one page into `buffer`, which has 4096 bytes. The rest of a partly filled last page is zero.
    /// - Throws: `.invalidInput` behind the region's end; `.corrupt` where the page is damaged.
    public func read(page: PageIndex, into buffer: UnsafeMutableRawBufferPointer) throws(StoreError) {
        precondition(buffer.count == pageSize, "a page has 4096 bytes")
        try unsafe read(pages: page..<page + PageCount(1), into: buffer)
    }

    /// Copies whole pages into `buffer`, which has just their size.
    public func read(pages: Range<PageIndex>, into buffer: UnsafeMutableRawBufferPointer) throws(StoreError) {
        precondition(UInt64(buffer.count) == (pages.upperBound - pages.lowerBound).bytes.rawValue, "the buffer must have the size of the pages")
        guard pages.upperBound.rawValue <= record.pageCount.rawValue else { throw outOfRange(pages) }
        guard let start = buffer.baseAddress, !pages.isEmpty else { return }
        let target = unsafe PageTarget(start, isZeroed: false)
        var cursor = SpanCursor(pages.lowerBound.rawValue..<pages.upperBound.rawValue)
        try withDecoder { decoder throws(StoreError) in
            while let (span, wanted) = cursor.advance() {
                try place(span, wanted, origin: pages.lowerBound, target, decoder, keep: true)
            }
        }
    }

    /// Copies bytes from `offset` on into `buffer`.
    /// - Throws: `.invalidInput` when that reaches behind the region's end.
    public func read(at offset: ByteCount, into buffer: UnsafeMutableRawBufferPointer) throws(StoreError) {
        let (end, overflow) = offset.rawValue.addingReportingOverflow(UInt64(buffer.count))
        guard !overflow, end <= record.byteLength.rawValue else {
            throw StoreError(
                .invalidInput, "\(buffer.count) bytes at offset \(offset) reach behind its \(record.byteLength) bytes",
                remedy: "Read less.", medium: store.medium.name, checkpoint: checkpoint.info.name, region: record.name)
        }
        guard unsafe !buffer.isEmpty else { return }
        let first = PageIndex(offset.rawValue / UInt64(pageSize))
        let last = PageIndex((end - 1) / UInt64(pageSize))
        // A few pages at a time, so that any length costs the same small buffer.
        let chunk = AlignedBuffer(count: pagesPerRun * pageSize)
        var page = first
        var done = 0
        while page <= last {
            let count = min(last.rawValue - page.rawValue + 1, UInt64(pagesPerRun))
            let pages = unsafe UnsafeMutableRawBufferPointer(rebasing: chunk.bytes[0..<Int(count) * pageSize])
            unsafe try read(pages: page..<page + PageCount(count), into: pages)
            let skip = page == first ? Int(offset.rawValue % UInt64(pageSize)) : 0
            let length = min(Int(count) * pageSize - skip, buffer.count - done)
            unsafe memcpy(buffer.baseAddress! + done, chunk.base + skip, length)
            done += length
            page = page + PageCount(count)
        }
    }

    /// Reads the whole region into memory, on several threads.
    ///
    /// - Parameters:
    ///   - buffer: at least as long as the region, rounded up to whole pages.
    ///   - isZeroed: true when the target is known to be zero, so that zero pages need no writing (and
    ///     fresh memory is not touched for them).
    ///   - progress: called after each span with the pages done so far, by the working threads.
    public func readAll(
        into buffer: UnsafeMutableRawBufferPointer, isZeroed: Bool = false,
        parallelism: Int = WriterOptions.defaultParallelism, progress: (@Sendable (PageCount) -> Void)? = nil
    ) throws(StoreError) {
        precondition(UInt64(buffer.count) >= record.pageCount.bytes.rawValue, "the buffer must hold the region's pages")
        guard let start = buffer.baseAddress, record.pageCount.rawValue > 0 else { return }
        let target = unsafe PageTarget(start, isZeroed: isZeroed)
        try forEachSpan(parallelism: parallelism, progress: progress) { (span, wanted, decoder) throws(StoreError) in
            try self.place(span, wanted, origin: PageIndex(UInt64(0)), target, decoder, keep: false)
        }
    }

    /// Hands the region out span by span, from several threads in any order: its first page, which of its pages are not zero, and
    /// private memory that holds these pages at their places (page q of the span at q * 4096; others undefined).
    public func forEachSpanOfData(
        parallelism: Int = WriterOptions.defaultParallelism, progress: (@Sendable (PageCount) -> Void)? = nil,
        _ body: @escaping @Sendable (PageIndex, [Range<Int>], UnsafeRawBufferPointer) throws(StoreError) -> Void
    ) throws(StoreError) {
        let buffers = Lock<[AlignedBuffer]>([])
        try forEachSpan(parallelism: parallelism, progress: progress) { (span, wanted, decoder) throws(StoreError) in
            guard let map = try self.spanMap(span, keep: false) else { return }
            let buffer = buffers.withLock { $0.popLast() } ?? AlignedBuffer(count: pagesPerSpan * pageSize)
            defer { buffers.withLock { $0.append(buffer) } }
            try self.placing(span, wanted) { () throws(StoreError) in
                unsafe try decoder.place(PageSet(wanted), of: map, key: self.record.key, span: span, at: buffer.base)
            }
            let data = wanted.runs { !map.isZero($0) }
            if !data.isEmpty { unsafe try body(span.firstPage, data, UnsafeRawBufferPointer(buffer.bytes)) }
        }
    }

    /// Which pages are not zero, as ranges in ascending order. O(spans) reads, none of page data.
    public func dataRanges() throws(StoreError) -> [Range<PageIndex>] {
        var ranges: [Range<PageIndex>] = []
        var cursor = SpanCursor(0..<record.pageCount.rawValue)
        while let (span, pages) = cursor.advance() {
            guard let map = try spanMap(span, keep: false) else { continue }
            for run in pages.runs(where: { !map.isZero($0) }) {
                let low = span.firstPage + PageCount(run.lowerBound)
                let high = span.firstPage + PageCount(run.upperBound)
                if let last = ranges.last, last.upperBound == low {
                    ranges[ranges.count - 1] = last.lowerBound..<high
                } else {
                    ranges.append(low..<high)
                }
            }
        }
        return ranges
    }

    // MARK: spans

    /// Where pages go; whoever makes one vouches that threads write to different pages of it.
    @safe struct PageTarget: @unchecked Sendable {
        let start: UnsafeMutableRawPointer
        let isZeroed: Bool
        init(_ start: UnsafeMutableRawPointer, isZeroed: Bool) {
            unsafe self.start = start
            self.isZeroed = isZeroed
        }
    }

    private func forEachSpan(
        parallelism: Int, progress: (@Sendable (PageCount) -> Void)?,
        _ body: @escaping @Sendable (SpanIndex, Range<Int>, RunDecoder) throws(StoreError) -> Void
    ) throws(StoreError) {
        let cursor = SpanCursor(0..<record.pageCount.rawValue)
        let shared = Lock((cursor: cursor, done: PageCount.zero))
        try inParallel(workers: max(1, min(parallelism, cursor.spansLeft))) { (_: Int) throws(StoreError) in
            try self.withDecoder { decoder throws(StoreError) in
                while let (span, wanted) = shared.withLock({ $0.cursor.advance() }) {
                    try body(span, wanted, decoder)
                    guard let progress else { continue }
                    progress(
                        shared.withLock { shared in
                            shared.done += PageCount(wanted.count)
                            return shared.done
                        })
                }
            }
        }
    }

    /// Puts the `wanted` pages of a span into the target, whose first page is `origin`.
    private func place(
        _ span: SpanIndex, _ wanted: Range<Int>, origin: PageIndex, _ target: PageTarget, _ decoder: RunDecoder, keep: Bool
    ) throws(StoreError) {
        let base = unsafe target.start + (Int(span.firstPage.rawValue) - Int(origin.rawValue)) * pageSize
        try placing(span, wanted) { () throws(StoreError) in
            let map = try spanMap(span, keep: keep) ?? .empty
            if target.isZeroed {
                unsafe populate(base, wanted.runs { !map.isZero($0) })
            } else {
                for zeros in wanted.runs(where: { map.isZero($0) }) {
                    unsafe memset(base + zeros.lowerBound * pageSize, 0, zeros.count * pageSize)
                }
            }
            unsafe try decoder.place(PageSet(wanted), of: map, key: record.key, span: span, at: base)
        }
    }

    /// Has the kernel put memory behind pages that are about to be written: in one call for all of them it costs a good deal less than a
    /// fault for each. Where the kernel does not know the call, or won't, the faults come as always.
    private func populate(_ base: UnsafeMutableRawPointer, _ pages: [Range<Int>]) {
        let populateWrite: Int32 = 23
        for run in pages { _ = unsafe madvise(base + run.lowerBound * pageSize, run.count * pageSize, populateWrite) }
    }

    /// Names the place of what goes wrong in `body`.
    private func placing(
        _ span: SpanIndex, _ wanted: Range<Int>, _ body: () throws(StoreError) -> Void
    ) throws(StoreError) {
        do { try body() } catch {
            let first = span.firstPage
            throw error.at(
                checkpoint: checkpoint.info.name, region: record.name,
                pages: first + PageCount(wanted.lowerBound)..<first + PageCount(wanted.upperBound))
        }
    }

    /// Where the pages of a span are; nil when they are all zero.
    func spanMap(_ span: SpanIndex, keep: Bool) throws(StoreError) -> SpanMap? {
        if let known = cache.withLock({ $0.spans[span] }) { return known }
        guard let leaf = try leaf(of: span) else { return nil }
        let map = try blocks.readSpan(leaf, of: record, span: span)
        if keep {
            cache.withLock { cache in
                if cache.spans.count >= Self.cachedSpans { cache.spans.remove(at: cache.spans.startIndex) }
                cache.spans[span] = map
            }
        }
        return map
    }

    private func leaf(of span: SpanIndex) throws(StoreError) -> BlockPointer? {
        guard var pointer = record.root else { return nil }
        for level in stride(from: record.depth, to: 0, by: -1) {
            let node = try innerNode(pointer, firstPage: PageTable.firstPage(of: span, level: level), level: level)
            guard let child = node.children[PageTable.childIndex(span, level: level)] else { return nil }
            pointer = child
        }
        return pointer
    }

    func innerNode(
        _ pointer: BlockPointer, firstPage: PageIndex, level: UInt8
    ) throws(StoreError) -> InnerNode {
        if let known = cache.withLock({ $0.inner[firstPage]?[level] }) { return known }
        let node = try blocks.readInner(pointer, of: record, firstPage: firstPage, level: level)
        cache.withLock { cache in
            if cache.innerCount >= Self.cachedInnerNodes {
                cache.inner = [:]
                cache.innerCount = 0
            }
            cache.inner[firstPage, default: [:]][level] = node
            cache.innerCount += 1
        }
        return node
    }

    func withDecoder<R>(_ body: (RunDecoder) throws(StoreError) -> R) throws(StoreError) -> R {
        let decoder = Handed(cache.withLock { $0.decoders.popLast() } ?? RunDecoder(blocks)).value
        defer { cache.withLock { $0.decoders.append(decoder) } }
        return try body(decoder)
    }

    private func outOfRange(_ pages: Range<PageIndex>) -> StoreError {
        StoreError(
            .invalidInput, "the region has \(record.pageCount) pages", remedy: "Read less.", medium: store.medium.name,
            checkpoint: checkpoint.info.name, region: record.name, pages: pages)
    }
}

extension Range<Int> {
    /// The maximal pieces of the range whose members all satisfy `condition`.
    func runs(where condition: (Int) -> Bool) -> [Range<Int>] {
        var runs: [Range<Int>] = []
        var start: Int?
        for value in self {
            if condition(value) {
                start = start ?? value
            } else if let low = start {
                runs.append(low..<value)
                start = nil
            }
        }
        if let low = start { runs.append(low..<upperBound) }
        return runs
    }
}
