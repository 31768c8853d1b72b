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
    private func keep(_ unit: Int, _ state: inout State) -> Bool {
        guard !units.isSettled(unit) else { return true }
        guard let slot = slots.take() else {
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

    /// Forces the faults that writes to these pages would have [816]: for writes that don't trap, such as those of devices. Returns when
    /// they may be written. The pages count as written from here on. Waits where there is no room for copies.
    ///
    /// Between checkpoints it only notes that the pages are written.
    public func preserve(_ pages: Range<PageIndex>) {
        let trap = requireTrap()
        for unit in units.units(of: pages) {
            state.waitFor { state -> Void? in
                guard state.phase == .copying else {
                    releaseDirty(unit..<unit + 1, trap, &state)
                    return ()
                }
                guard keep(unit, &state) else { return nil }
                releaseDirty(unit..<unit + 1, trap, &state)
                return ()
            }
        }
    }

    /// Whether a page's original was copied aside because somebody wrote the page [815].
    public func wasCopied(_ page: PageIndex) -> Bool { state.withLock { _ in units.slot(of: units.unit(of: page)) != nil } }

    /// Changes a part of the checkpoint's copy of one page: what a device delivered after the copy was made [815].
    ///
    /// - Parameter offset: within the page.
    /// - Precondition: `wasCopied(page)`, and the page has not been saved: reads that were pending are waited for before saving [822].
    public func patchCopy(_ page: PageIndex, at offset: Int, _ bytes: UnsafeRawBufferPointer) {
        let unit = units.unit(of: page)
        state.withLock { _ in
            guard let slot = units.slot(of: unit) else { preconditionFailure("only copies are changed") }
            let start = (page - units.pages(of: unit..<unit + 1).lowerBound).bytes.int + offset
            precondition(offset >= 0 && offset + bytes.count <= pageSize, "within the page")
            let all = unsafe slots.bytes(of: slot)
            unsafe UnsafeMutableRawBufferPointer(rebasing: all[start..<start + bytes.count]).copyMemory(from: bytes)
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
