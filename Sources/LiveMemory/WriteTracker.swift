// Which pages of a running process's shared memory have been written.
//
// The pages are write-protected in a way that lets every write through and only notes it in the page tables; a scan collects the notes
// and protects again, in one step for each page. The process never waits for us.
//
// Invariants:
// - No write through the process's own mapping is ever missed: a page is reported by the first scan after it. Pages may be
//   reported that were not changed.
// - Not seen: memory given back (a page becomes zero without a write), writes of other processes, and writes of devices into pages
//   that were prepared for them before the last scan (direct I/O that is under way).
// - When this object or this process ends, the kernel ends the tracking.

import CLiveMemory
import CheckpointCore
import Glibc
import Threading
import Units

/// Tracks the writes of one block. Thread-safe: scans follow one another.
public final class WriteTracker: Sendable {
    public let block: SharedMemoryBlock
    private let userfault: Userfault
    private let scanner: PageTableScan
    private let mappingCheck: MappingCheck
    private let state = Lock(State())

    private struct State {
        var isArmed = false
        /// Pages handed to another kind of protection.
        var lent = PageRanges()
        /// Pages that the next scan reports whatever the page tables say.
        var unknown = PageRanges()
    }

    /// Prepares tracking, without protecting anything yet. One of the process's threads is stopped for some tenths of a millisecond.
    ///
    /// - Parameter threads: threads that should only be stopped when no other can be: those that run the guest.
    /// - Throws: `.unsupported` on kernels before 6.7 and other processors than x86-64; `.permission`; `.busy` when no thread could
    ///   be stopped; `.exited`. The process is then as it was.
    public init(_ block: SharedMemoryBlock, avoiding threads: Set<Int32> = []) throws(EngineError) {
        self.block = block
        scanner = try PageTableScan(block)
        mappingCheck = try MappingCheck(block)
        userfault = try Userfault(block.process, .asynchronous, avoiding: threads)
    }

    /// Begins: the next `scan` reports what is written from somewhere within this call on. The process runs meanwhile; 20 to 40 ms for each GiB.
    ///
    /// - Throws: `.busy` when another userfaultfd has the memory; `.unsupported` when its kind can't be tracked. Nothing is tracked then.
    public func arm() throws(EngineError) {
        try state.withLock { state throws(EngineError) in
            precondition(!state.isArmed, "a tracker is armed once at a time")
            try mappingCheck.check()
            try userfault.register(block.mapping.addresses)
            do throws(EngineError) {
                try userfault.protect(block.mapping.addresses)
            } catch {
                try? userfault.unregister(block.mapping.addresses)
                throw error
            }
            state = State(isArmed: true)
        }
    }

    /// The pages written since the last scan, or since `arm`; from now on they are tracked anew. About 1.5 ms for each GiB.
    ///
    /// Pages that `CopyOnWriteRanges` has are left out; the first scan after those are back reports all of them.
    ///
    /// - Throws: `.busy` when somebody else ended the tracking; `.exited`. The next scan that succeeds reports all pages.
    public func scan() throws(EngineError) -> PageRanges {
        try state.withLock { state throws(EngineError) in
            precondition(state.isArmed, "a tracker scans between arm and disarm")
            let before = state.unknown
            // What a scan that fails has collected and protected again must not be lost.
            state.unknown = PageRanges([block.pages])
            var found: [Range<PageIndex>] = []
            for range in PageRanges([block.pages]).subtracting(state.lent).ranges {
                found += try scanner.pages(CK_SCAN_WRITTEN_PROTECT, within: range).ranges
            }
            let written = before.subtracting(state.lent).union(PageRanges(found))
            // Where nothing is mapped there is nothing to report: memory that has gone would look untouched.
            try mappingCheck.check()
            state.unknown = before.intersection(state.lent)
            return written
        }
    }

    /// Ends the tracking. Harmless when nothing is tracked.
    public func disarm() throws(EngineError) {
        try state.withLock { state throws(EngineError) in
            guard state.isArmed else { return }
            let tracked = PageRanges([block.pages]).subtracting(state.lent)
            state = State()
            for range in tracked.ranges { try userfault.unregister(block.addresses(of: range)) }
        }
    }

    /// Gives up the tracking of these pages, whole units: another userfaultfd may take them.
    func lend(_ pages: PageRanges) throws(EngineError) {
        try state.withLock { state throws(EngineError) in
            precondition(state.isArmed && state.lent.intersection(pages).isEmpty, "pages are lent once")
            for range in pages.ranges {
                try userfault.unregister(block.addresses(of: range))
                state.lent = state.lent.union(PageRanges([range]))
                state.unknown = state.unknown.union(PageRanges([range]))
            }
        }
    }

    /// Tracks lent pages again. The next scan reports all of them, since nobody knows what was written meanwhile.
    func takeBack(_ pages: PageRanges) throws(EngineError) {
        try state.withLock { state throws(EngineError) in
            guard state.isArmed else { return }
            for range in pages.ranges {
                try userfault.register(block.addresses(of: range))
                try userfault.protect(block.addresses(of: range))
                state.lent = state.lent.subtracting(PageRanges([range]))
            }
        }
    }
}
