// The first write of each epoch to each page, noted before it happens.
//
// Invariants:
// - A page's bit is set, and the page is released, only after the strategy has noted the write and kept what it needs of the old content.
// - A page whose bit is clear is protected, so that its next write comes here. Hence bits are cleared only after their pages are protected.
// - A page that there was no room for stays protected, and its writer waits, until the next commit or rollback.
// - The lock excludes commits: no write is noted half in one epoch and half in the next.

import CheckpointCore
import MachineMemory
import Threading
import Units

/// Write tracking of one memory for one strategy. Thread-safe.
package final class FirstWrites: Sendable {
    package let memory: GuestMemory
    private let core: Core
    private let trap: WriteTrap

    /// Protects the whole memory: the epoch begins with what it holds.
    ///
    /// - Parameter note: `RollbackStrategy.firstWrite`.
    /// - Throws: like `WriteTrap.init` and `protect`.
    init(_ memory: GuestMemory, _ counters: RollbackCounters, note: @escaping @Sendable (Range<PageIndex>) -> FirstWrite) throws(EngineError) {
        self.memory = memory
        let core = Core(memory, counters, note)
        self.core = core
        trap = try WriteTrap(memory) { page, trap in core.handle(page, trap) }
        do throws(EngineError) { try trap.protect(memory.allPages) } catch {
            trap.close()
            throw error
        }
    }

    /// Pages written since the last commit, in whole units.
    package var written: PageRanges { core.state.withLock { $0.written }.pageRanges }

    /// The pages that wait for room.
    package var held: PageRanges { core.state.withLock { $0.held }.pageRanges }

    /// Why writes are not tracked any more, if so: no checkpoint can be trusted then.
    func check() throws(EngineError) {
        if let failure = core.state.withLock({ $0.failure }) ?? trap.failure { throw failure }
    }

    /// Lets the pages' writes come here again. Their bits stay until `commit` or `clear`.
    func protect(_ pages: PageRanges) throws(EngineError) {
        // A call for everything takes about 15 us for each MiB, one for a single range about 1 us.
        if pages.ranges.count > max(64, memory.pageCount.int / 16) { return try trap.protect(memory.allPages) }
        for range in pages.ranges { try trap.protect(range) }
    }

    /// Begins a new epoch: clears all bits, and `change` makes the strategy's new checkpoint stand in the same instant. Pages with bits are
    /// protected before.
    func commit(_ change: () -> Void) {
        core.state.withLock { state in
            state.written = PageBitmap(pageCount: memory.pageCount)
            change()
        }
    }

    /// Lets the writers go on that waited for room: their writes belong to the epoch that has begun.
    func admitHeld() {
        core.state.withLock { state in
            let waiting = state.held.pageRanges
            state.held = PageBitmap(pageCount: memory.pageCount)
            state.isFull = false
            state.isReported = false
            core.admit(waiting, &state, trap)
        }
        core.state.wake()
    }

    /// Lets pages be written without coming here, whatever their bits say.
    func release(_ pages: PageRanges) throws(EngineError) {
        for range in pages.ranges { try trap.release(range) }
    }

    /// Overwrites pages whose bits are set: `fill` writes each piece, then they are protected again. Writers stand still. Such pages are
    /// released already, but after a checkpoint that has thrown: then these writes trap like others, and are let through because of the
    /// bits.
    func restore(
        _ pages: PageRanges, _ fill: (Range<PageIndex>, UnsafeMutableRawBufferPointer) throws(EngineError) -> Void
    ) throws(EngineError) {
        try pages.forEachPiece(memory.pagesPerUnit) { piece throws(EngineError) in try unsafe fill(piece, memory.bytes(of: piece)) }
        try protect(pages)
    }

    /// Notes writes that will not trap, of a device, before they happen: returns when they may. May wait for a checkpoint, like a write
    /// that traps.
    func announce(_ pages: Range<PageIndex>) throws(EngineError) {
        let units = memory.wholeUnits(pages)
        try core.state.waitFor { state throws(EngineError) -> Void? in
            if let failure = state.failure { throw failure }
            core.admit(PageRanges(units), &state, trap)
            return state.isClosed || state.written.first(in: units, isMember: false) == nil ? () : nil
        }
        try check()
    }

    /// Waits until there is no room for a write: true, once until `admitHeld`. False when tracking was closed.
    func waitUntilFull() -> Bool {
        core.state.waitFor { state in
            if state.isClosed { return false }
            guard state.isFull, !state.isReported else { return nil }
            state.isReported = true
            return true
        }
    }

    /// Ends tracking; whoever waits goes on.
    func close() {
        core.state.withLock { $0.isClosed = true }
        core.state.wake()
        trap.close()
    }
}

extension FirstWrites {
    /// What the trap's thread and the owner's threads share.
    private final class Core: Sendable {
        struct State {
            var written: PageBitmap
            var held: PageBitmap
            var isFull = false
            var isReported = false
            var isClosed = false
            var failure: EngineError?
        }

        let state: Lock<State>
        private let memory: GuestMemory
        private let counters: RollbackCounters
        private let note: @Sendable (Range<PageIndex>) -> FirstWrite

        init(_ memory: GuestMemory, _ counters: RollbackCounters, _ note: @escaping @Sendable (Range<PageIndex>) -> FirstWrite) {
            self.memory = memory
            self.counters = counters
            self.note = note
            let none = PageBitmap(pageCount: memory.pageCount)
            state = Lock(State(written: none, held: none))
        }

        /// On the trap's thread: somebody waits to write.
        func handle(_ page: PageIndex, _ trap: WriteTrap) {
            state.withLock { admit(PageRanges(page..<page + memory.pagesPerUnit), &$0, trap) }
            state.wake()
        }

        /// Lets each unit be written, or holds it. Under the lock.
        func admit(_ pages: PageRanges, _ state: inout State, _ trap: WriteTrap) {
            for range in pages.ranges {
                var unit = range.lowerBound..<range.lowerBound + memory.pagesPerUnit
                while unit.lowerBound < range.upperBound {
                    admit(unit, &state, trap)
                    unit = unit.upperBound..<unit.upperBound + memory.pagesPerUnit
                }
            }
        }

        private func admit(_ unit: Range<PageIndex>, _ state: inout State, _ trap: WriteTrap) {
            if state.held.contains(unit.lowerBound) { return }
            if !state.written.contains(unit.lowerBound) {
                // Who waits for room is first: otherwise a small page could pass where a large one was held.
                guard !state.isFull, note(unit) == .noted else {
                    state.held.insert(unit)
                    state.isFull = true
                    return
                }
                state.written.insert(unit)
                counters.add { $0.firstWrites += 1 }
            }
            do throws(EngineError) { try trap.release(unit) } catch { state.failure = state.failure ?? error }
        }
    }
}
