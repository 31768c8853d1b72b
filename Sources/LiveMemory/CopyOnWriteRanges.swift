// Pages of a running process as they were at one instant, though it goes on writing them.
//
// What is sure to be written again is prepared while the process runs, and write-protected in the stop, which takes a fraction of the time
// of copying. Then the process runs: a page is copied before the first write to it, and all others are copied as fast as possible, so that
// the writer soon meets no protection any more.
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

/// Copies on write. `prepare`, `protect`, `deliver` are called by one thread, in this order, once; `cancel` at any point.
public final class CopyOnWriteRanges: Sendable {
    public let block: SharedMemoryBlock
    private let server: FaultServer
    private let prepared = Lock<(pages: OriginalPages, tracker: WriteTracker?)?>(nil)

    /// What is copied between two releases: small enough for a writer's patience, large enough for few calls.
    private static let copiedAtOnce = ByteCount.kibibytes(256)

    /// Prepares; nothing is protected yet. One of the process's threads is stopped for some tenths of a millisecond, so call it before
    /// the stop. Throws like `WriteTracker.init`; `.permission` also when the process itself has no right to userfaultfd.
    public init(_ block: SharedMemoryBlock, avoiding threads: Set<Int32> = []) throws(EngineError) {
        self.block = block
        server = try FaultServer(block, Userfault(block.process, .synchronous, avoiding: threads))
    }

    deinit { try? end() }

    /// Takes these pages over from their tracking, and memory for a copy of them all. The process may run and write them: nothing is
    /// protected yet. Each range makes the stop some microseconds longer, so that short ones are better copied in it: see `PageRanges.longRuns`.
    ///
    /// - Parameter tracker: whose tracking these pages leave for now. Its scans leave them out until they are back, then one reports all of them.
    /// - Throws: `.busy`, `.noMemory`, `.exited`. The pages are tracked as before then, and the next scan reports them.
    public func prepare(_ pages: PageRanges, from tracker: WriteTracker? = nil) throws(EngineError) {
        precondition(prepared.withLock { $0 == nil }, "pages are prepared once")
        let originals = try OriginalPages(block, pages)
        prepared.withLock { $0 = (originals, tracker) }
        server.serve(originals)
        do throws(EngineError) {
            try tracker?.lend(originals.covered)
            for range in originals.covered.ranges { try server.userfault.register(block.addresses(of: range)) }
        } catch {
            try? end()
            throw error
        }
    }

    /// The pages that were prepared: those of `prepare`, and the rest of their huge pages.
    public var pages: PageRanges { prepared.withLock { $0 }?.pages.covered ?? PageRanges() }

    /// Write-protects the prepared pages, while nobody writes them: what is delivered later is their content at this moment. About 0.06 ms
    /// for each 1000 pages.
    ///
    /// - Throws: `.exited`, `.ioFailed`. Nothing is protected then, and the pages can still be copied in the stop.
    public func protect() throws(EngineError) {
        guard let (originals, _) = prepared.withLock({ $0 }) else { preconditionFailure("pages are prepared before they are protected") }
        do throws(EngineError) {
            for range in originals.covered.ranges { try server.userfault.protect(block.addresses(of: range)) }
        } catch {
            try? end()
            throw error
        }
    }

    /// Hands over every page that was protected, as it was then, in ascending order, in pieces of at most 2 MiB; afterwards nothing is protected
    /// any more. Copying runs ahead of `body` on a thread of its own.
    ///
    /// - Throws: what `body` throws; `.ioFailed` when a page could not be copied. The process goes on in any case; it may also
    ///   have ended: its memory is then as it left it, and is handed over.
    public func deliver(_ body: (PageIndex, UnsafeRawBufferPointer) throws(EngineError) -> Void) throws(EngineError) {
        guard let (originals, _) = prepared.withLock({ $0 }) else { preconditionFailure("pages are protected before they are delivered") }
        do throws(EngineError) {
            try server.startCopying(originals, piece: Self.copiedAtOnce)
            for piece in Self.pieces(originals.covered) {
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
        let state = prepared.withLock { $0 }
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
