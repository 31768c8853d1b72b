// How the map of a region differs from that of the checkpoint before.
//
// Invariants:
// - The work is O(index that differs); no page data is read.
// - A writer has one depth, in whatever comparison it is met: sums that are taken off are those that were added.

import CheckpointStore
import StoreFormat
import Units

/// What a region is, apart from any checkpoint.
struct RegionInfoSummary {
    var name: String
    var kind: RegionKind
    var pageCount: PageCount
}

/// Compares regions of checkpoints, parents before their children. Not thread-safe.
final class RegionGatherer {
    private let comparison: IndexComparison
    /// How many ancestors each writer has, as far as it is known.
    private var depths: [CheckpointID: Int] = [:]

    init(_ snapshot: Snapshot) { comparison = IndexComparison(snapshot) }

    /// What one region differs in.
    struct Difference {
        var cells = CellChanges()
        var changedPages = 0
        /// By how much the bytes of runs that pages are in differ.
        var storedBytes = 0
        /// Bytes of runs that the checkpoint itself wrote.
        var writtenBytes = 0
        /// Bytes of index blocks that the checkpoint itself wrote.
        var indexBytes = 0
    }

    /// From now on checkpoint `id` is the one whose regions are compared.
    func begin(_ id: CheckpointID, depth: Int) { depths[id] = depth }

    /// Compares a region of checkpoint `id` with its parent's.
    func compare(
        _ region: RegionReader, since parent: RegionReader?, of id: CheckpointID, depth: Int, pagesPerCell: UInt64
    ) throws(StoreError) -> Difference {
        var difference = Difference()
        var indexBytes = 0
        try comparison.compare(region, since: parent) { writer, length in
            if writer == id { indexBytes += length.int }
        } _: { (first, older, newer) throws(StoreError) in
            add(first, older, newer, id, depth, pagesPerCell, &difference)
        }
        difference.indexBytes = indexBytes
        return difference
    }

    private func add(
        _ first: PageIndex, _ older: SpanOrigins, _ newer: SpanOrigins, _ id: CheckpointID, _ depth: Int, _ pagesPerCell: UInt64,
        _ difference: inout Difference
    ) {
        var a = SpanCosts(older, depths: depths(of: older, unknown: depth))
        var b = SpanCosts(newer, depths: depths(of: newer, unknown: depth))
        let (hashesA, hashesB) = (older.hashes, newer.hashes)
        var cell = CellChanges.Cell()
        for page in 0..<pagesPerSpan {
            let number = (first.rawValue + UInt64(page)) / pagesPerCell
            let (wasThere, isThere) = (a.hasPage(page), b.hasPage(page))
            if wasThere != isThere || (isThere && hashesA[page] != hashesB[page]) { cell.changedPages += 1 }
            if isThere {
                cell.nonZeroPages += 1
                cell.storedBytes += b.takeShare(page)
                cell.writerDepths += b.depth(page)
            }
            if wasThere {
                cell.nonZeroPages -= 1
                cell.storedBytes -= a.takeShare(page)
                cell.writerDepths -= a.depth(page)
            }
            if page == pagesPerSpan - 1 || (first.rawValue + UInt64(page) + 1) / pagesPerCell != number {
                difference.changedPages += cell.changedPages
                difference.storedBytes += cell.storedBytes
                difference.cells.add(cell, at: Int(number))
                cell = CellChanges.Cell()
            }
        }
        for (run, pages) in zip(newer.runs, b.pagesOf) where pages > 0 && run.writer == id { difference.writtenBytes += run.storedBytes.int }
    }

    /// The depths of the writers of all runs of a span. One that is not known has been deleted: whoever has its pages first counts as
    /// their writer.
    private func depths(of span: SpanOrigins, unknown: Int) -> [Int] {
        span.runs.map { run in
            if let depth = depths[run.writer] { return depth }
            depths[run.writer] = unknown
            return unknown
        }
    }
}

/// What each page of a span costs.
private struct SpanCosts {
    private let runOf: [UInt16]
    private let runs: [StoredRun]
    private let depths: [Int]
    /// How many pages use each run.
    private(set) var pagesOf: [Int]
    private var taken: [Int]

    init(_ span: SpanOrigins, depths: [Int]) {
        runOf = span.runOf
        runs = span.runs
        self.depths = depths
        pagesOf = Array(repeating: 0, count: span.runs.count)
        taken = pagesOf
        for run in runOf where run != SpanOrigins.zeroPage { pagesOf[Int(run)] += 1 }
    }

    func hasPage(_ page: Int) -> Bool { runOf[page] != SpanOrigins.zeroPage }
    func depth(_ page: Int) -> Int { depths[Int(runOf[page])] }

    /// The page's share of its run, to be asked for once, pages ascending: all shares add up to the run.
    mutating func takeShare(_ page: Int) -> Int {
        let run = Int(runOf[page])
        let (bytes, pages, index) = (runs[run].storedBytes.int, pagesOf[run], taken[run])
        taken[run] += 1
        return bytes * (index + 1) / pages - bytes * index / pages
    }
}
