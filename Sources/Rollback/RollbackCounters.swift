// The counts behind `RollbackStatistics`, and small helpers of all strategies.
//
// Invariant: counters are only for people; no strategy decides by them.

import CheckpointCore
import CheckpointStore
import MachineMemory
import Media
import Threading
import Units

/// Counts of one strategy at work. Thread-safe.
package final class RollbackCounters: Sendable {
    private let counts = Lock(RollbackStatistics())

    package init() {}

    /// The counts so far.
    package var current: RollbackStatistics { counts.withLock { $0 } }
    /// Changes them.
    package func add(_ body: (inout RollbackStatistics) -> Void) { counts.withLock { body(&$0) } }
}

extension PageRanges {
    /// Calls `body` with pieces of at most `limit` pages (at least one unit of `unit` pages), ascending.
    func forEachPiece(
        _ unit: PageCount, limit: PageCount = PageCount(UInt64(pagesPerRun)), _ body: (Range<PageIndex>) throws(EngineError) -> Void
    ) throws(EngineError) {
        let step = max(unit, limit)
        for range in ranges {
            var start = range.lowerBound
            while start < range.upperBound {
                let end = min(range.upperBound, start + step)
                try body(start..<end)
                start = end
            }
        }
    }
}

extension PageBitmap {
    /// The pages as ranges. O(words + ranges).
    var pageRanges: PageRanges {
        let all = PageIndex(UInt64(0))..<PageIndex(pageCount.rawValue)
        var result = PageRanges()
        var start = all.lowerBound
        while let first = first(in: start..<all.upperBound, isMember: true) {
            let end = self.first(in: first..<all.upperBound, isMember: false) ?? all.upperBound
            result.append(first..<end)
            start = end
        }
        return result
    }

    /// The memory that the bits of so many pages take.
    static func byteLength(of pages: PageCount) -> ByteCount { ByteCount((pages.rawValue + 63) / 64 * 8) }
}

extension GuestMemory {
    /// A piece of the memory for reading.
    func content(of pages: Range<PageIndex>) -> UnsafeRawBufferPointer { unsafe UnsafeRawBufferPointer(bytes(of: pages)) }
}

/// Runs an operation of a medium and turns its error into an engine's.
func onMedium<T>(_ body: () throws(MediumError) -> T) throws(EngineError) -> T {
    do { return try body() } catch { throw EngineError(StoreError(error)) }
}
