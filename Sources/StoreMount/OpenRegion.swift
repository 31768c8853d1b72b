// A region as an open file: reading any bytes of it, finding data and holes.
//
// Invariants:
// - Bytes that are handed out were verified when they were decoded; a request gets all of its bytes or an error. The kernel asks
//   again page by page after an error, so that what is not damaged stays readable.
// - What a reply points to stays alive until the reply has been sent.

import CheckpointStore
import Glibc
import StoreFormat
import Threading
import Units

/// One region that somebody has open; all who have share it. Thread-safe.
final class OpenRegion: Sendable {
    let inode: Inode
    /// Keeps the generation that the file was opened in.
    let folder: MountedFolder
    let region: RegionInfo
    private let pages: RegionPages
    private let progress = Lock(Progress())

    private struct Progress {
        /// Where reading in order would go on.
        var next: UInt64 = 0
        /// Requests in a row that went on about there.
        var inOrder = 0
        /// The first span that was not prepared ahead.
        var prepared = SpanIndex(UInt64(0))
        /// Pages that are known to have no hole among them.
        var dense: Range<PageIndex>?
        var isClosed = false
    }

    init(_ inode: Inode, _ folder: MountedFolder, _ region: RegionInfo, _ pages: RegionPages) {
        self.inode = inode
        self.folder = folder
        self.region = region
        self.pages = pages
    }

    private var length: UInt64 { region.byteLength.rawValue }

    // MARK: reading

    /// Hands `body` the bytes from `offset` on as pieces of memory, which are valid while it runs: `size` bytes, fewer only at the end
    /// of the file.
    /// - Throws: `.corrupt` naming the damaged pages; what reading throws. `body` has not run then.
    func read(at offset: UInt64, _ size: Int, _ body: (borrowing Pieces) -> Void) throws(StoreError) {
        var pieces = Pieces()
        let end = offset < length ? min(length, offset + UInt64(size)) : offset
        var position = offset
        while position < end {
            let span = SpanIndex(of: PageIndex(position / UInt64(pageSize)))
            let stop = min(end, SpanIndex(span.rawValue + 1).firstPage.rawValue * UInt64(pageSize))
            try add(position..<stop, of: span, to: &pieces)
            position = stop
        }
        body(pieces)
    }

    private func add(_ bytes: Range<UInt64>, of span: SpanIndex, to pieces: inout Pieces) throws(StoreError) {
        let start = span.firstPage.rawValue * UInt64(pageSize)
        let (low, high) = (Int(bytes.lowerBound - start), Int(bytes.upperBound - start))
        guard let layout = try pages.layout(of: span, self) else { return pieces.addZeros(high - low) }
        let wanted = low / pageSize..<(high + pageSize - 1) / pageSize
        let reader = try pages.reader(of: self)
        var known: (pointer: BlockPointer, run: DecodedRun)?
        for page in wanted {
            let (from, to) = (max(low, page * pageSize), min(high, (page + 1) * pageSize))
            guard let pointer = layout.run(of: page) else {
                pieces.addZeros(to - from)
                continue
            }
            if known?.pointer != pointer {
                let run = try pages.run(pointer, in: layout, self)
                pieces.keep(run)
                known = (pointer, run)
            }
            if unsafe known!.run.page(page, of: span, reader) == nil {
                // A run that was moved since, and decoded for a newer generation, may lack what only this one has.
                let own = try reader.decode(pointer, of: span)
                pieces.keep(own)
                known = (pointer, own)
            }
            guard let memory = unsafe known!.run.page(page, of: span, reader) else {
                throw reader.missing(span.firstPage + PageCount(page), in: pointer)
            }
            unsafe pieces.add(memory + (from - page * pageSize), to - from)
        }
    }

    // MARK: reading ahead

    /// Requests come a little out of order, since the kernel has several under way.
    private static let orderTolerance: UInt64 = 2 << 20
    private static let requestsBeforeAhead = 4

    /// Notes a read. Returns a span to prepare when reads go on in order, each span once.
    func spanAhead(ofReadAt offset: UInt64, _ size: Int) -> SpanIndex? {
        progress.withLock { progress in
            let end = offset + UInt64(size)
            let isNear = offset <= progress.next + Self.orderTolerance && progress.next <= end + Self.orderTolerance
            progress.inOrder = isNear ? min(progress.inOrder + 1, Self.requestsBeforeAhead) : 0
            progress.next = isNear ? max(progress.next, end) : end
            guard progress.inOrder >= Self.requestsBeforeAhead else { return nil }
            let ahead = SpanIndex(progress.next / UInt64(pageSize) / UInt64(pagesPerSpan) + 1)
            guard ahead.firstPage.rawValue < region.pageCount.rawValue, ahead != progress.prepared else { return nil }
            progress.prepared = ahead
            return ahead
        }
    }

