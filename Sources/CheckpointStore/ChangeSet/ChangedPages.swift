// What differs between two checkpoints' regions, from their indexes alone: no page is read.
//
// Invariants:
// - What both trees share by address is passed by unread; the work is O(nodes that differ).
// - Every page whose content differs is reported, once, in ascending order; a page that is equal is not.

import StoreFormat
import Units

/// How a page of a newer region differs from that of an older one.
public enum PageDifference: Sendable, Hashable, CaseIterable {
    /// Both have it, with different content.
    case changed
    /// Only the older one has it: the newer one's is zero, or behind its end.
    case onlyInOlder
    /// Only the newer one has it: the older one's is zero, or behind its end.
    case onlyInNewer
}

/// What a comparison of two page tables had to read.
public struct ComparisonCounts: Sendable, Hashable {
    /// Inner nodes of both trees.
    public var innerNodes = 0
    /// Leaves of both trees; a patch leaf and the leaf that it is over count as two.
    public var leaves = 0

    public init() {}
    /// All nodes.
    public var nodes: Int { innerNodes + leaves }
    public static func += (a: inout ComparisonCounts, b: ComparisonCounts) {
        a.innerNodes += b.innerNodes
        a.leaves += b.leaves
    }
}

extension RegionReader {
    /// Reports the pages in which this region differs from `older`, of the same store, in ascending order, as ranges of one kind.
    ///
    /// Regions may differ in length: pages behind an end count as zero. Neighbouring ranges of one kind may come in pieces.
    /// - Parameter progress: called now and then with the page up to which all has been compared.
    /// - Returns: what had to be read.
    /// - Throws: `.corrupt` where an index is damaged; what reading throws; what `body` throws.
    @discardableResult
    public func forEachDifference(
        since older: RegionReader, progress: ((PageIndex) -> Void)? = nil,
        _ body: (Range<PageIndex>, PageDifference) throws(StoreError) -> Void
    ) throws(StoreError) -> ComparisonCounts {
        try TreeComparison.differences(from: older, to: self, progress: progress, body)
    }
}

/// A node of one of the trees that are compared, or that there is none.
private struct TreePlace {
    var pointer: BlockPointer?
    var level: UInt8

    init(_ pointer: BlockPointer?, level: UInt8) {
        self.pointer = pointer
        self.level = level
    }
}

/// Walks two trees side by side. A region that is not there is one without pages. Confined to one thread.
final class TreeComparison {
    /// Gets each span that has different leaves, or a leaf in one tree only.
    typealias LeafBody = (SpanIndex, _ older: BlockPointer?, _ newer: BlockPointer?) throws(StoreError) -> Void
    /// Gets each span in which something may differ, as the older tree and as the newer one have it.
    typealias Body = (SpanIndex, _ older: SpanMap, _ newer: SpanMap) throws(StoreError) -> Void
    private let blocksOfOlder: BlockReader
    private let blocksOfNewer: BlockReader
    private let older: RegionRecord?
    private let newer: RegionRecord?
    /// Spans in front of it are passed by.
    private let start: SpanIndex
    private(set) var counts = ComparisonCounts()
    /// Called with each inner node that is in the newer tree only.
    var innerNode: ((BlockPointer) -> Void)?

    /// - Parameters:
    ///   - blocksOfOlder: reads the generation that the older region is read in, `blocksOfNewer` that of the newer.
    init(
        blocksOfOlder: BlockReader, blocksOfNewer: BlockReader, older: RegionRecord?, newer: RegionRecord?,
        from start: SpanIndex = SpanIndex(UInt64(0))
    ) {
        self.blocksOfOlder = blocksOfOlder
        self.blocksOfNewer = blocksOfNewer
        self.older = older
        self.newer = newer
        self.start = start
    }

