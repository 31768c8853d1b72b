// Saving pages of memory that changes: each is copied, and the copy is saved.

import CheckpointCore
import Glibc
import LiveMemory
import Threading
import Units

/// Page-aligned memory of our own.
@safe final class PageBuffer: @unchecked Sendable {
    let bytes: UnsafeMutableRawBufferPointer

    /// Room for so many pages, all of them there: nothing faults when it is first used.
    init(pages: PageCount) {
        let count = max(1, pages.bytes.int)
        unsafe bytes = .allocate(byteCount: count, alignment: pageSize)
        unsafe memset(bytes.baseAddress!, 1, count)
    }

    deinit { unsafe bytes.deallocate() }

    /// `count` pages from page `first` of the buffer on.
    func pages(from first: Int, _ count: Int) -> UnsafeMutableRawBufferPointer {
        unsafe UnsafeMutableRawBufferPointer(rebasing: bytes[first * pageSize..<(first + count) * pageSize])
    }
}

/// Saves pages of a block to a region, on several threads.
struct PageSaver: Sendable {
    let block: SharedMemoryBlock
    let region: any RegionSink

    /// More pieces than this of one span are put page by page, so that the store gathers them into one leaf.
    private static let mostPieces = 4

    /// - Parameter progress: told how many pages are done.
    func save(
        _ pages: PageRanges, workers: Int, progress: @escaping @Sendable (PageCount) -> Void
    ) throws(EngineError) {
        let spans = Self.spans(pages)
        guard !spans.isEmpty else { return }
        let state = Lock((next: 0, done: PageCount.zero, failure: EngineError?.none))
        let work: @Sendable () -> Void = {
            let buffer = PageBuffer(pages: PageCount(pagesPerSpan))
            while let index = state.withLock({ state -> Int? in
                guard state.failure == nil, state.next < spans.count else { return nil }
                defer { state.next += 1 }
                return state.next
            }) {
                do throws(EngineError) { try self.save(spans[index], buffer) } catch {
                    state.withLock { $0.failure = $0.failure ?? error }
                }
                let count = spans[index].reduce(into: PageCount.zero) { $0 += $1.upperBound - $1.lowerBound }
                progress(
                    state.withLock { state in
                        state.done += count
                        return state.done
                    })
            }
        }
        let threads = (1..<max(1, min(workers, spans.count))).compactMap { _ in PlainThread(work) }
        work()
        for thread in threads { thread.join() }
        if let failure = state.withLock({ $0.failure }) { throw failure }
    }

    /// The pieces of each span.
    private static func spans(_ pages: PageRanges) -> [[Range<PageIndex>]] {
        var spans: [[Range<PageIndex>]] = []
        var last: SpanIndex?
        for range in pages.ranges {
            var start = range.lowerBound
            while start < range.upperBound {
                let span = SpanIndex(of: start)
                let end = min(range.upperBound, span.firstPage + PageCount(pagesPerSpan))
                if span == last { spans[spans.count - 1].append(start..<end) } else { spans.append([start..<end]) }
                last = span
                start = end
            }
        }
        return spans
    }

    private func save(_ pieces: [Range<PageIndex>], _ buffer: PageBuffer) throws(EngineError) {
        for piece in pieces {
            let bytes = unsafe buffer.pages(from: 0, (piece.upperBound - piece.lowerBound).int)
            try unsafe block.copy(piece, into: bytes)
            try unsafe region.save(UnsafeRawBufferPointer(bytes), at: piece.lowerBound, isScattered: pieces.count > Self.mostPieces)
        }
    }
}

extension RegionSink {
    /// Saves a copy that nobody changes.
    func save(_ bytes: UnsafeRawBufferPointer, at first: PageIndex, isScattered: Bool) throws(EngineError) {
        guard isScattered else { return try unsafe write(bytes, at: first, isStable: true) }
        for index in 0..<bytes.count / pageSize {
            let page = unsafe UnsafeRawBufferPointer(rebasing: bytes[index * pageSize..<(index + 1) * pageSize])
            try unsafe put(page: first + PageCount(index), page)
        }
    }
}

/// Pages copied in a stop, to be saved after it.
final class CopiedPages {
    private var buffer: PageBuffer
    /// What can be copied without providing more memory first.
    private(set) var room: PageCount
    private var ranges = PageRanges()
    /// Pages that are zero at the stop although they were not before.
    var zeros = PageRanges()

    /// Room for so many pages, provided now and not in the stop.
    init(room: PageCount) {
        self.room = room
        buffer = PageBuffer(pages: room)
    }

    var count: PageCount { ranges.count }

    /// Provides more room, if that is more.
    func makeRoom(_ pages: PageCount) {
        guard pages > room else { return }
        room = pages
        buffer = PageBuffer(pages: pages)
    }

    /// Copies `pages`. More than there is room for take longer: the rest is provided first.
    func take(_ pages: PageRanges, of block: SharedMemoryBlock) throws(EngineError) {
        makeRoom(pages.count)
        ranges = pages
        var next = 0
        for range in pages.ranges {
            let count = (range.upperBound - range.lowerBound).int
            try unsafe block.copy(range, into: buffer.pages(from: next, count))
            next += count
        }
    }

    func save(to region: any RegionSink) throws(EngineError) {
        var next = 0
        for range in ranges.ranges {
            let count = (range.upperBound - range.lowerBound).int
            let bytes = unsafe UnsafeRawBufferPointer(buffer.pages(from: next, count))
            try unsafe region.save(bytes, at: range.lowerBound, isScattered: count < pagesPerRun)
            next += count
        }
    }
}
