// Saving pages of memory that changes: each is copied, and the copy is saved.

import Glibc
import Threading
import Units

/// Memory whose pages can be copied: as they are at one moment, or as they were at an instant.
package protocol CopyablePages: Sendable {
    /// Copies consecutive pages; `destination` has exactly their size. Called by several threads at once.
    func copy(_ pages: Range<PageIndex>, into destination: UnsafeMutableRawBufferPointer) throws(EngineError)
}

/// Saves pages of one memory to a region, on several threads: the way of every engine's pages into the store.
package struct PageSaver: Sendable {
    private let memory: any CopyablePages
    private let region: any RegionSink

    package init(_ memory: any CopyablePages, into region: any RegionSink) {
        self.memory = memory
        self.region = region
    }

    /// More pieces than this of one span are put page by page, so that the store gathers them into one leaf.
    private static let mostPieces = 4

    /// Copies each page once, saves it from the copy, and returns when all are saved. Memory: the longest piece, at most 2 MiB, for each worker.
    ///
    /// - Parameter progress: told how many pages are done, on the workers' threads.
    /// - Throws: the first error of the memory or the region; the other workers then stop.
    package func save(
        _ pages: PageRanges, workers: Int, progress: @escaping @Sendable (PageCount) -> Void
    ) throws(EngineError) {
        let spans = Self.spans(pages)
        guard !spans.isEmpty else { return }
        let state = Lock((next: 0, done: PageCount.zero, failure: EngineError?.none))
        // Small saves are frequent, and providing a whole span's memory takes longer than they do.
        let longest = spans.joined().reduce(PageCount.zero) { max($0, $1.upperBound - $1.lowerBound) }
        let work: @Sendable () -> Void = {
            let buffer = PageBuffer(pages: longest)
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
            try unsafe memory.copy(piece, into: bytes)
            try unsafe region.save(UnsafeRawBufferPointer(bytes), at: piece.lowerBound, isScattered: pieces.count > Self.mostPieces)
        }
    }
}

extension RegionSink {
    /// Saves a copy that nobody changes; scattered pages one by one, so that the store gathers them.
    package func save(_ bytes: UnsafeRawBufferPointer, at first: PageIndex, isScattered: Bool) throws(EngineError) {
        guard isScattered else { return try unsafe write(bytes, at: first, isStable: true) }
        for index in 0..<bytes.count / pageSize {
            let page = unsafe UnsafeRawBufferPointer(rebasing: bytes[index * pageSize..<(index + 1) * pageSize])
            try unsafe put(page: first + PageCount(index), page)
        }
    }
}
