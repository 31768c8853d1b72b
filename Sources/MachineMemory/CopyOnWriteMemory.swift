// The memory of one instant, although the machine goes on writing it [system A: 806, 816, 818, 824, 828].
//
// What makes the stop short: all pages are write-protected *before* the machine stands still, in rounds, each of which protects again what
// was written during the one before; in the stop only what was written during the last round is left. Between checkpoints clean pages stay
// protected, so that a page's first write says that it is dirty, and the next checkpoint's rounds concern dirty pages alone.
//
// Invariants:
// - A unit that is written after the instant is copied aside first if the checkpoint wants it and it has not been saved; each original is
//   copied at most once, by the fault's thread or by a saver, whoever claims it.
// - A unit is clean only if it is protected: under the lock, "dirty" is set before a unit is released, and cleared before it is protected.
// - Faults are answered in every phase, after errors as well; no thread but writers' waits for a store, and they when copies have reached their limit.
// - Given up or failed checkpoints leave what they wanted dirty, so that the next one has it.

import CheckpointCore
import Glibc
import Threading
import Units

/// Copies one memory on write, checkpoint after checkpoint.
///
/// The calls of one checkpoint come in this order: `prepare`, `mark`, then `copy` and `preserve` from any threads, then `finish` or `cancel`.
/// Faults are answered on threads of its own. Must be closed.
public final class CopyOnWriteMemory: InstantMemory, CopyablePages {
    /// How it works.
    public struct Options: Sendable {
        /// Keeps clean pages protected between checkpoints: the next checkpoint costs what was written; each page's first write
        /// after a checkpoint costs a fault. Otherwise pages are given free as soon as they are safe, which takes memory for copies ahead of the store; nothing is protected
        /// between checkpoints, and each of them concerns all of the memory.
        public var keepsProtection = true
        /// How many pages are released with one fault at most, when a writer goes through memory in order.
        public var longestWindow = PageCount(64)
        /// Memory for originals that were written before they were saved. A writer that would exceed it waits for the store; devices
        /// don't: what the store is waiting for may be theirs.
        public var copyLimit: ByteCount?
        /// Rounds of protection ahead of the stop; none: everything is protected in the stop.
        public var mostRounds = 8
        /// Threads that answer faults.
        public var faultThreads = 1

        public init() {}
    }

    enum Phase {
        /// No checkpoint under way.
        case idle
        /// Being protected for one; nothing needs copying yet.
        case preparing
        /// Between the instant and the end: originals are kept.
        case copying
    }

    struct State {
        var phase = Phase.idle
        /// Nothing has been protected yet, or nothing is kept protected: what is dirty is not known.
        var isUntracked = true
        /// All pages that were ever touched are wanted.
        var isFull = false
        var wanted = PageRanges()
        /// What the stop has added to it: joined later, since sorting takes its time.
        var wantedInStop = PageRanges()
        /// Pages that stay zero in a memory that was not tracked: the store has to be told.
        var zeros = PageRanges()
        var windows: FaultWindows
        /// Writers that wait because all room for copies is taken.
        var parked: [Int] = []
        var report = InstantReport()
        var failure: EngineError?

        mutating func allWanted() -> PageRanges {
            if !wantedInStop.isEmpty {
                wanted = wanted.union(wantedInStop)
                wantedInStop = PageRanges()
            }
            report.wantedPages = wanted.count
            return wanted
        }
    }

    public let memory: GuestMemory
    let options: Options
    let units: UnitStates
    let slots: CopySlots
    let state: Lock<State>
    let copier = Lock<PlainThread?>(nil)
    private let trap: Lock<WriteTrap?>

    /// Room for copies that is kept between checkpoints.
    private static let keptCopies = ByteCount.mebibytes(8)
    /// Protected at once while the machine runs: its faults wait meanwhile, some 0.1 ms.
    private static let piece = PageCount(2048)
    /// A gap of so many protected pages is cheaper to protect once more than another system call.
    private static let gap = PageCount(16)
    /// So few pages are protected in the stop without another round.
    private static let fewPages = PageCount(32)

    /// Registers the memory with the kernel. Nothing is protected before the first checkpoint.
    /// - Throws: what `WriteTrap.init` throws; `.noMemory`.
    public init(_ memory: GuestMemory, options: Options = Options()) throws(EngineError) {
        guard memory.unit.int <= pagesPerSpan * pageSize else {
            throw EngineError(
                .unsupported, "the memory lies in pages of \(memory.unit) bytes, too large to be copied at a write",
                remedy: "Use huge pages of 2 MiB, or transparent ones.", place: memory.name)
        }
        self.memory = memory
        self.options = options
        units = UnitStates(memory)
        let limit = options.copyLimit.map { Int($0.rawValue / memory.unit.rawValue) } ?? units.count
        slots = try CopySlots(
            unit: memory.unit, count: units.count, limit: min(limit, units.count), provided: Self.keptCopies, place: memory.name)
        let longest = memory.pages == .huge ? 1 : max(1, Int(options.longestWindow.rawValue))
        state = Lock(State(windows: FaultWindows(longest: longest)))
        trap = Lock(nil)
        let trap = try WriteTrap(memory, threadCount: options.faultThreads) { [weak self] page, trap in
            // Without its owner the trap is about to be closed: nobody may have to wait.
            guard let self else { return trap.releaseWhileClosing(page) }
            self.answer(page, trap)
        }
        self.trap.withLock { $0 = trap }
    }

