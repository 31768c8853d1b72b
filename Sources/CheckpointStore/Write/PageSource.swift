// Where pages come from: memory, files, streams, nowhere (zeros).

import CLinux
import Glibc
import Media
import StoreFormat
import Threading
import Units

/// Hands out the pages of a region span by span, to several threads at once.
protocol PageSource: Sendable {
    /// How many threads can make use of it.
    var usefulWorkers: Int { get }
    /// The next span; nil at the end. May use `copy`, 512 pages of private memory, for the bytes.
    func next(into copy: AlignedBuffer) throws(StoreError) -> SpanInput?
}

/// Walks through the spans of a range of pages; each is handed out once.
struct SpanCursor: Sendable {
    private var next: UInt64
    private let end: UInt64
    init(_ pages: Range<UInt64>) {
        next = pages.lowerBound
        end = pages.upperBound
    }
    var spansLeft: Int { next < end ? Int((end - 1) / UInt64(pagesPerSpan) - next / UInt64(pagesPerSpan)) + 1 : 0 }

    /// The next span and which of its pages are in the range.
    mutating func advance() -> (span: SpanIndex, pages: Range<Int>)? {
        guard next < end else { return nil }
        let span = SpanIndex(of: PageIndex(next))
        let first = span.firstPage.rawValue
        let stop = min(end, first + UInt64(pagesPerSpan))
        defer { next = stop }
        return (span, Int(next - first)..<Int(stop - first))
    }
}

/// Pages in memory.
@safe final class MemorySource: PageSource {
    private let bytes: Handed<UnsafeRawBufferPointer>
    private let first: PageIndex
    private let isStable: Bool
    private let cursor: Lock<SpanCursor>
    let usefulWorkers: Int

    init(
        _ bytes: UnsafeRawBufferPointer, first: PageIndex, isStable: Bool, region: RegionState, checkpoint: String
    ) throws(StoreError) {
        try SourceRange.check(region, checkpoint, first: first, byteCount: ByteCount(bytes.count), endsRegion: true)
        unsafe self.bytes = Handed(bytes)
        self.first = first
        self.isStable = isStable
        let pages = PageCount(covering: ByteCount(bytes.count))
        let cursor = SpanCursor(first.rawValue..<(first + pages).rawValue)
        usefulWorkers = max(1, cursor.spansLeft)
        self.cursor = Lock(cursor)
    }

    func next(into copy: AlignedBuffer) throws(StoreError) -> SpanInput? {
        guard let (span, pages) = cursor.withLock({ $0.advance() }) else { return nil }
        // The span's page 0 may lie in front of the memory; only pages in `pages` are ever touched.
        let offset = (Int(span.firstPage.rawValue) - Int(first.rawValue)) * pageSize
        guard let start = unsafe bytes.value.baseAddress else { return nil }
        let base = unsafe start + offset
        let end = unsafe bytes.value.count
        if offset + pages.upperBound * pageSize > end { return unsafe partial(span, pages, base, end - offset, copy) }
        return unsafe SpanInput(span: span, base: base, given: PageSet(pages), zeros: PageSet(), isStable: isStable)
    }

    /// The last page is partly filled: all of the span is copied, and the rest of that page cleared.
    private func partial(
        _ span: SpanIndex, _ pages: Range<Int>, _ base: UnsafeRawPointer, _ end: Int, _ copy: AlignedBuffer
    ) -> SpanInput {
        let start = pages.lowerBound * pageSize
        unsafe memcpy(copy.base + start, base + start, end - start)
        copy.clear(end..<pages.upperBound * pageSize)
        return unsafe SpanInput(
            span: span, base: UnsafeRawPointer(copy.base), given: PageSet(pages), zeros: PageSet(), isStable: true)
    }
}

/// Pages that are zero: only the spans that have something else so far are handed out, however many there are.
final class ZeroSource: PageSource {
    private struct State {
        var next: PageIndex
        /// Spans that the checkpoint has of its own so far, descending.
        var own: [SpanIndex] = []
        var isBegun = false
    }
    private let region: RegionState
    private let end: PageIndex
    private let isCancelled: @Sendable () -> Bool
    private let state: Lock<State>
    let usefulWorkers = 1

    /// - Parameter isCancelled: is asked before each span.
    init(_ pages: Range<PageIndex>, of region: RegionState, isCancelled: @escaping @Sendable () -> Bool) {
        self.region = region
        self.isCancelled = isCancelled
        end = pages.upperBound
        state = Lock(State(next: pages.lowerBound))
    }

