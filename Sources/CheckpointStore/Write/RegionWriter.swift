// Putting pages into a region: from memory, from a file, from a stream, page by page.

import Media
import StoreFormat
import Threading
import Units

/// Puts pages into one region of a checkpoint being written. Thread-safe.
public struct RegionWriter: Sendable {
    let writer: CheckpointWriter
    let region: RegionState

    /// The region's name.
    public var name: String { region.name }

    /// Puts consecutive pages from memory, working on several threads.
    ///
    /// `bytes` may end within a page where the region ends; the rest of that page is zero.
    /// - Parameters:
    ///   - first: the page that `bytes` starts with.
    ///   - isStable: true when nobody can change the bytes until this returns (they are write-protected or
    ///     privately owned). Otherwise every page is copied once, and that copy is what counts.
    /// - Throws: `.invalidInput` when the bytes reach beyond the region; what saving throws.
    public func write(
        _ bytes: UnsafeRawBufferPointer, at first: PageIndex, isStable: Bool
    ) throws(StoreError) {
        let source = try unsafe MemorySource(bytes, first: first, isStable: isStable, region: region, checkpoint: writer.name)
        try save(source)
    }

    /// Puts the content of an open file, by its extents: holes become zero pages.
    ///
    /// Reads with `pread`; the descriptor's position does not matter, but looking for extents moves it. The file starts at page `first`
    /// of the region. A file that ends within a page is padded with zeros.
    /// - Parameter byteLength: how much of the file; nil: all of it.
    public func write(
        file descriptor: Int32, byteLength: ByteCount? = nil, at first: PageIndex = PageIndex(UInt64(0))
    ) throws(StoreError) {
        try save(
            try FileSource(descriptor, byteLength: byteLength, first: first, region: region, checkpoint: writer.name))
    }

    /// Puts what can be read from a pipe, socket or file until its end, from page `first` on.
    public func write(
        stream descriptor: Int32, at first: PageIndex = PageIndex(UInt64(0))
    ) throws(StoreError) {
        try save(StreamSource(descriptor, first: first, region: region, checkpoint: writer.name))
    }

    /// Puts one page of 4096 bytes; it is copied before this returns. Pages may come in any order: those of
    /// one 2 MiB span that come close together are compressed together.
    public func put(page: PageIndex, _ bytes: UnsafeRawBufferPointer) throws(StoreError) {
        precondition(bytes.count == pageSize, "a page has 4096 bytes")
        try SourceRange.check(region, writer.name, first: page, byteCount: ByteCount(pageSize), endsRegion: false)
        try writer.putting { () throws(StoreError) in try unsafe writer.gatherer(for: region).put(page, bytes) }
    }

    /// Makes pages zero, whatever the parent has there. O(spans that have something else).
    public func putZeros(_ pages: Range<PageIndex>) throws(StoreError) { try putZeros(pages) { false } }

    /// The same, until `isCancelled`, which is asked before each span. Returns the end of what is zero now: where that is not the end of
    /// `pages`, it is that of a span.
    @discardableResult
    package func putZeros(_ pages: Range<PageIndex>, isCancelled: @escaping @Sendable () -> Bool) throws(StoreError) -> PageIndex {
        guard !pages.isEmpty else { return pages.upperBound }
        try SourceRange.check(
            region, writer.name, first: pages.lowerBound, byteCount: (pages.upperBound - pages.lowerBound).bytes,
            endsRegion: false)
        let source = ZeroSource(pages, of: region, isCancelled: isCancelled)
        try save(source)
        return source.position
    }

    /// Puts pages of one span in one step, so that the span gets one leaf for all of them.
    ///
    /// - Parameters:
    ///   - span: private memory for the 512 pages of the span; page q of it is at q * 4096.
    ///   - first: the first page of the span.
    ///   - given: the pages of the span that `span` has, ascending.
    ///   - zeros: pages of the span that are zero.
    /// - Throws: `.invalidInput` when a page lies behind the region's end; what saving throws.
    package func write(
        span bytes: UnsafeRawBufferPointer, at first: PageIndex, given: [UInt16], zeros: [Range<Int>]
    ) throws(StoreError) {
        precondition(bytes.count == pagesPerSpan * pageSize && first.rawValue % UInt64(pagesPerSpan) == 0, "a span is 512 pages, aligned")
        let end = max(given.last.map { Int($0) + 1 } ?? 0, zeros.last?.upperBound ?? 0)
        try SourceRange.check(region, writer.name, first: first, byteCount: PageCount(end).bytes, endsRegion: false)
        var (pages, zeroPages) = (PageSet(), PageSet())
        for page in given { pages.insert(Int(page)) }
        for range in zeros { zeroPages = zeroPages.union(PageSet(range)) }
        try unsafe save(
            SpanSource(SpanInput(span: SpanIndex(of: first), base: bytes.baseAddress, given: pages, zeros: zeroPages, isStable: true)))
    }

    private func save(_ source: any PageSource) throws(StoreError) {
        try writer.putting { () throws(StoreError) in
            // Pages put singly before this must not come after it.
            try writer.saveGathered(region)
            try saveSpans(source)
        }
    }

