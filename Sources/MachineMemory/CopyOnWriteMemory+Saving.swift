// The originals on their way into the store [824].

import CheckpointCore
import Glibc
import Units

extension CopyOnWriteMemory {
    /// Copies wanted pages as they were at the instant: from the memory, where they are still untouched, or from their copies. Each page once.
    ///
    /// `destination` has exactly the pages' size. From several threads at once, for different units.
    package func copy(_ pages: Range<PageIndex>, into destination: UnsafeMutableRawBufferPointer) throws(EngineError) {
        precondition(destination.count == (pages.upperBound - pages.lowerBound).bytes.int)
        if let failure { throw failure }
        let range = units.units(of: pages)
        var taken: [Int] = []
        var unit = range.lowerBound
        while unit < range.upperBound {
            guard units.claim(unit) else {
                taken.append(unit)
                unit += 1
                continue
            }
            var end = unit + 1
            while end < range.upperBound, units.claim(end) { end += 1 }
            unsafe copyOriginals(unit..<end, of: pages, into: destination)
            for unit in unit..<end { units.settle(unit) }
            unit = end
        }
        for unit in taken { unsafe takeCopy(unit, of: pages, into: destination) }
        if !options.keepsProtection { try releaseSaved(range) }
        serveParked()
    }

    private func copyOriginals(_ range: Range<Int>, of pages: Range<PageIndex>, into destination: UnsafeMutableRawBufferPointer) {
        let part = units.pages(of: range).clamped(to: pages)
        unsafe target(part, of: pages, in: destination).copyMemory(from: UnsafeRawBufferPointer(memory.bytes(of: part)))
    }

    /// A unit that a fault has copied aside.
    private func takeCopy(_ unit: Int, of pages: Range<PageIndex>, into destination: UnsafeMutableRawBufferPointer) {
        units.waitUntilSettled(unit)
        let whole = units.pages(of: unit..<unit + 1)
        let part = whole.clamped(to: pages)
        guard let slot = units.slot(of: unit) else {
            // A unit that spans the borders of two pieces was settled by the one before, from the memory itself, or is not wanted: its pages
            // are protected only as long as nobody writes them, so that this would be no original.
            preconditionFailure("pages are saved once, in whole units")
        }
        let start = (part.lowerBound - whole.lowerBound).bytes.int
        let copy = unsafe UnsafeRawBufferPointer(slots.bytes(of: slot))
        let target = unsafe target(part, of: pages, in: destination)
        unsafe target.copyMemory(from: UnsafeRawBufferPointer(rebasing: copy[start..<start + target.count]))
        // The lock orders this with who looks for the copy.
        state.withLock { _ in units.setSlot(nil, of: unit) }
        slots.giveBack(slot)
    }

    private func target(
        _ part: Range<PageIndex>, of pages: Range<PageIndex>, in destination: UnsafeMutableRawBufferPointer
    ) -> UnsafeMutableRawBufferPointer {
        let start = (part.lowerBound - pages.lowerBound).bytes.int
        return unsafe UnsafeMutableRawBufferPointer(rebasing: destination[start..<start + (part.upperBound - part.lowerBound).bytes.int])
    }

    /// Nobody asks any more who writes these pages.
    private func releaseSaved(_ range: Range<Int>) throws(EngineError) {
        let trap = requireTrap()
        try state.withLock { _ throws(EngineError) in
            units.setDirty(range, true)
            try trap.release(units.pages(of: range))
        }
    }

    /// Saves everything that the checkpoint wants into a region.
    ///
    /// - Parameters:
    ///   - hasParent: whether the region's other pages are a parent's: then pages that were never touched are put as zeros.
    ///   - workers: threads that copy and save.
    ///   - progress: pages done so far, and all of them.
    /// - Throws: what the region throws. The checkpoint has to be cancelled then.
    public func save(
        into region: any RegionSink, hasParent: Bool, workers: Int, progress: @escaping @Sendable (PageCount, PageCount) -> Void
    ) throws(EngineError) {
        if hasParent { for range in untouchedPages.ranges { try region.putZeros(range) } }
        let wanted = wantedPages
        let total = wanted.count
        try PageSaver(self, into: region).save(wanted, workers: workers) { progress($0, total) }
        if let failure { throw failure }
    }
}

func * (a: PageCount, b: PageCount) -> PageCount { PageCount(a.rawValue * b.rawValue) }
