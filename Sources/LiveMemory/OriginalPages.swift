// The pages of protected ranges as they were: private memory, filled page by page by whoever is first.
//
// Invariants:
// - Each unit (a page, or a huge page) is copied at most once, by the one that claimed it, while it is protected.
// - A unit is released to the process only when it is settled: copied, or found unreadable.

import CLiveMemory
import CheckpointCore
import Glibc
import Units

/// Room for the originals of some ranges of a block. Thread-safe by the claims.
@safe final class OriginalPages: @unchecked Sendable {
    /// Which pages: whole units.
    let covered: PageRanges
    private let block: SharedMemoryBlock
    private let pagesPerUnit: Int
    /// The number of the first unit of each covered range, and of all.
    private let firstUnits: [Int]
    private let states: UnsafeMutablePointer<UInt8>
    private let buffer: UnsafeMutableRawPointer

    private let unitBytes: Int
    private let bufferBytes: Int

    /// Takes the memory for all originals now, so that copying doesn't wait for it.
    init(_ block: SharedMemoryBlock, _ pages: PageRanges) throws(EngineError) {
        self.block = block
        pagesPerUnit = block.unit.int / pageSize
        covered = pages.wholeUnits(of: pagesPerUnit)
        var firstUnits = [0]
        for range in covered.ranges { firstUnits.append(firstUnits.last! + (range.upperBound - range.lowerBound).int / pagesPerUnit) }
        self.firstUnits = firstUnits
        unitBytes = block.unit.int
        let unitCount = firstUnits.last!
        bufferBytes = max(unitCount, 1) * unitBytes
        let memory = unsafe mmap(nil, bufferBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        guard let memory = unsafe memory, unsafe memory != MAP_FAILED else { throw Self.noMemory(bufferBytes, block) }
        unsafe buffer = memory
        unsafe states = .allocate(capacity: max(unitCount, 1))
        unsafe states.initialize(repeating: UInt8(CK_UNCLAIMED), count: unitCount)
        unsafe madvise(memory, bufferBytes, MADV_HUGEPAGE)
        if unsafe ck_populate(memory, bufferBytes, true) != 0 { throw Self.noMemory(bufferBytes, block) }
    }

    private static func noMemory(_ count: Int, _ block: SharedMemoryBlock) -> EngineError {
        EngineError(.noMemory, "can't get \(count) bytes for pages to be copied", place: block.process.place)
    }

    deinit {
        unsafe munmap(buffer, bufferBytes)
        unsafe states.deallocate()
    }

    /// The number of the unit that holds a page; nil for a page outside.
    func unit(of page: PageIndex) -> Int? {
        let index = covered.firstIndex(endingBehind: page)
        guard index < covered.ranges.count, covered.ranges[index].contains(page) else { return nil }
        return firstUnits[index] + (page - covered.ranges[index].lowerBound).int / pagesPerUnit
    }

    /// The pages of consecutive units of one covered range.
    func pages(ofUnits units: Range<Int>) -> Range<PageIndex> {
        var low = 0
        var high = covered.ranges.count
        while high - low > 1 {
            let middle = (low + high) / 2
            if firstUnits[middle] <= units.lowerBound { low = middle } else { high = middle }
        }
        let first = covered.ranges[low].lowerBound + PageCount((units.lowerBound - firstUnits[low]) * pagesPerUnit)
        return first..<first + PageCount(units.count * pagesPerUnit)
    }

    /// The numbers of all units, cut into pieces of at most `bytes` that stay within a covered range.
    func pieces(of bytes: ByteCount) -> [Range<Int>] {
        let step = max(1, bytes.int / unitBytes)
        var result: [Range<Int>] = []
        for index in covered.ranges.indices {
            for start in stride(from: firstUnits[index], to: firstUnits[index + 1], by: step) {
                result.append(start..<min(start + step, firstUnits[index + 1]))
            }
        }
        return result
    }

    /// Copies those units that nobody has claimed. Some of the others may not be settled yet afterwards.
    func keep(_ units: Range<Int>) throws(EngineError) {
        var start = units.lowerBound
        while start < units.upperBound {
            guard unsafe ck_claim(states + start) else {
                start += 1
                continue
            }
            var end = start + 1
            while end < units.upperBound, unsafe ck_claim(states + end) { end += 1 }
            defer {
                // After an error as well: the process must go on.
                for unit in start..<end { unsafe ck_settle(states + unit) }
                start = end
            }
            let memory = unsafe UnsafeMutableRawBufferPointer(start: buffer + start * unitBytes, count: (end - start) * unitBytes)
            try unsafe block.copy(pages(ofUnits: start..<end), into: memory)
        }
    }

    func isSettled(_ unit: Int) -> Bool { unsafe ck_is_settled(states + unit) }

    /// Waits until all of these are settled: those that somebody else is copying at this moment.
    func waitUntilSettled(_ units: Range<Int>) {
        for unit in units {
            while !isSettled(unit) { sched_yield() }
        }
    }

    /// The originals of settled pages of one covered range.
    func bytes(of pages: Range<PageIndex>) -> UnsafeRawBufferPointer {
        let index = covered.firstIndex(endingBehind: pages.lowerBound)
        let offset = firstUnits[index] * unitBytes + (pages.lowerBound - covered.ranges[index].lowerBound).bytes.int
        return unsafe UnsafeRawBufferPointer(start: buffer + offset, count: (pages.upperBound - pages.lowerBound).bytes.int)
    }

    /// Gives the memory of these originals back: they have been handed over.
    func forget(_ pages: Range<PageIndex>) {
        let bytes = unsafe bytes(of: pages)
        unsafe madvise(UnsafeMutableRawPointer(mutating: bytes.baseAddress!), bytes.count, MADV_DONTNEED)
    }
}
