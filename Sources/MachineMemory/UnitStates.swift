// What is known of each unit of a memory under copy on write: one byte, and the place of its copy.
//
// Invariants:
// - `isDirty` is changed under its owner's lock alone. Claims are atomic and need no lock.
// - A unit that a device is about to write is dirty, and stays announced until it is protected: nothing else says so before the write.
// - A unit is settled when its original is safe (copied, or not wanted): only then may it be written.

import CLiveMemory
import Glibc
import Units

/// A unit of protection: its number within the memory.
struct UnitIndex: Quantity {
    var rawValue: UInt64
    init(_ rawValue: UInt64) { self.rawValue = rawValue }
}

/// States of all units of one memory.
@safe final class UnitStates: @unchecked Sendable {
    let count: Int
    private let pagesPerUnit: UInt64
    private let claims: UnsafeMutablePointer<UInt8>
    private let dirty: UnsafeMutablePointer<UInt8>
    private let slots: UnsafeMutablePointer<UInt32>

    /// Values of `dirty`; 0: clean. Announced units are dirty, too.
    private static let dirtyMark: UInt8 = 1
    private static let announcedMark: UInt8 = 2

    /// All units dirty: nothing is known of them yet; and settled: nobody wants them.
    init(_ memory: GuestMemory) {
        pagesPerUnit = memory.pagesPerUnit.rawValue
        count = Int(memory.pageCount.rawValue / pagesPerUnit)
        unsafe claims = .allocate(capacity: count)
        unsafe claims.initialize(repeating: UInt8(CK_SETTLED), count: count)
        unsafe dirty = .allocate(capacity: count)
        unsafe dirty.initialize(repeating: Self.dirtyMark, count: count)
        unsafe slots = .allocate(capacity: count)
        unsafe slots.initialize(repeating: 0, count: count)
    }

    deinit {
        unsafe claims.deallocate()
        unsafe dirty.deallocate()
        unsafe slots.deallocate()
    }

    func unit(of page: PageIndex) -> Int { Int(page.rawValue / pagesPerUnit) }
    func units(of pages: Range<PageIndex>) -> Range<Int> {
        unit(of: pages.lowerBound)..<Int((pages.upperBound.rawValue + pagesPerUnit - 1) / pagesPerUnit)
    }
    func pages(of units: Range<Int>) -> Range<PageIndex> {
        PageIndex(UInt64(units.lowerBound) * pagesPerUnit)..<PageIndex(UInt64(units.upperBound) * pagesPerUnit)
    }

    // MARK: Written since the last instant

    func isDirty(_ unit: Int) -> Bool { unsafe dirty[unit] != 0 }

    func setDirty(_ units: Range<Int>, _ isDirty: Bool) {
        guard isDirty else { return unsafe (dirty + units.lowerBound).update(repeating: 0, count: units.count) }
        for unit in units where unsafe dirty[unit] == 0 { unsafe dirty[unit] = Self.dirtyMark }
    }

    /// A device is about to write some units: they are dirty, also if they look untouched.
    func announce(_ units: Range<Int>) { unsafe (dirty + units.lowerBound).update(repeating: Self.announcedMark, count: units.count) }

    /// The dirty ones of some units, which are clean afterwards.
    /// - Parameter announcedOnly: answers only those that were announced.
    func takeDirty(_ range: Range<Int>, announcedOnly: Bool) -> PageRanges {
        let least = announcedOnly ? Self.announcedMark : Self.dirtyMark
        let bits = announcedOnly ? 0x0101_0101_0101_0101 &* UInt64(Self.announcedMark) : UInt64.max
        let found = ranges(range) { unsafe dirty[$0] >= least } emptyWord: { unsafe Self.word(dirty, $0) & bits == 0 }
        setDirty(range, false)
        return found
    }

    /// Dirty units as ranges of pages. O(units), eight at a time where none is.
    func dirtyPages() -> PageRanges { ranges(0..<count) { unsafe dirty[$0] != 0 } emptyWord: { unsafe Self.word(dirty, $0) == 0 } }

    // MARK: Wanted for the checkpoint under way

    /// Wants these units' originals.
    func want(_ units: Range<Int>) { unsafe (claims + units.lowerBound).update(repeating: UInt8(CK_UNCLAIMED), count: units.count) }

    /// Nobody wants any unit any more, and no copy is kept.
    func forgetAll() {
        unsafe claims.update(repeating: UInt8(CK_SETTLED), count: count)
        unsafe slots.update(repeating: 0, count: count)
    }

    /// True for the one caller that has to secure the original now, and then settles it.
    func claim(_ unit: Int) -> Bool { unsafe ck_claim(claims + unit) }
    func settle(_ unit: Int) { unsafe ck_settle(claims + unit) }
    func isUnclaimed(_ unit: Int) -> Bool { unsafe ck_is_unclaimed(claims + unit) }
    func isSettled(_ unit: Int) -> Bool { unsafe ck_is_settled(claims + unit) }

    /// Waits until somebody else has secured it.
    func waitUntilSettled(_ unit: Int) {
        var tries = 0
        while !isSettled(unit) {
            tries += 1
            // Whoever is at it may want this very processor, which a yield does not give to threads of lower priority.
            if tries % 64 == 0 { usleep(20) } else { sched_yield() }
        }
    }

    /// Where the copy of a settled unit is; nil: it was never copied aside.
    func slot(of unit: Int) -> CopySlot? {
        let slot = unsafe slots[unit]
        return slot == 0 ? nil : CopySlot(UInt64(slot - 1))
    }

    func setSlot(_ slot: CopySlot?, of unit: Int) { unsafe slots[unit] = slot.map { UInt32($0.rawValue + 1) } ?? 0 }

    // MARK: Ranges

    private static func word(_ bytes: UnsafeMutablePointer<UInt8>, _ index: Int) -> UInt64 {
        unsafe UnsafeRawPointer(bytes + index).loadUnaligned(as: UInt64.self)
    }

    private func ranges(_ range: Range<Int>, _ isIn: (Int) -> Bool, emptyWord: (Int) -> Bool) -> PageRanges {
        var result = PageRanges()
        var unit = range.lowerBound
        while unit < range.upperBound {
            if unit + 8 <= range.upperBound, emptyWord(unit) {
                unit += 8
                continue
            }
            guard isIn(unit) else {
                unit += 1
                continue
            }
            var end = unit + 1
            while end < range.upperBound, isIn(end) { end += 1 }
            result.append(pages(of: unit..<end))
            unit = end
        }
        return result
    }
}
