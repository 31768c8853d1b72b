// Answering write faults, and forcing them [816, 818].

import CheckpointCore
import Glibc
import Units

extension CopyOnWriteMemory {
    /// A write waits at `page`.
    func answer(_ page: PageIndex, _ trap: WriteTrap) {
        state.withLock { state in
            let first = units.unit(of: page)
            guard state.phase == .copying else {
                let end = min(units.count, first + state.windows.length(at: first))
                return releaseDirty(first..<end, trap, &state)
            }
            state.report.faults += 1
            guard keep(first, &state) else {
                // Released when there is room again, or when its page has been saved.
                state.parked.append(first)
                return
            }
            var end = first + 1
            let limit = min(units.count, first + state.windows.length(at: first))
            // The window ends where a saver is at work or room runs out: this writer waits for its own page alone.
            while end < limit, keepIfFree(end, &state) { end += 1 }
            releaseDirty(first..<end, trap, &state)
        }
    }

    private func releaseDirty(_ range: Range<Int>, _ trap: WriteTrap, _ state: inout State) {
        units.setDirty(range, true)
        do throws(EngineError) { try trap.release(units.pages(of: range)) } catch { state.failure = state.failure ?? error }
    }

    /// Secures a unit's original, or waits until a saver has. False when there is no room.
    private func keep(_ unit: Int, _ state: inout State, beyondLimit: Bool = false) -> Bool {
        guard !units.isSettled(unit) else { return true }
        guard let slot = slots.take(beyondLimit: beyondLimit) else {
            // A saver that has claimed it needs no room.
            return units.isSettled(unit)
        }
        guard units.claim(unit) else {
            slots.giveBack(slot)
            // A saver copies a span in some 0.1 ms.
            units.waitUntilSettled(unit)
            return true
        }
        copyAside(unit, slot, &state)
        return true
    }

    /// Secures a unit's original if that needs no waiting; false otherwise.
    private func keepIfFree(_ unit: Int, _ state: inout State) -> Bool {
        if units.isSettled(unit) { return true }
        guard let slot = slots.take() else { return false }
        guard units.claim(unit) else {
            slots.giveBack(slot)
            return false
        }
        copyAside(unit, slot, &state)
        return true
    }

    /// Secures and releases some units as far as there is room; false when there is none.
    func secure(_ range: Range<Int>, _ trap: WriteTrap, _ state: inout State) -> Bool {
        var start = range.lowerBound
        while start < range.upperBound {
            var end = start
            while end < range.upperBound, keepIfFree(end, &state) { end += 1 }
            if end > start { releaseDirty(start..<end, trap, &state) }
            // What stopped it is a saver at work, which releases the unit itself, or no room.
            if end < range.upperBound, units.isUnclaimed(end) { return false }
            start = end + 1
        }
        return true
    }

    private func copyAside(_ unit: Int, _ slot: CopySlot, _ state: inout State) {
        unsafe slots.bytes(of: slot).copyMemory(from: UnsafeRawBufferPointer(memory.bytes(of: units.pages(of: unit..<unit + 1))))
        units.setSlot(slot, of: unit)
        units.settle(unit)
        state.report.copiedPages += memory.pagesPerUnit
    }

    /// Notes that pages are about to be written by somebody whose writes don't trap: the next checkpoint wants them. Their originals for the
    /// one under way are `preserve`'s affair. Harmless after `close`.
    public func noteWrite(_ pages: Range<PageIndex>) {
        state.withLock { state in
            guard let trap = openTrap else { return }
            let range = units.units(of: pages)
            units.announce(range)
            // Released, so that the machine does not fault as well; during a checkpoint originals come first.
            if state.phase != .copying { releaseDirty(range, trap, &state) }
        }
    }

    /// Forces the faults that writes to these pages would have [816]: for writes that don't trap, such as those of devices. Returns when
    /// they may be written. The pages count as written from here on. Copies beyond their limit where it is reached: who asks may be a thread that
    /// completes what saving waits for [822]. Between checkpoints: `noteWrite`. Harmless after `close`.
    public func preserve(_ pages: Range<PageIndex>) {
        state.withLock { state in
            guard let trap = openTrap else { return }
            for unit in units.units(of: pages) {
                if state.phase == .copying, !keep(unit, &state, beyondLimit: true) { preconditionFailure("there is a slot for each unit") }
                releaseDirty(unit..<unit + 1, trap, &state)
            }
        }
    }

    /// Whether a page's original was copied aside because somebody wrote the page [815].
    public func wasCopied(_ page: PageIndex) -> Bool { state.withLock { _ in units.slot(of: units.unit(of: page)) != nil } }

    /// Hands over the checkpoint's copies of some pages, to be changed to what a device delivered after they were made [815]: for each page that was
    /// copied aside its bytes, ascending. `body` is called once, under a lock: it must neither wait nor touch protected memory.
    ///
    /// - Precondition: the pages have not been saved: reads that were pending are waited for before saving [822].
    public func withCopies(of pages: Range<PageIndex>, _ body: ([PageCopy]) -> Void) {
        state.withLock { _ in
            var copies: [PageCopy] = []
            for index in pages.lowerBound.rawValue..<pages.upperBound.rawValue {
                let page = PageIndex(index)
                let unit = units.unit(of: page)
                guard let slot = units.slot(of: unit) else { continue }
                let start = (page - units.pages(of: unit..<unit + 1).lowerBound).bytes.int
                unsafe copies.append(PageCopy(page, unsafe UnsafeMutableRawBufferPointer(rebasing: slots.bytes(of: slot)[start..<start + pageSize])))
            }
            body(copies)
        }
    }

    // MARK: Waiting for room

    func release(_ range: Range<Int>, _ trap: WriteTrap?) {
        guard let trap else { return }
        do throws(EngineError) { try trap.release(units.pages(of: range)) } catch { state.withLock { $0.failure = $0.failure ?? error } }
    }

    /// Tries the parked writers again: room has become free, or their pages have been saved.
    func serveParked() {
        let trap = requireTrap()
        state.withLock { state in
            guard state.phase == .copying, !state.parked.isEmpty else { return }
            var waiting: [Int] = []
            for unit in state.parked {
                if keep(unit, &state) { releaseDirty(unit..<unit + 1, trap, &state) } else { waiting.append(unit) }
            }
            state.parked = waiting
        }
        state.wake()
    }
}

/// The checkpoint's copy of a page.
@safe public struct PageCopy {
    public let page: PageIndex
    /// 4096 bytes.
    public let bytes: UnsafeMutableRawBufferPointer

    init(_ page: PageIndex, _ bytes: UnsafeMutableRawBufferPointer) {
        self.page = page
        unsafe self.bytes = bytes
    }
}