    /// Decodes a span before it is asked for.
    func prepare(_ span: SpanIndex) {
        guard !progress.withLock({ $0.isClosed }) else { return }
        pages.prepare(span, self)
        if progress.withLock({ $0.isClosed }) { pages.forget(inode) }
    }

    /// Nobody has it open any more: lets go of what keeps its generation.
    func close() {
        progress.withLock { $0.isClosed = true }
        pages.forget(inode)
    }

    // MARK: holes

    /// The first byte of data at or behind `offset`; nil: there is none, or `offset` is not in the file. Holes are whole zero pages.
    func data(from offset: UInt64) throws(StoreError) -> UInt64? {
        guard offset < length else { return nil }
        var page = PageIndex(offset / UInt64(pageSize))
        while page.rawValue < region.pageCount.rawValue, let span = try pages.reader(of: self).nextSpan(from: SpanIndex(of: page)) {
            let wanted = places(from: max(page, span.firstPage), in: span)
            if let layout = try pages.layout(of: span, self), let found = layout.data(among: wanted).first {
                return max(offset, (span.firstPage + PageCount(found.lowerBound)).rawValue * UInt64(pageSize))
            }
            page = SpanIndex(span.rawValue + 1).firstPage
        }
        return nil
    }

    /// The first byte at or behind `offset` that is in a hole; the end of the file counts as one. nil: `offset` is not in the file.
    func hole(from offset: UInt64) throws(StoreError) -> UInt64? {
        guard offset < length else { return nil }
        guard region.storedPages < region.pageCount else { return length }
        let first = PageIndex(offset / UInt64(pageSize))
        if let dense = progress.withLock({ $0.dense }), dense.contains(first) { return bytes(upTo: dense.upperBound, offset) }
        var page = first
        while page.rawValue < region.pageCount.rawValue {
            let span = SpanIndex(of: page)
            let wanted = places(from: page, in: span)
            let data = try pages.layout(of: span, self)?.data(among: wanted).first
            guard let data, data.lowerBound == wanted.lowerBound else { break }
            page = span.firstPage + PageCount(data.upperBound)
            if data.upperBound < wanted.upperBound { break }
        }
        progress.withLock { $0.dense = first..<page }
        return bytes(upTo: page, offset)
    }

    private func bytes(upTo page: PageIndex, _ offset: UInt64) -> UInt64 { max(offset, min(length, page.rawValue * UInt64(pageSize))) }

    /// The places in `span` of its pages from `page` on, as far as the region goes.
    private func places(from page: PageIndex, in span: SpanIndex) -> Range<Int> {
        let end = min(UInt64(pagesPerSpan), region.pageCount.rawValue - span.firstPage.rawValue)
        return Int(page.rawValue - span.firstPage.rawValue)..<Int(end)
    }
}

/// Memory to be sent, piece by piece, and what keeps it alive.
@safe struct Pieces: ~Copyable {
    private(set) var vectors: [iovec]
    private var kept: [DecodedRun] = []

    init() { unsafe vectors = [] }

    private static let zeroCount = 64 << 10
    private static let zeros = {
        let buffer = AlignedBuffer(count: zeroCount)
        unsafe memset(buffer.base, 0, zeroCount)
        return buffer
    }()

    /// Bytes of all pieces.
    var count: Int { unsafe vectors.reduce(0) { unsafe $0 + $1.iov_len } }

    /// Keeps a run as long as this lives.
    mutating func keep(_ run: DecodedRun) { kept.append(run) }

    /// Adds memory of a run that is kept. What follows on the last piece makes it longer.
    mutating func add(_ memory: UnsafeRawPointer, _ count: Int) {
        if let last = unsafe vectors.indices.last, unsafe UnsafeRawPointer(vectors[last].iov_base) + vectors[last].iov_len == memory {
            unsafe vectors[last].iov_len += count
        } else {
            unsafe vectors.append(iovec(iov_base: UnsafeMutableRawPointer(mutating: memory), iov_len: count))
        }
    }

    mutating func addZeros(_ count: Int) {
        var left = count
        if let last = unsafe vectors.indices.last, unsafe vectors[last].iov_base == Self.zeros.base {
            let more = unsafe min(left, Self.zeroCount - vectors[last].iov_len)
            unsafe vectors[last].iov_len += more
            left -= more
        }
        while left > 0 {
            let length = min(left, Self.zeroCount)
            unsafe vectors.append(iovec(iov_base: Self.zeros.base, iov_len: length))
            left -= length
        }
    }
}