    /// Everything in front of it has been handed out, or is zero already.
    var position: PageIndex { state.withLock(\.next) }

    func next(into copy: AlignedBuffer) throws(StoreError) -> SpanInput? {
        try state.withLock { (state) throws(StoreError) in
            guard state.next < end, !isCancelled() else { return nil }
            guard let span = try nextSpan(&state) else {
                state.next = end
                return nil
            }
            let first = span.firstPage
            let low = max(state.next, first)
            state.next = min(end, first + PageCount(pagesPerSpan))
            let zeros = PageSet(Int(low.rawValue - first.rawValue)..<Int(state.next.rawValue - first.rawValue))
            return unsafe SpanInput(span: span, base: nil, given: PageSet(), zeros: zeros, isStable: true)
        }
    }

    private func nextSpan(_ state: inout State) throws(StoreError) -> SpanIndex? {
        let start = SpanIndex(of: state.next)
        let limit = SpanIndex(PageTable.spanCount(PageCount(end.rawValue)))
        if !state.isBegun {
            state.own = region.progress.withLock { $0.leaves.keys.filter { start <= $0 && $0 < limit } }.sorted(by: >)
            state.isBegun = true
        }
        while let last = state.own.last, last < start { state.own.removeLast() }
        let inherited = try region.parentTree?.nextSpan(from: start, before: limit)
        return [state.own.last, inherited].compactMap(\.self).min()
    }
}

/// Pages of one span that somebody has in private memory.
final class SpanSource: PageSource {
    private let input: Lock<Handed<SpanInput>?>
    let usefulWorkers = 1
    init(_ input: SpanInput) { self.input = Lock(Handed(input)) }
    func next(into copy: AlignedBuffer) throws(StoreError) -> SpanInput? {
        input.withLock { input in
            defer { input = nil }
            return input?.value
        }
    }
}

/// `lseek`'s way to the next data and the next hole: Linux's numbers, which Glibc's module does not show.
private enum Seek {
    static let data: Int32 = 3
    static let hole: Int32 = 4
}

/// The content of a file, by its extents.
final class FileSource: PageSource {
    private let descriptor: Int32
    private let byteLength: UInt64
    private let first: PageIndex
    private let cursor: Lock<SpanCursor>
    private let place: Place
    /// The extent found last: a hole from where the search started, then data. Looking for the end of an extent may cost as much as
    /// the extent is long, so it is not done again for every span of it.
    private let extent = Lock(Extent(start: 0, data: 0..<0))
    let usefulWorkers: Int

    private struct Extent {
        var start: Int64
        var data: Range<Int64>
    }

    init(
        _ descriptor: Int32, byteLength: ByteCount?, first: PageIndex, region: RegionState, checkpoint: String
    ) throws(StoreError) {
        self.descriptor = descriptor
        self.first = first
        place = Place(checkpoint: checkpoint, region: region.name)
        var status = stat()
        guard unsafe fstat(descriptor, &status) == 0 else { throw place.failure("look at the file") }
        let length = byteLength ?? ByteCount(UInt64(max(0, status.st_size)))
        try SourceRange.check(region, checkpoint, first: first, byteCount: length, endsRegion: true)
        self.byteLength = length.rawValue
        let cursor = SpanCursor(first.rawValue..<(first + PageCount(covering: length)).rawValue)
        usefulWorkers = max(1, cursor.spansLeft)
        self.cursor = Lock(cursor)
    }

    func next(into copy: AlignedBuffer) throws(StoreError) -> SpanInput? {
        guard let (span, pages) = cursor.withLock({ $0.advance() }) else { return nil }
        // Where the span's page 0 would be in the file; may be in front of it.
        let origin = (Int64(span.firstPage.rawValue) - Int64(first.rawValue)) * Int64(pageSize)
        let start = origin + Int64(pages.lowerBound * pageSize)
        let stop = min(origin + Int64(pages.upperBound * pageSize), Int64(byteLength))
        var given = PageSet()
        var position = start
        while position < stop, let data = try nextData(position..<stop) {
            let low = (data.lowerBound - origin) / Int64(pageSize)
            let high = (data.upperBound - origin + Int64(pageSize) - 1) / Int64(pageSize)
            try read(data, low: Int(low), high: Int(high), origin: origin, stop: stop, into: copy)
            given = given.union(PageSet(Int(low)..<Int(high)))
            position = origin + high * Int64(pageSize)
        }
        return unsafe SpanInput(
            span: span, base: UnsafeRawPointer(copy.base), given: given, zeros: PageSet(pages).subtracting(given), isStable: true)
    }

