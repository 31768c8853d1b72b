// What makes one checkpoint into another: regions that come, go and change their length, and pages with their new content.
//
// Invariants:
// - The older checkpoint's view with the changes applied is the newer one's view: regions that were removed go, regions get the newer
//   one's length (what is behind it goes, what is added is zero), and then pages get their content.
// - A page that is the same in both is never reported; one that differs always is, once.
// - Memory is bounded: one span and the nodes above it at a time, whatever the size of the regions.

import Media
import StoreFormat
import Units

/// A region as two checkpoints have it.
public struct RegionChange: Sendable {
    /// The region in the older checkpoint; nil: the newer one has added it.
    public let older: RegionInfo?
    /// The region in the newer checkpoint; nil: it was removed.
    public let newer: RegionInfo?

    /// Its name.
    public var name: String { newer?.name ?? older?.name ?? "" }
    /// Whether it has another length in the newer one, or another kind.
    public var isReshaped: Bool {
        guard let older, let newer else { return false }
        return older.byteLength != newer.byteLength || older.kind != newer.kind
    }
}

/// What differs between any two checkpoints of a store; they need not be related. Thread-safe.
public struct ChangeSet: Sendable {
    let older: CheckpointReader?
    let newer: CheckpointReader
    /// The regions of both, ascending by name (bytewise).
    public let regions: [RegionChange]

    /// The changes that lead from one checkpoint to another, in either direction of time. Reads nothing yet.
    /// - Parameter older: nil: from nothing, so that everything is new. Both must be read through one store's handle.
    public init(from older: CheckpointReader?, to newer: CheckpointReader) {
        precondition(older.map { $0.snapshot.store === newer.snapshot.store } ?? true, "the checkpoints must be in one store")
        self.older = older
        self.newer = newer
        var (left, right) = (older?.info.regions[...] ?? [], newer.info.regions[...])
        var regions: [RegionChange] = []
        while !left.isEmpty || !right.isEmpty {
            let takesLeft = left.first.map { a in right.first.map { b in !Names.precedes(b.name, a.name) } ?? true } ?? false
            let takesRight = right.first.map { b in left.first.map { a in !Names.precedes(a.name, b.name) } ?? true } ?? false
            regions.append(
                RegionChange(older: takesLeft ? left.removeFirst() : nil, newer: takesRight ? right.removeFirst() : nil))
        }
        self.regions = regions
    }

    /// Reports the spans of a region that have changes, in ascending order. A region that was removed has none.
    ///
    /// Work and reads are proportional to what differs: what both checkpoints share is passed by. No page is read until it is asked for.
    /// - Parameters:
    ///   - change: one of `regions`.
    ///   - start: spans that end in front of this page are left out.
    /// - Returns: what had to be read of the indexes.
    /// - Throws: `.corrupt` where an index is damaged; what reading throws; what `body` throws.
    @discardableResult
    public func forEachSpan(
        of change: RegionChange, from start: PageIndex = PageIndex(UInt64(0)),
        _ body: (ChangedSpan) throws(StoreError) -> Void
    ) throws(StoreError) -> ComparisonCounts {
        guard let record = change.newer?.record else { return ComparisonCounts() }
        let region = RegionReader(checkpoint: newer, record: record)
        let walk = TreeComparison(
            blocksOfOlder: (older ?? newer).snapshot.blocks, blocksOfNewer: newer.snapshot.blocks, older: change.older?.record, newer: record,
            from: SpanIndex(of: start))
        do throws(StoreError) {
            try walk.run { (span, mapA, mapB) throws(StoreError) in
                let changed = try ChangedSpan(region: region, span: span, older: mapA, newer: mapB)
                if !changed.isEmpty { try body(changed) }
            }
        } catch { throw error.at(checkpoint: newer.info.name, region: change.name) }
        return walk.counts
    }

    /// Reports the pages of a region that differ, in ascending order, as ranges of one kind; pages behind an end, and of a region that is
    /// not there, count as zero. Neighbouring ranges of one kind may come in pieces.
    ///
    /// - Parameter progress: called now and then with the page up to which all has been compared.
    /// - Returns, Throws: as `forEachSpan`.
    @discardableResult
    public func forEachDifference(
        of change: RegionChange, progress: ((PageIndex) -> Void)? = nil,
        _ body: (Range<PageIndex>, PageDifference) throws(StoreError) -> Void
    ) throws(StoreError) -> ComparisonCounts {
        var older: RegionReader?
        if let checkpoint = self.older, let record = change.older?.record { older = RegionReader(checkpoint: checkpoint, record: record) }
        let newer = change.newer.map { RegionReader(checkpoint: self.newer, record: $0.record) }
        do throws(StoreError) {
            return try TreeComparison.differences(from: older, to: newer, progress: progress, body)
        } catch { throw error.at(checkpoint: self.newer.info.name, region: change.name) }
    }
}
