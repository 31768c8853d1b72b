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
        let walk = TreeComparison(store: stores.0, older: older.record, newer: record)
        try walk.run { (a, b, span) throws(StoreError) in
            try walk.compareSpan(a, b, span, body)
            progress?(SpanIndex(span.rawValue + 1).firstPage)
        }
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

/// Walks two trees side by side, and goes down where they differ.
struct TreeComparison {
    /// What is called with each span that has different leaves, or a leaf in one tree only.
    typealias SpanBody = (_ older: BlockPointer?, _ newer: BlockPointer?, SpanIndex) throws(StoreError) -> Void
    let store: CheckpointStore
    /// Nil: all that is in the newer tree differs.
    let older: RegionRecord?
    let newer: RegionRecord
    /// Called with each inner node that is in the newer tree only.
    var innerNode: ((BlockPointer) -> Void)?

    /// Compares the whole trees, spans in ascending order.
    func run(_ body: SpanBody) throws(StoreError) {
        try compare(
            TreePlace(older?.root, level: older?.depth ?? 0), TreePlace(newer.root, level: newer.depth), span: SpanIndex(UInt64(0)), body)
    }

    /// Compares what both have below nodes that start with `span`. The taller one is gone down first; nothing lies right of the other's.
    private func compare(_ a: TreePlace, _ b: TreePlace, span: SpanIndex, _ body: SpanBody) throws(StoreError) {
        guard a.pointer != nil || b.pointer != nil, a.pointer != b.pointer else { return }
        let level = max(a.pointer == nil ? 0 : a.level, b.pointer == nil ? 0 : b.level)
        guard level > 0 else { return try body(a.pointer, b.pointer, span) }
        if let pointer = b.pointer, b.level == level { innerNode?(pointer) }
        let (ofA, ofB) = (try children(a, of: older ?? newer, level, span), try children(b, of: newer, level, span))
        for index in 0..<PageTree.fanout {
            let start = SpanIndex(span.rawValue + UInt64(index) * PageTable.spansPerChild(level: level))
            try compare(ofA(index), ofB(index), span: start, body)
        }
    }

    /// The children of a node of `level`; of a lower node as if it were the first child of one.
    private func children(
        _ place: TreePlace, of region: RegionRecord, _ level: UInt8, _ span: SpanIndex
    ) throws(StoreError) -> (Int) -> TreePlace {
        guard let pointer = place.pointer else { return { _ in TreePlace(nil, level: level - 1) } }
        guard place.level == level else { return { $0 == 0 ? place : TreePlace(nil, level: level - 1) } }
        let node = try store.readInner(pointer, of: region, firstPage: span.firstPage, level: level)
        return { TreePlace(node.children[$0], level: level - 1) }
    }

    /// Reports the pages of one span that differ.
    fileprivate func compareSpan(
        _ a: BlockPointer?, _ b: BlockPointer?, _ span: SpanIndex, _ body: (Range<PageIndex>, PageDifference) throws(StoreError) -> Void
    ) throws(StoreError) {
        let mapA = try a.map { pointer throws(StoreError) in try store.readSpan(pointer, of: older ?? newer, span: span) } ?? .empty
        let mapB = try b.map { pointer throws(StoreError) in try store.readSpan(pointer, of: newer, span: span) } ?? .empty
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
