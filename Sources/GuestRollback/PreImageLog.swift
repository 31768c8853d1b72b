// The old content of what was written since the last checkpoint.
//
// Invariants:
// - Each unit of memory is in the log at most once, with its content at the checkpoint: the order of replaying does not matter.
// - A unit that may be written is in the log, or the epoch has no checkpoint yet.

import Units

/// Old content of units of one memory. Not thread-safe.
struct PreImageLog {
    /// The first page of each unit, in the order of their first writes.
    private(set) var pages: [PageIndex] = []
    private var slabs: [Slab] = []
    /// Where each unit of the memory is in the log, plus one; 0: it is not.
    private var places: [UInt32]
    private let unit: ByteCount
    private let unitsPerSlab: Int

    /// Memory for some units' content, in the order of the log.
    @safe private final class Slab {
        let bytes: UnsafeMutableRawBufferPointer
        init(byteLength: ByteCount) { unsafe bytes = .allocate(byteCount: byteLength.int, alignment: pageSize) }
        deinit { unsafe bytes.deallocate() }
    }

    /// - Parameter unit: the size of the pieces that are written for the first time: whole pages.
    init(of pageCount: PageCount, unit: ByteCount) {
        self.unit = unit
        unitsPerSlab = max(1, ByteCount.kibibytes(256).int / unit.int)
        places = Array(repeating: 0, count: pageCount.bytes.int / unit.int)
    }

    /// How many pages of 4096 bytes are in it.
    var pageCount: PageCount { PageCount(pages.count * unit.int / pageSize) }

    /// Whether the unit that a page belongs to is in it.
    func contains(_ page: PageIndex) -> Bool { places[number(page)] != 0 }

    /// Adds a unit that is not in it.
    /// - Parameter page: its first page.
    mutating func append(_ page: PageIndex, _ content: UnsafeRawBufferPointer) {
        precondition(!contains(page) && content.count == unit.int, "each unit once, whole")
        if pages.count == slabs.count * unitsPerSlab { slabs.append(Slab(byteLength: ByteCount(unit.int * unitsPerSlab))) }
        unsafe storage(pages.count).copyMemory(from: content)
        pages.append(page)
        places[number(page)] = UInt32(pages.count)
    }

    /// The content of the unit that was added as number `index`. Stays where it is until `removeAll`.
    func content(_ index: Int) -> UnsafeRawBufferPointer { unsafe UnsafeRawBufferPointer(storage(index)) }

    /// The content of the unit that a page belongs to, if it is in the log.
    func content(of page: PageIndex) -> UnsafeRawBufferPointer? {
        let place = places[number(page)]
        return unsafe place == 0 ? nil : content(Int(place) - 1)
    }

    /// The pages of all units in it.
    var ranges: PageRanges { PageRanges(pages.map { $0..<$0 + PageCount(unit.int / pageSize) }) }

    /// Empties it. Its memory is kept for the next epoch, which will need about as much.
    mutating func removeAll() {
        slabs.removeSubrange(min(slabs.count, pages.count / unitsPerSlab + 1)...)
        for page in pages { places[number(page)] = 0 }
        pages.removeAll(keepingCapacity: true)
    }

    /// The number of the unit that a page belongs to.
    private func number(_ page: PageIndex) -> Int { page.int * pageSize / unit.int }

    private func storage(_ index: Int) -> UnsafeMutableRawBufferPointer {
        let start = index % unitsPerSlab * unit.int
        return unsafe UnsafeMutableRawBufferPointer(rebasing: slabs[index / unitsPerSlab].bytes[start..<start + unit.int])
    }
}
