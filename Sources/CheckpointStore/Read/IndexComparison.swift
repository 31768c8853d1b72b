// Where the pages of regions come from, and what a checkpoint's index has that its parent's does not: for reports, from the
// indexes alone, no page is read.
//
// Invariants:
// - What both trees share by address is passed by unread; the work is O(nodes that differ).
// - A span is handed out once, ascending, when its leaves differ; pages in it may be the same all the same.

import StoreFormat
import Units

/// A run that pages of a span are in.
public struct StoredRun: Sendable, Hashable {
    /// The checkpoint that wrote it; it may have been deleted since.
    public var writer: CheckpointID
    /// Bytes of the run in the store, with its header.
    public var storedBytes: ByteCount
}

/// Where the 512 pages of a span are, as one checkpoint's index says. Immutable.
public struct SpanOrigins: Sendable {
    let map: SpanMap
    /// What pages are in. Not all of them need be used.
    public let runs: [StoredRun]

    init(_ map: SpanMap) {
        self.map = map
        runs = map.runs.map { StoredRun(writer: CheckpointID($0.birth.rawValue), storedBytes: ByteCount(UInt64($0.storedLength))) }
    }

    static let empty = SpanOrigins(.empty)

    /// Stands in `runOf` for a page that is zero, or behind the region's end.
    public static let zeroPage = SpanMap.zeroPage
    /// For each page: the index of its run, or `zeroPage`.
    public var runOf: [UInt16] { map.runOf }
    /// For each page: the hash of its content; undefined for a zero page.
    public var hashes: [Hash128] { map.hashes }
}

/// Compares regions of the checkpoints of one snapshot. Keeps the index of the spans looked at last, since a checkpoint that was
/// the newer one is the older one in the next comparison. Not thread-safe.
public final class IndexComparison {
    private let blocks: BlockReader
    private var store: CheckpointStore { blocks.store }
    private var known: [BlockPointer: SpanOrigins] = [:]
    /// About 24 KiB each.
    private static let spansKept = 2048

    /// - Parameter snapshot: of the store whose checkpoints are compared.
    public init(_ snapshot: Snapshot) { blocks = snapshot.blocks }

    /// Hands out the spans in which `newer` has another leaf than `older`, of the same store.
    ///
    /// - Parameters:
    ///   - older: nil: there is nothing to compare with, all is new.
    ///   - block: called with the writer and the length of each index block of these spans, and of the inner nodes above them, that
    ///     `newer` names and `older` does not name there.
    ///   - body: called with the first page of the span, and where its pages are in both.
    /// - Throws: `.corrupt` where an index is damaged; what reading throws; what `body` throws.
    public func compare(
        _ newer: RegionReader, since older: RegionReader?, block: (CheckpointID, ByteCount) -> Void,
        _ body: (PageIndex, _ older: SpanOrigins, _ newer: SpanOrigins) throws(StoreError) -> Void
    ) throws(StoreError) {
        precondition(newer.checkpoint.snapshot.store === store, "the checkpoints must be in the snapshot's store")
        precondition(older == nil || older?.checkpoint.snapshot.store === store, "the checkpoints must be in the snapshot's store")
        let report: (BlockPointer) -> Void = { block(CheckpointID($0.birth.rawValue), ByteCount(UInt64($0.storedLength))) }
        try withoutActuallyEscaping(report) { report throws(StoreError) in
            let walk = TreeComparison(blocksOfOlder: blocks, blocksOfNewer: blocks, older: older?.record, newer: newer.record)
            walk.innerNode = report
            try walk.runLeaves { (span, a, b) throws(StoreError) in
                let origins = (try read(a, of: older?.record ?? newer.record, span), try read(b, of: newer.record, span))
                if let b { report(b) }
                if let base = origins.1.map.base, base != b, base != a, base != origins.0.map.base { report(base) }
                try body(span.firstPage, origins.0, origins.1)
            }
        }
    }

    private func read(_ pointer: BlockPointer?, of region: RegionRecord, _ span: SpanIndex) throws(StoreError) -> SpanOrigins {
        guard let pointer else { return .empty }
        if let found = known[pointer] { return found }
        let origins = SpanOrigins(try blocks.readSpan(pointer, of: region, span: span))
        if known.count >= Self.spansKept { known = [:] }
        known[pointer] = origins
        return origins
    }
}
