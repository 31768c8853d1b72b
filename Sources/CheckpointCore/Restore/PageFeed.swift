// The order in which a machine gets its memory back: what it asks for first, the rest as it lies, every page once.
//
// Invariants:
// - A page is handed out at most once, and only after the store has verified it; what can't be read ends the feed with
//   its error. Nothing is ever made up.
// - At every moment a page is in exactly one of these places: still to come (`missing`), being read (`reading`), read
//   (`demanded` or `prefetched`), handed out.
// - Memory is bounded: prefetching stops at its limit, and what is asked for has as much again.

import CheckpointStore
import Threading
import Units

/// Which of a machine's memory blocks: its place in the list that a feed was made with.
public struct MemoryBlockIndex: Quantity {
    public var rawValue: UInt64
    @inlinable public init(_ rawValue: UInt64) { self.rawValue = rawValue }
}

/// Hands out the pages of a checkpoint's memory, in whole units, each verified, for whoever feeds them to a machine.
///
/// Thread-safe. Reads ahead on threads of its own until `close`, which must be called.
public final class PageFeed: Sendable {
    /// A memory block to be fed.
    public struct Block: Sendable {
        /// Where its pages come from.
        public var region: any RegionSource
        /// Pages that are read and handed out together, aligned: a power of two, at least 16, so that what is compressed together is
        /// read once; for a block on huge pages the whole page.
        public var unitPages: PageCount
        /// The pages that the machine lacks. For a block on huge pages none but whole units.
        public var missing: PageBitmap

        public init(
            region: any RegionSource, unitPages: PageCount = PageCount(pagesPerRun), missing: PageBitmap? = nil
        ) {
            let pages = PageCount(covering: region.byteLength)
            let all = missing ?? PageBitmap(pageCount: pages, isFull: true)
            precondition(all.pageCount == pages, "the bitmap must be the block's")
            precondition(unitPages.rawValue >= 16 && unitPages.rawValue & (unitPages.rawValue - 1) == 0)
            self.region = region
            self.unitPages = unitPages
            self.missing = all
        }
    }

    let blocks: [Block]
    let prefetchLimit: ByteCount
    let state: Lock<FeedState>
    private let readers: Lock<[PlainThread]>

    /// Begins to read ahead.
    /// - Parameters:
    ///   - readerCount: threads that read and verify.
    ///   - prefetchLimit: how much is read ahead at most; as much again is kept free for what is asked for. At least one unit
    ///     is always read.
    /// - Throws: `.noMemory` when the system has no threads to give.
    public init(
        _ blocks: [Block], readerCount: Int = WriterOptions.defaultParallelism + 1, prefetchLimit: ByteCount = .mebibytes(16)
    ) throws(EngineError) {
        precondition(readerCount >= 1)
        self.blocks = blocks
        self.prefetchLimit = prefetchLimit
        state = Lock(FeedState(missing: blocks.map(\.missing)))
        readers = Lock([])
        // A thread that plans the order of a large block must not keep what is asked for waiting.
        for _ in 0..<max(2, readerCount) {
            guard let thread = PlainThread({ self.read() }) else { break }
            readers.withLock { $0.append(thread) }
        }
        guard readers.withLock({ !$0.isEmpty }) else {
            throw EngineError(.noMemory, "can't start a thread that reads the checkpoint")
        }
    }

    /// Asks for pages: they come before all that nobody asked for. Pages that have been handed out are not handed out again.
    /// - Throws: `.protocolViolation` when there are no such pages.
    public func request(_ block: MemoryBlockIndex, _ pages: Range<PageIndex>) throws(EngineError) {
        guard block.rawValue < UInt64(blocks.count), !pages.isEmpty,
            pages.upperBound.rawValue <= blocks[block.int].missing.pageCount.rawValue
        else {
            throw EngineError(.protocolViolation, "pages \(pages.lowerBound)..<\(pages.upperBound) of block \(block) were asked for, which are not there")
        }
        state.withLock { $0.demand(FeedState.Demand(block: block, pages: pages)) }
        state.wake()
    }

    /// The next unit, what was asked for first. Waits until it has been read. nil: all pages have been handed out.
    ///
    /// A unit's memory counts against the limit until the unit is dropped: do that before asking for another.
    /// - Throws: why a page can't be had; then for ever. `.cancelled` after `close`.
    public func next() throws(EngineError) -> FedPages? {
        let unit = try state.waitFor { (state) throws(EngineError) -> FedPages?? in
            if let failure = state.failure { throw failure }
            if let unit = state.demanded.popFirst() ?? state.prefetched.popFirst() { return .some(unit) }
            return state.isDone ? .some(nil) : nil
        }
        return unit
    }

    /// Ends it: `next` throws from now on. Waits for the reading threads. Harmless when done twice.
    public func close() {
        fail(EngineError(.cancelled, "feeding memory was ended"))
        let threads = readers.withLock { threads in
            defer { threads = [] }
            return threads
        }
        for thread in threads { thread.join() }
        // Units take the lock when they are let go of, so that must not happen within it.
        let units = state.withLock { $0.takeReady() }
        withExtendedLifetime(units) {}
    }

    /// The first failure is the one that counts.
    private func fail(_ error: EngineError) {
        state.withLock { $0.failure = $0.failure ?? error }
        state.wake()
    }

    // MARK: reading ahead

    /// What one reading thread does until there is nothing more to do.
    private func read() {
        do throws(EngineError) {
            while true {
                switch state.waitFor({ $0.nextJob(blocks: blocks, prefetchLimit: prefetchLimit) }) {
                case .plan(let block):
                    let ranges = try blocks[block.int].region.dataRanges()
                    state.withLock { $0.order.setPlan(ranges) }
                case .zeros(let block, let pages): deliver(FedPages(block: block, pages: pages, buffer: nil, feed: self))
                case .read(let block, let pages): deliver(try load(block, pages))
                case .stop:
                    // The consumer may be waiting for just this: that nothing more comes.
                    state.wake()
                    return
                }
                state.wake()
            }
        } catch { fail(error) }
    }

    private func load(_ block: MemoryBlockIndex, _ pages: Range<PageIndex>) throws(EngineError) -> FedPages {
        let byteCount = (pages.upperBound - pages.lowerBound).bytes.int
        let buffer = state.withLock { $0.idleBuffers[byteCount]?.popLast() } ?? AlignedBuffer(count: byteCount)
        unsafe try blocks[block.int].region.read(pages: pages, into: buffer.bytes)
        return FedPages(block: block, pages: pages, buffer: buffer, feed: self)
    }

    private func deliver(_ unit: FedPages) {
        state.withLock { $0.deliver(unit) }
        // Readers wait for the place of a unit, the consumer for the unit.
        state.wake()
    }

    /// The pages' memory may be used again.
    func release(_ buffer: AlignedBuffer, byteCount: Int) {
        state.withLock { state in
            state.bufferedBytes -= byteCount
            if state.failure == nil { state.idleBuffers[byteCount, default: []].append(buffer) }
        }
        state.wake()
    }
}
