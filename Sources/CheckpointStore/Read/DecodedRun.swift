// Reading run by run, for those who keep decoded runs over many reads and checkpoints.
//
// Invariants:
// - A decoded run was verified when it was decoded, and is never changed afterwards.
// - A page is found in a run by its number, which the run lists once at most: whoever asks for another page, region or span than
//   the run has gets nothing.

import Media
import StoreFormat
import Units

/// The pages of one run, verified and decoded. Immutable.
@safe package final class DecodedRun: Sendable {
    private let header: PageRunHeader
    private let content: AlignedBuffer

    init(_ header: PageRunHeader, _ content: AlignedBuffer) {
        self.header = header
        self.content = content
    }

    /// Memory that it takes.
    package var cost: ByteCount { ByteCount(header.pages.count * pageSize + 256) }

    /// The 4096 bytes of a page, by its number in the span, as long as this object lives; nil when the run does not have it.
    package func page(_ number: Int, of span: SpanIndex, _ region: RegionReader) -> UnsafeRawPointer? {
        guard header.span == span, header.regionKey == region.record.key else { return nil }
        guard let index = header.pages.firstIndex(of: UInt16(number)) else { return nil }
        return unsafe UnsafeRawPointer(content.base + index * pageSize)
    }
}

/// Where the pages of one span are. Immutable.
package struct SpanLayout: Sendable {
    package let span: SpanIndex
    private let map: SpanMap

    init(_ span: SpanIndex, _ map: SpanMap) {
        self.span = span
        self.map = map
    }

    /// Memory that it takes.
    package var cost: ByteCount { ByteCount(pagesPerSpan * 19 + map.runs.count * MemoryLayout<BlockPointer>.stride + 256) }

    /// Whether a page of the span, 0..<512, is zero.
    package func isZero(_ page: Int) -> Bool { map.isZero(page) }

    /// The run that a page is in; nil for a zero page.
    package func run(of page: Int) -> BlockPointer? { map.isZero(page) ? nil : map.runs[Int(map.runOf[page])] }

    /// The pages that are in `run`.
    package func pages(in run: BlockPointer) -> [Range<Int>] { (0..<pagesPerSpan).runs { self.run(of: $0) == run } }

    /// The pages among `wanted` that are not zero.
    package func data(among wanted: Range<Int>) -> [Range<Int>] { wanted.runs { !map.isZero($0) } }
}

extension RegionReader {
    /// Where the pages of `span` are; nil when they are all zero. Not kept here: that is the caller's to do.
    /// - Throws: `.corrupt` where the index is damaged, naming the span's pages; what reading throws.
    package func layout(of span: SpanIndex) throws(StoreError) -> SpanLayout? {
        do { return try spanMap(span, keep: false).map { SpanLayout(span, $0) } } catch {
            throw placed(error, pages: span.firstPage..<min(SpanIndex(span.rawValue + 1).firstPage, end))
        }
    }

    /// The first span from `span` on that has an index of its own: all before it are zero. nil: up to the region's end. O(depth).
    package func nextSpan(from span: SpanIndex) throws(StoreError) -> SpanIndex? {
        guard let root = record.root else { return nil }
        do { return try search(root, level: record.depth, first: SpanIndex(UInt64(0)), from: span) } catch {
            throw placed(error, pages: span.firstPage..<end)
        }
    }

    private func search(
        _ pointer: BlockPointer, level: UInt8, first: SpanIndex, from span: SpanIndex
    ) throws(StoreError) -> SpanIndex? {
        guard level > 0 else { return first >= span ? first : nil }
        let node = try innerNode(pointer, firstPage: first.firstPage, level: level)
        let covered = PageTable.spansPerChild(level: level)
        for (index, child) in node.children.enumerated() {
            let start = SpanIndex(first.rawValue + UInt64(index) * covered)
            guard let child, start.rawValue + covered > span.rawValue else { continue }
            if let found = try search(child, level: level - 1, first: start, from: span) { return found }
        }
        return nil
    }

    /// Reads, verifies and decodes a run that the layout of `span` names.
    /// - Throws: `.corrupt` where it is damaged; what reading throws. The caller knows which pages are concerned.
    package func decode(_ run: BlockPointer, of span: SpanIndex) throws(StoreError) -> DecodedRun {
        do {
            return try withDecoder { decoder throws(StoreError) in try decoder.decodeWhole(run, key: record.key, span: span) }
        } catch { throw placed(error, pages: nil) }
    }

    /// What is wrong with a page that its run does not have.
    package func missing(_ page: PageIndex, in run: BlockPointer) -> StoreError {
        let error = checkpoint.snapshot.blocks.misplaced(run, "it does not have a page that the index says it has")
        return placed(error, pages: page..<page + PageCount(1))
    }

    private var end: PageIndex { PageIndex(record.pageCount.rawValue) }

    private func placed(_ error: StoreError, pages: Range<PageIndex>?) -> StoreError {
        error.at(checkpoint: checkpoint.info.name, region: record.name, pages: pages)
    }
}

extension RunDecoder {
    /// All pages of the run at `pointer`, which must be of this region and span.
    fileprivate func decodeWhole(_ pointer: BlockPointer, key: RegionKey, span: SpanIndex) throws(StoreError) -> DecodedRun {
        let (bytes, block) = unsafe try blocks.readRun(pointer, into: stored.bytes)
        let header: PageRunHeader
        do { header = try PageRunHeader.decode(unsafe bytes.bytes) } catch { throw blocks.corrupt(error, pointer) }
        guard header.regionKey == key, header.span == span else { throw blocks.misplaced(pointer, "it belongs to another region or span") }
        let content = AlignedBuffer(count: header.pages.count * pageSize)
        let payload = unsafe UnsafeRawBufferPointer(rebasing: bytes[header.payloadOffset...])
        unsafe try decode(payload, header.codec, into: content.bytes, total: content.count, block.pointer)
        return DecodedRun(header, content)
    }
}

/// The space of a store in one generation.
package struct StoreSpace: Sendable {
    /// Of all segments.
    package var total: ByteCount
    /// Of segments that new checkpoints can fill.
    package var free: ByteCount
}

extension Snapshot {
    /// How much space the store has. O(1).
    package var space: StoreSpace {
        let size = UInt64(slot.geometry.segmentSize)
        let count = UInt64(slot.geometry.segmentCount)
        let taken = min(UInt64(slot.usedSegments) + UInt64(slot.reserveSegments), count)
        return StoreSpace(total: ByteCount(count * size), free: ByteCount((count - taken) * size))
    }
}
