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

extension RegionReader {
    /// Reports the pages in which this region differs from `older`, of the same store, in ascending order, as ranges of one kind.
    ///
    /// Regions may differ in length: pages behind an end count as zero. Neighbouring ranges of one kind may come in pieces.
    /// - Parameter progress: called now and then with the page up to which all has been compared.
    /// - Throws: `.corrupt` where an index is damaged; what reading throws; what `body` throws.
    public func forEachDifference(
        since older: RegionReader, progress: ((PageIndex) -> Void)? = nil,
        _ body: (Range<PageIndex>, PageDifference) throws(StoreError) -> Void
    ) throws(StoreError) {
        let stores = (checkpoint.snapshot.store, older.checkpoint.snapshot.store)
        precondition(stores.0 === stores.1, "the checkpoints must be in one store")
        let walk = TreeComparison(
            blocksOfOlder: older.checkpoint.snapshot.blocks, blocksOfNewer: checkpoint.snapshot.blocks, older: older.record, newer: record)
        try walk.compare(
            TreePlace(older.record.root, level: older.record.depth), TreePlace(record.root, level: record.depth),
            span: SpanIndex(UInt64(0)), progress, body)
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

/// Walks two trees side by side.
private struct TreeComparison {
    typealias Body = (Range<PageIndex>, PageDifference) throws(StoreError) -> Void
    let blocksOfOlder: BlockReader
    let blocksOfNewer: BlockReader
    let older: RegionRecord
    let newer: RegionRecord

    /// Compares what both have below nodes that start with `span`. The taller one is gone down first; nothing lies right of the other's.
    func compare(
        _ a: TreePlace, _ b: TreePlace, span: SpanIndex, _ progress: ((PageIndex) -> Void)?, _ body: Body
    ) throws(StoreError) {
        guard a.pointer != nil || b.pointer != nil, a.pointer != b.pointer else { return }
        let level = max(a.pointer == nil ? 0 : a.level, b.pointer == nil ? 0 : b.level)
        guard level > 0 else {
            try compareSpan(a.pointer, b.pointer, span, body)
            progress?(SpanIndex(span.rawValue + 1).firstPage)
            return
        }
        let (ofA, ofB) = (try children(a, of: older, blocksOfOlder, level, span), try children(b, of: newer, blocksOfNewer, level, span))
        for index in 0..<PageTree.fanout {
            let start = SpanIndex(span.rawValue + UInt64(index) * PageTable.spansPerChild(level: level))
            try compare(ofA(index), ofB(index), span: start, progress, body)
        }
    }

    /// The children of a node of `level`; of a lower node as if it were the first child of one.
    private func children(
        _ place: TreePlace, of region: RegionRecord, _ blocks: BlockReader, _ level: UInt8, _ span: SpanIndex
    ) throws(StoreError) -> (Int) -> TreePlace {
        guard let pointer = place.pointer else { return { _ in TreePlace(nil, level: level - 1) } }
        guard place.level == level else { return { $0 == 0 ? place : TreePlace(nil, level: level - 1) } }
        let node = try blocks.readInner(pointer, of: region, firstPage: span.firstPage, level: level)
        return { TreePlace(node.children[$0], level: level - 1) }
    }

    private func compareSpan(_ a: BlockPointer?, _ b: BlockPointer?, _ span: SpanIndex, _ body: Body) throws(StoreError) {
        let mapA = try a.map { pointer throws(StoreError) in try blocksOfOlder.readSpan(pointer, of: older, span: span) } ?? .empty
        let mapB = try b.map { pointer throws(StoreError) in try blocksOfNewer.readSpan(pointer, of: newer, span: span) } ?? .empty
        var run: (start: Int, kind: PageDifference)?
        for page in 0...pagesPerSpan {
            let kind = page < pagesPerSpan ? difference(mapA, mapB, page) : nil
            guard kind != run?.kind else { continue }
            if let run {
                let first = span.firstPage
                try body(first + PageCount(run.start)..<first + PageCount(page), run.kind)
            }
            run = kind.map { (page, $0) }
        }
    }

    private func difference(_ a: SpanMap, _ b: SpanMap, _ page: Int) -> PageDifference? {
        switch (a.isZero(page), b.isZero(page)) {
        case (true, true): nil
        case (false, true): .onlyInOlder
        case (true, false): .onlyInNewer
        case (false, false): a.hashes[page] == b.hashes[page] ? nil : .changed
        }
    }
}