    /// Reports page by page how `newer` differs from `older`, regions of one store; nil: a region that is not there.
    static func differences(
        from older: RegionReader?, to newer: RegionReader?, progress: ((PageIndex) -> Void)?,
        _ body: (Range<PageIndex>, PageDifference) throws(StoreError) -> Void
    ) throws(StoreError) -> ComparisonCounts {
        guard let any = (newer ?? older)?.checkpoint.snapshot else { return ComparisonCounts() }
        let snapshots = (older?.checkpoint.snapshot ?? any, newer?.checkpoint.snapshot ?? any)
        precondition(snapshots.0.store === snapshots.1.store, "the checkpoints must be in one store")
        let walk = TreeComparison(
            blocksOfOlder: snapshots.0.blocks, blocksOfNewer: snapshots.1.blocks, older: older?.record, newer: newer?.record)
        try walk.run { (span, mapA, mapB) throws(StoreError) in
            try mapB.forEachDifference(since: mapA) { (pages, kind) throws(StoreError) in
                let first = span.firstPage
                try body(first + PageCount(pages.lowerBound)..<first + PageCount(pages.upperBound), kind)
            }
            progress?(SpanIndex(span.rawValue + 1).firstPage)
        }
        return walk.counts
    }

    /// Compares the trees.
    func run(_ body: Body) throws(StoreError) {
        try runLeaves { (span, a, b) throws(StoreError) in
            try body(span, try self.map(a, of: older, blocksOfOlder, span), try self.map(b, of: newer, blocksOfNewer, span))
        }
    }

    /// Compares the trees and reads no leaf.
    func runLeaves(_ body: LeafBody) throws(StoreError) {
        try compare(
            TreePlace(older?.root, level: older?.depth ?? 0), TreePlace(newer?.root, level: newer?.depth ?? 0),
            span: SpanIndex(UInt64(0)), body)
    }

    /// Compares what both have below nodes that start with `span`. The taller one is gone down first; nothing lies right of the other's.
    private func compare(_ a: TreePlace, _ b: TreePlace, span: SpanIndex, _ body: LeafBody) throws(StoreError) {
        guard a.pointer != nil || b.pointer != nil, a.pointer != b.pointer else { return }
        let level = max(a.pointer == nil ? 0 : a.level, b.pointer == nil ? 0 : b.level)
        guard level > 0 else {
            guard span >= start else { return }
            return try body(span, a.pointer, b.pointer)
        }
        if let pointer = b.pointer, b.level == level { innerNode?(pointer) }
        let (ofA, ofB) = (try children(a, of: older, blocksOfOlder, level, span), try children(b, of: newer, blocksOfNewer, level, span))
        let width = PageTable.spansPerChild(level: level)
        for index in 0..<PageTree.fanout {
            let first = SpanIndex(span.rawValue + UInt64(index) * width)
            guard first.rawValue + width > start.rawValue else { continue }
            try compare(ofA(index), ofB(index), span: first, body)
        }
    }

    /// The children of a node of `level`; of a lower node as if it were the first child of one.
    private func children(
        _ place: TreePlace, of region: RegionRecord?, _ blocks: BlockReader, _ level: UInt8, _ span: SpanIndex
    ) throws(StoreError) -> (Int) -> TreePlace {
        guard let pointer = place.pointer, let region else { return { _ in TreePlace(nil, level: level - 1) } }
        guard place.level == level else { return { $0 == 0 ? place : TreePlace(nil, level: level - 1) } }
        let node = try blocks.readInner(pointer, of: region, firstPage: span.firstPage, level: level)
        counts.innerNodes += 1
        return { TreePlace(node.children[$0], level: level - 1) }
    }

    private func map(_ pointer: BlockPointer?, of region: RegionRecord?, _ blocks: BlockReader, _ span: SpanIndex) throws(StoreError) -> SpanMap {
        guard let pointer, let region else { return .empty }
        counts.leaves += pointer.kind == .patchLeaf ? 2 : 1
        return try blocks.readSpan(pointer, of: region, span: span)
    }
}

extension SpanMap {
    /// Reports the pages of the span in which this map differs from `older`, ascending, as ranges of one kind.
    func forEachDifference(
        since older: SpanMap, _ body: (Range<Int>, PageDifference) throws(StoreError) -> Void
    ) throws(StoreError) {
        var run: (start: Int, kind: PageDifference)?
        for page in 0...pagesPerSpan {
            let kind = page < pagesPerSpan ? difference(page, since: older) : nil
            guard kind != run?.kind else { continue }
            if let run { try body(run.start..<page, run.kind) }
            run = kind.map { (page, $0) }
        }
    }

    private func difference(_ page: Int, since older: SpanMap) -> PageDifference? {
        switch (older.isZero(page), isZero(page)) {
        case (true, true): nil
        case (false, true): .onlyInOlder
        case (true, false): .onlyInNewer
        case (false, false): older.hashes[page] == hashes[page] ? nil : .changed
        }
    }
}