    deinit { close() }

    /// Ends all protection and the threads. Harmless to repeat.
    public func close() {
        cancel()
        // Devices may announce writes until the end: under the lock, so that none of them is using the trap.
        let trap = state.withLock { _ in
            self.trap.withLock { trap in
                defer { trap = nil }
                return trap
            }
        }
        trap?.close()
    }

    /// Nil after `close`.
    var openTrap: WriteTrap? { trap.withLock { $0 } }

    func requireTrap() -> WriteTrap {
        guard let trap = openTrap else { preconditionFailure("memory that was closed takes no checkpoints") }
        return trap
    }

    // MARK: One checkpoint

    /// Protects what the checkpoint will want, while the machine runs, so that little is left for the stop. Nothing is put yet.
    ///
    /// - Throws: `.ioFailed`; what was dirty is dirty still then.
    public func prepare(isFull: Bool, into region: any RegionSink, hasParent: Bool, workers: Int) throws(EngineError) {
        try prepare(isFull: isFull)
    }

    /// Protects what the checkpoint will want, while the machine runs.
    /// - Parameter isFull: wants all pages that were ever touched, not only those that were written since the last checkpoint.
    public func prepare(isFull: Bool) throws(EngineError) {
        let trap = requireTrap()
        let isUntracked = state.withLock { state in
            precondition(state.phase == .idle, "one checkpoint at a time")
            state.phase = .preparing
            state.isFull = isFull
            // What an earlier failure has left is not known: everything counts as written.
            if state.failure != nil {
                state.failure = nil
                state.isUntracked = true
                units.setDirty(0..<units.count, true)
            }
            state.report = InstantReport()
            state.wanted = PageRanges()
            state.wantedInStop = PageRanges()
            state.zeros = PageRanges()
            return state.isUntracked
        }
        do throws(EngineError) {
            if options.mostRounds > 0 {
                // What devices are about to write may not have been touched yet.
                if isUntracked {
                    want(try protect(PageRanges(memory.allPages), trap, announcedOnly: true))
                } else if isFull {
                    // Pages that were given back to the system have lost their protection without having been written.
                    want(try protect(PageRanges(memory.allPages), trap))
                }
                try runRounds(trap, isFull: isFull, isFirst: isUntracked)
            }
        } catch {
            cancel()
            throw error
        }
    }

    private func runRounds(_ trap: WriteTrap, isFull: Bool, isFirst: Bool) throws(EngineError) {
        // After the protection: what is touched later is written, and so found dirty.
        if isFull || isFirst { try wantTouched() }
        var before = PageCount(UInt64.max)
        for _ in 0..<options.mostRounds {
            let dirty = state.withLock { _ in units.dirtyPages() }
            guard dirty.count > Self.fewPages, dirty.count.rawValue < before.rawValue - before.rawValue / 8 else { return }
            before = dirty.count
            want(try protect(dirty, trap))
            state.withLock { $0.report.rounds += 1 }
        }
    }

    private func wantTouched() throws(EngineError) {
        let touched = try memory.touchedPages()
        want(touched)
        state.withLock { $0.zeros = PageRanges(memory.allPages).subtracting(touched) }
    }

    /// Protects pages, a piece at a time. Answers which were dirty: also those in gaps that have become so since somebody looked.
    /// - Parameter announcedOnly: answers only those that devices announced.
    private func protect(_ pages: PageRanges, _ trap: WriteTrap, announcedOnly: Bool = false) throws(EngineError) -> PageRanges {
        var dirty: [Range<PageIndex>] = []
        for range in pages.longRuns(atLeast: PageCount(1), bridging: Self.gap).ranges {
            var start = range.lowerBound
            while start < range.upperBound {
                let end = min(range.upperBound, memory.wholeUnits(start..<start + Self.piece).upperBound)
                try state.withLock { _ throws(EngineError) in try protectLocked(start..<end, trap, announcedOnly, &dirty) }
                start = end
            }
        }
        return PageRanges(dirty)
    }

    /// Clears, then protects, under the lock: a fault comes before both or after both. Adds what was dirty to `dirty`; when it fails, all
    /// of that is dirty again.
    private func protectLocked(
        _ piece: Range<PageIndex>, _ trap: WriteTrap, _ announcedOnly: Bool, _ dirty: inout [Range<PageIndex>]
    ) throws(EngineError) {
        dirty += units.takeDirty(units.units(of: piece), announcedOnly: announcedOnly).ranges
        do throws(EngineError) { try trap.protect(piece) } catch {
            units.setDirty(units.units(of: piece), true)
            for range in dirty { units.announce(units.units(of: range)) }
            throw error
        }
    }

