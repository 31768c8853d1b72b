// Pages copied in the stop.
//
// Invariant: what there is room for costs the stop nothing but the copying.

import Glibc
import Units

/// Pages copied in a stop, to be saved after it. Not thread-safe.
package final class CopiedPages {
    private var buffer: PageBuffer
    /// What can be copied without providing more memory first.
    package private(set) var room: PageCount
    package private(set) var ranges = PageRanges()
    /// Pages that are zero at the stop although they were not before.
    package var zeros = PageRanges()

    /// Room for so many pages, provided now and not in the stop.
    package init(room: PageCount) {
        self.room = room
        buffer = PageBuffer(pages: room)
    }

    package var count: PageCount { ranges.count }

    /// Provides more room, if that is more.
    package func makeRoom(_ pages: PageCount) {
        guard pages > room else { return }
        room = pages
        buffer = PageBuffer(pages: pages)
    }

    /// Copies `pages`. More than there is room for take longer: the rest is provided first.
    package func take(_ pages: PageRanges, of memory: any CopyablePages) throws(EngineError) {
        makeRoom(pages.count)
        ranges = pages
        var next = 0
        for range in pages.ranges {
            let count = (range.upperBound - range.lowerBound).int
            try unsafe memory.copy(range, into: buffer.pages(from: next, count))
            next += count
        }
    }

    package func save(to region: any RegionSink) throws(EngineError) {
        var next = 0
        for range in ranges.ranges {
            let count = (range.upperBound - range.lowerBound).int
            let bytes = unsafe UnsafeRawBufferPointer(buffer.pages(from: next, count))
            try unsafe region.save(bytes, at: range.lowerBound, isScattered: count < pagesPerRun)
            next += count
        }
    }
}
