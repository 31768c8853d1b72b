// Memory that can be used before it has been read: pages come when they are touched, the rest in the background.
//
// Invariants:
// - A page is there only when the store has verified it, as it was in the checkpoint.
// - When a page can't be had, touching one that is not there ends in SIGBUS: never in wrong bytes.

import CheckpointCore
import MachineMemory
import Threading
import Units

/// Fills memory lazily, by the same feed of pages as every engine. `wait`, then `close`; or `close` at any time.
public final class LazyRestore: Sendable {
    private struct State {
        var threads: [PlainThread] = []
        var failure: EngineError?
        var isDone = false
    }

    private let feed: PageFeed
    private let missing: [MissingPages]
    private let state = Lock(State())

    /// Registers the memory and begins to read. It can be used at once.
    ///
    /// - Parameters:
    ///   - parts: regions of the checkpoint and new memory of their lengths, which nobody has touched.
    ///   - readerCount: threads that read the store.
    /// - Throws: `.mismatch` when a length differs; `.permission`, `.unsupported`, `.busy`; what opening regions throws.
    public init(
        _ parts: [(region: String, memory: GuestMemory)], of source: any CheckpointSource, readerCount: Int = availableCores()
    ) throws(EngineError) {
        var blocks: [PageFeed.Block] = []
        for part in parts {
            let region = try source.region(part.region)
            guard region.byteLength == part.memory.byteLength else {
                throw EngineError(
                    .mismatch, "the checkpoint has \(region.byteLength) bytes of it, the memory \(part.memory.byteLength)",
                    remedy: "Map memory of the checkpoint's length.", place: part.memory.name)
            }
            let unit = PageCount(max(pagesPerRun, part.memory.pagesPerUnit.int))
            blocks.append(PageFeed.Block(region: region, unitPages: unit))
        }
        let feed = try PageFeed(blocks, readerCount: readerCount)
        self.feed = feed
        var missing: [MissingPages] = []
        do throws(EngineError) {
            for (index, part) in parts.enumerated() {
                missing.append(
                    try MissingPages(part.memory) { pages in
                        // Pages of the memory are the block's: nothing else can be asked for.
                        do throws(EngineError) { try feed.request(MemoryBlockIndex(index), pages) } catch { preconditionFailure("\(error)") }
                    })
            }
        } catch {
            for part in missing { part.fail() }
            feed.close()
            throw error
        }
        self.missing = missing
        guard let thread = PlainThread({ self.install() }) else {
            for part in missing { part.fail() }
            feed.close()
            throw EngineError(.noMemory, "can't start a thread that provides pages")
        }
        state.withLock { $0.threads.append(thread) }
    }

    private func install() {
        do throws(EngineError) {
            while let unit = try feed.next() {
                let part = missing[unit.block.int]
                if unit.areZero {
                    try part.provideZeros(unit.pages)
                } else {
                    unsafe try unit.withBytes { (bytes) throws(EngineError) in unsafe try part.provide(unit.pages, bytes) }
                }
            }
            end(nil)
        } catch { end(error) }
    }

    private func end(_ failure: EngineError?) {
        for part in missing { if failure == nil { part.finish() } else { part.fail() } }
        state.withLock { state in
            state.failure = failure
            state.isDone = true
        }
        state.wake()
    }

    /// Whether all pages are there.
    public var isComplete: Bool { state.withLock { $0.isDone && $0.failure == nil } }

    /// Waits until all pages are there; from then on the memory can be checkpointed.
    /// - Throws: why a page could not be had: whoever touches what is missing is ended by SIGBUS. `.cancelled` after `close`.
    public func wait() throws(EngineError) {
        try state.waitFor { (state) throws(EngineError) -> Void? in
            if let failure = state.failure { throw failure }
            return state.isDone ? () : nil
        }
    }

    /// Ends it. What is not there by now never comes: let nobody touch the memory any more, unless `isComplete`. Harmless to repeat.
    public func close() {
        feed.close()
        let threads = state.withLock { state in
            defer { state.threads = [] }
            return state.threads
        }
        for thread in threads { thread.join() }
    }
}