    private func want(_ pages: PageRanges) {
        for range in pages.ranges { units.want(units.units(of: range)) }
        state.withLock { $0.wanted = $0.wanted.union(pages) }
    }

    /// The instant [806]: what the checkpoint gets is the memory as it is now. Call it while the machine stands still, and let it go on
    /// as soon as this has returned.
    ///
    /// - Parameter pending: pages that devices are about to write for requests issued before this moment; the checkpoint gets them, too.
    /// - Throws: `.ioFailed`; the checkpoint is given up then.
    public func mark(pending: PageRanges = PageRanges()) throws(EngineError) {
        let trap = requireTrap()
        do throws(EngineError) {
            let isUnprepared = options.mostRounds == 0 && state.withLock { $0.isUntracked }
            let wantsAll = options.mostRounds == 0 && state.withLock { $0.isUntracked || $0.isFull }
            if wantsAll { try wantTouched() }
            // In one piece: who writes although the machine should stand still waits until the instant is over.
            let marked = try state.withLock { state throws(EngineError) in
                var dirty: [Range<PageIndex>] = []
                let found = wantsAll ? PageRanges(memory.allPages) : units.dirtyPages()
                for range in found.longRuns(atLeast: PageCount(1), bridging: Self.gap).ranges {
                    try protectLocked(range, trap, isUnprepared, &dirty)
                }
                let whole = PageRanges(dirty).union(pending).wholeUnits(of: memory.pagesPerUnit.int)
                for range in whole.ranges { units.want(units.units(of: range)) }
                state.wantedInStop = whole
                state.phase = .copying
                state.isUntracked = false
                return found
            }
            state.withLock { $0.report.stopPages = marked.count }
            startCopyingAhead()
        } catch {
            cancel()
            throw error
        }
    }

    /// The pages that the checkpoint wants, from `mark` on; all others are the last checkpoint's.
    public var wantedPages: PageRanges { state.withLock { $0.allWanted() } }

    /// Pages that are known to be zero without having been looked at, where `prepare` was the first or asked for all: the checkpoint's, less what it wants.
    public var untouchedPages: PageRanges { state.withLock { $0.zeros.subtracting($0.allWanted()) } }

    /// The checkpoint is complete: clears the marks [828]. What was written since the instant stays dirty for the next one.
    public func finish() throws(EngineError) {
        endCopying(isComplete: true)
        if !options.keepsProtection { try stopTracking() }
    }

    /// Gives the checkpoint under way up, if any: what it wanted is dirty again.
    public func cancel() {
        let isUnderWay = state.withLock { $0.phase != .idle }
        endCopying(isComplete: false)
        guard isUnderWay, !options.keepsProtection, openTrap != nil else { return }
        do throws(EngineError) { try stopTracking() } catch { state.withLock { $0.failure = $0.failure ?? error } }
    }

    private func endCopying(isComplete: Bool) {
        let trap = self.trap.withLock { $0 }
        // Faults are answered under the lock: from here on nobody copies. Those that wait for room go on.
        let parked: [Int] = state.withLock { state in
            for range in state.allWanted().ranges {
                for unit in units.units(of: range) {
                    if let slot = units.slot(of: unit) { slots.giveBack(slot) }
                }
                // Some of them may be dirty because of what a device is still about to write.
                if !isComplete { units.announce(units.units(of: range)) }
            }
            units.forgetAll()
            state.report.mostCopies = PageCount(slots.takeMostOut()) * memory.pagesPerUnit
            state.phase = .idle
            state.wanted = PageRanges()
            defer { state.parked = [] }
            for unit in state.parked { units.setDirty(unit..<unit + 1, true) }
            return state.parked
        }
        state.wake()
        joinCopier()
        slots.trim(to: Self.keptCopies)
        for unit in parked { release(unit..<unit + 1, trap) }
    }

    /// Ends the protection of everything: writes are not noted until the next checkpoint, which concerns all of the memory.
    public func stopTracking() throws(EngineError) {
        let trap = requireTrap()
        try state.withLock { state throws(EngineError) in
            precondition(state.phase == .idle, "not while a checkpoint is under way")
            state.isUntracked = true
            units.setDirty(0..<units.count, true)
            try trap.release(memory.allPages)
        }
    }

    /// What the last checkpoint came to.
    public var report: InstantReport { state.withLock { $0.report } }

    /// Why faults could not be answered as they should, if so. The checkpoint under way is not to be used then; the next one concerns all of
    /// the memory.
    public var failure: EngineError? { state.withLock { $0.failure } ?? trap.withLock { $0 }?.failure }
}