    private func saveSpans(_ source: any PageSource) throws(StoreError) {
        let done = Lock(PageCount.zero)
        let (writer, region) = (writer, region)
        try inParallel(workers: min(writer.options.parallelism, source.usefulWorkers)) { (_: Int) throws(StoreError) in
            try writer.withLane { lane throws(StoreError) in
                while let input = try source.next(into: lane.copy) {
                    try writer.checkOpen()
                    try writer.saveSpan(region, input, lane)
                    guard let progress = writer.options.progress else { continue }
                    let pages = PageCount(input.given.count + input.zeros.count)
                    progress(
                        done.withLock { done in
                            done += pages
                            return done
                        })
                }
            }
        }
    }
}

extension CheckpointWriter {
    /// Saves one span of a region over what the checkpoint has there so far.
    func saveSpan(_ region: RegionState, _ input: SpanInput, _ lane: Lane) throws(StoreError) {
        let span = input.span
        region.beginSpan(span)
        defer { region.endSpan(span) }
        do {
            let leaf = try currentLeaf(of: region, span: span)
            let parent: SpanMap?
            if let leaf {
                parent = try blocks.spanMap(at: leaf, bytes: try indexBlock(leaf), key: region.key, span: span, writer: self)
            } else {
                parent = nil
            }
            let builder = SpanBuilder(writer: self, lane: lane, key: region.key, limit: region.limit(of: span))
            let outcome = try builder.save(input, parent: parent, parentLeaf: leaf)
            if let leaf, leaf.birth == BlockBirth(id), outcome.leaf != leaf {
                try supersede(leaf, by: outcome.leaf, key: region.key, span: span)
            }
            region.record(outcome, span: span, isChanged: outcome.leaf != leaf)
        } catch {
            let first = span.firstPage
            throw error.at(checkpoint: name, region: region.name, pages: first..<first + PageCount(pagesPerSpan))
        }
    }

    /// Takes what only `old`, a leaf of this writer's own, led to off what this checkpoint has written: nothing will reach it.
    private func supersede(_ old: BlockPointer, by new: BlockPointer?, key: RegionKey, span: SpanIndex) throws(StoreError) {
        let leaves = SpanListingReader(store: store, key: key, span: span) { pointer throws(StoreError) in try self.indexBlock(pointer) }
        var dead = try leaves.listing(old)
        if let new { dead.subtract(try leaves.listing(new)) }
        try dead.forEach(of: BlockBirth(id)) { (block, places) throws(StoreError) in discount(block, places) }
    }

    /// The leaf of a span as the checkpoint has it now: its own, or the parent's.
    func currentLeaf(of region: RegionState, span: SpanIndex) throws(StoreError) -> BlockPointer? {
        if let own = region.progress.withLock({ $0.leaves[span] }) { return own }
        return try region.parentTree?.leaf(of: span)
    }
}

extension RegionState {
    /// How many pages of `span` the region has; all of them while it still grows.
    func limit(of span: SpanIndex) -> Int {
        let (length, isGrowing) = progress.withLock { ($0.byteLength, $0.isGrowing) }
        if isGrowing { return pagesPerSpan }
        let pages = PageCount(covering: length).rawValue
        let first = span.firstPage.rawValue
        return pages <= first ? 0 : Int(min(pages - first, UInt64(pagesPerSpan)))
    }

    /// Lets a region whose length is what was put reach to `end`.
    func grow(to end: ByteCount) {
        progress.withLock { progress in
            if progress.isGrowing, end > progress.byteLength { progress.byteLength = end }
        }
    }
}

/// Whether what is put fits the region.
enum SourceRange {
    static func check(
        _ region: RegionState, _ checkpoint: String, first: PageIndex, byteCount: ByteCount, endsRegion: Bool
    ) throws(StoreError) {
        let (start, overflow) = first.rawValue.multipliedReportingOverflow(by: UInt64(pageSize))
        let (end, overflow2) = start.addingReportingOverflow(byteCount.rawValue)
        let (length, isGrowing) = region.progress.withLock { ($0.byteLength, $0.isGrowing) }
        let limit = isGrowing ? UInt64(Int64.max) : PageCount(covering: length).bytes.rawValue
        let isPartial = byteCount.rawValue % UInt64(pageSize) != 0
        guard !overflow, !overflow2, end <= limit, !isPartial || isGrowing || (endsRegion && end == length.rawValue) else {
            throw StoreError(
                .invalidInput, "\(byteCount) bytes from page \(first) on don't fit the region's length of \(length) bytes",
                remedy: "Give the region its right length, or fewer bytes; only its last page may be partly filled.",
                checkpoint: checkpoint, region: region.name)
        }
        if isGrowing, region.kind == .memory, isPartial {
            throw StoreError(
                .invalidInput, "the image's length of \(byteCount) bytes is no multiple of the page of \(pageSize) bytes",
                remedy: "Pad the image, or store it as state or disk, which may have any length.", checkpoint: checkpoint,
                region: region.name)
        }
        region.grow(to: ByteCount(end))
    }
}