    /// The next piece of data in `range`; nil when the rest is a hole.
    private func nextData(_ range: Range<Int64>) throws(StoreError) -> Range<Int64>? {
        var known = extent.withLock { $0 }
        if range.lowerBound < known.start || range.lowerBound >= known.data.upperBound {
            known = try findExtent(from: range.lowerBound)
            let found = known
            extent.withLock { $0 = found }
        }
        let data = known.data.clamped(to: range)
        return data.isEmpty ? nil : data
    }

    private func findExtent(from start: Int64) throws(StoreError) -> Extent {
        let data = Int64(lseek(descriptor, Int(start), Seek.data))
        if data < 0 {
            // Nothing but a hole up to the end.
            if errno == ENXIO { return Extent(start: start, data: Int64.max..<Int64.max) }
            // No extents on this kind of file: all of it is data.
            if errno == EINVAL || errno == ESPIPE || errno == EOPNOTSUPP { return Extent(start: start, data: start..<Int64.max) }
            throw place.failure("find the file's data")
        }
        let hole = Int64(lseek(descriptor, Int(data), Seek.hole))
        return Extent(start: start, data: data..<(hole <= data ? Int64.max : hole))
    }

    /// Reads whole pages around `data`; what lies behind the end of the file's share is zero.
    private func read(
        _ data: Range<Int64>, low: Int, high: Int, origin: Int64, stop: Int64, into copy: AlignedBuffer
    ) throws(StoreError) {
        let end = min(origin + Int64(high * pageSize), stop)
        var position = origin + Int64(low * pageSize)
        while position < end {
            let got = unsafe pread(descriptor, copy.base + Int(position - origin), Int(end - position), Int(position))
            if got < 0 {
                if errno == EINTR { continue }
                throw place.failure("read the file")
            }
            guard got > 0 else {
                throw StoreError(
                    .ioFailed, "the file ended at \(position) bytes while it was read",
                    remedy: "Save it again when nobody shortens it.", checkpoint: place.checkpoint, region: place.region)
            }
            position += Int64(got)
        }
        copy.clear(Int(end - origin)..<high * pageSize)
    }
}

/// What can be read from a descriptor until its end.
final class StreamSource: PageSource {
    private let descriptor: Int32
    private let region: RegionState
    private let place: Place
    private struct State {
        var next: PageIndex
        var isAtEnd = false
    }
    private let state: Lock<State>
    let usefulWorkers = Int.max

    init(_ descriptor: Int32, first: PageIndex, region: RegionState, checkpoint: String) {
        self.descriptor = descriptor
        self.region = region
        place = Place(checkpoint: checkpoint, region: region.name)
        state = Lock(State(next: first))
    }

    /// Reading is one after the other; saving what was read goes on beside it.
    func next(into copy: AlignedBuffer) throws(StoreError) -> SpanInput? {
        try state.withLock { (state) throws(StoreError) in
            guard !state.isAtEnd else { return nil }
            // Until this span is whole: after an error nobody may take what follows for it.
            state.isAtEnd = true
            var isLast = false
            let span = SpanIndex(of: state.next)
            let low = Int((state.next - span.firstPage).rawValue)
            let start = low * pageSize
            var end = start
            while end < copy.count {
                let got = unsafe Glibc.read(descriptor, copy.base + end, copy.count - end)
                if got < 0 {
                    if errno == EINTR { continue }
                    throw place.failure("read the stream")
                }
                if got == 0 {
                    isLast = true
                    break
                }
                end += got
            }
            guard end > start else { return nil }
            try SourceRange.check(
                region, place.checkpoint, first: state.next, byteCount: ByteCount(end - start), endsRegion: true)
            let high = (end + pageSize - 1) / pageSize
            copy.clear(end..<high * pageSize)
            state.next = span.firstPage + PageCount(high)
            state.isAtEnd = isLast
            return unsafe SpanInput(
                span: span, base: UnsafeRawPointer(copy.base), given: PageSet(low..<high), zeros: PageSet(), isStable: true)
        }
    }
}

/// Which region input was meant for, for messages.
struct Place: Sendable {
    var checkpoint: String
    var region: String

    /// The error for the system call that just failed.
    func failure(_ what: String) -> StoreError {
        let reason = unsafe String(cString: strerror(errno))
        return StoreError(.ioFailed, "can't \(what): \(reason)", checkpoint: checkpoint, region: region)
    }
}
