// Pages of a running process as they were at one instant, though it goes on writing them.
//
// In the stop the pages are write-protected; that costs a fraction of copying them. Then the process runs: a page is copied before the
// first write to it, and all others are copied as fast as possible, so that the writer soon meets no protection any more.
//
// Invariants:
// - A page is released only when its original has been copied.
// - Every fault is answered, after an error as well; the faults' server waits for nobody but the copier of that page.
// - When this process ends, the kernel takes the protection off and lets waiting threads go on.

import CLinux
import CLiveMemory
import CheckpointCore
import Glibc
import Threading
import Units

/// Copies on write. `protect`, `deliver` and `cancel` are called by one thread, in this order, once.
public final class CopyOnWriteRanges: Sendable {
    public let block: SharedMemoryBlock
    private let server: FaultServer
    private let protected = Lock<(pages: OriginalPages, tracker: WriteTracker?)?>(nil)

    /// The more ranges, the longer the stop: each costs some microseconds.
    public static let usualRangeLimit = 64
    /// What is copied between two releases: small enough for a writer's patience, large enough for few calls.
    private static let copiedAtOnce = ByteCount.kibibytes(256)

    /// Prepares; nothing is protected yet. One of the process's threads is stopped for some tenths of a millisecond, so call it before
    /// the stop. Throws like `WriteTracker.init`; `.permission` also when the process itself has no right to userfaultfd.
    public init(_ block: SharedMemoryBlock, avoiding threads: Set<Int32> = []) throws(EngineError) {
        self.block = block
        server = try FaultServer(block, Userfault(block.process, .synchronous, avoiding: threads))
    }

    deinit { try? end() }

    /// Protects pages, while nobody writes them: what is delivered later is their content at this moment.
    ///
    /// - Parameters:
    ///   - tracker: whose tracking these pages leave for now. Its first scan afterwards reports all of them.
    ///   - rangeLimit: pages in more ranges are protected together with what lies between.
    /// - Throws: `.busy`, `.noMemory`, `.exited`. Nothing is protected then, and the pages can still be copied in the stop.
    public func protect(
        _ pages: PageRanges, from tracker: WriteTracker? = nil, rangeLimit: Int = usualRangeLimit
    ) throws(EngineError) {
        precondition(protected.withLock { $0 == nil }, "pages are protected once")
        let originals = try OriginalPages(block, wanted: pages, limit: rangeLimit)
        protected.withLock { $0 = (originals, tracker) }
        server.serve(originals)
        do throws(EngineError) {
            try tracker?.lend(originals.covered)
            for range in originals.covered.ranges {
                try server.userfault.register(block.addresses(of: range))
                try server.userfault.protect(block.addresses(of: range))
            }
        } catch {
            try? end()
            throw error
        }
    }

    /// Hands over every page that was protected, as it was then, in ascending order, in pieces of at most 2 MiB; afterwards nothing is protected
    /// any more. Copying runs ahead of `body` on a thread of its own, so that up to all the pages are held in memory.
    ///
    /// - Throws: what `body` throws; `.ioFailed` when a page could not be copied. The process goes on in any case; it may also
    ///   have ended: its memory is then as it left it, and is handed over.
    public func deliver(_ body: (PageIndex, UnsafeRawBufferPointer) throws(EngineError) -> Void) throws(EngineError) {
        guard let (originals, _) = protected.withLock({ $0 }) else { preconditionFailure("pages are protected before they are delivered") }
        do throws(EngineError) {
            try server.startCopying(originals, piece: Self.copiedAtOnce)
            for piece in Self.pieces(originals.wanted) {
                try server.waitUntilCopied(throughUnit: originals.unit(of: PageIndex(piece.upperBound.rawValue - 1))!)
                try unsafe body(piece.lowerBound, originals.bytes(of: piece))
                originals.forget(piece)
            }
        } catch {
            try? end()
            throw error
        }
        try end()
    }

    /// Takes all protection off. Harmless when there is none.
    public func cancel() throws(EngineError) { try end() }

    /// Ends the threads and the protection, in this order: who waits is let go by the latter. The first error is thrown, after everything was tried.
    private func end() throws(EngineError) {
        guard server.stop() else { return }
        var failure: EngineError?
        let state = protected.withLock { $0 }
        for range in state?.pages.covered.ranges ?? [] {
            // Those that were never registered are none the worse.
            do throws(EngineError) { try server.userfault.unregister(block.addresses(of: range)) } catch { failure = failure ?? error }
        }
        server.userfault.close()
        if let state, let tracker = state.tracker, !block.process.hasEnded {
            do throws(EngineError) { try tracker.takeBack(state.pages.covered) } catch { failure = failure ?? error }
        }
        if let failure { throw failure }
    }

    /// Cut at multiples of 2 MiB, as stores like it.
    private static func pieces(_ pages: PageRanges) -> [Range<PageIndex>] {
        var result: [Range<PageIndex>] = []
        for range in pages.ranges {
            var start = range.lowerBound
            while start < range.upperBound {
                let end = min(range.upperBound, PageIndex((start.rawValue / UInt64(pagesPerSpan) + 1) * UInt64(pagesPerSpan)))
                result.append(start..<end)
                start = end
            }
        }
        return result
    }
}
