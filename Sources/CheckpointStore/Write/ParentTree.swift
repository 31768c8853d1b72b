// Finding nodes in the page table of a parent's region.
//
// Invariant: inner nodes that were read and checked once are kept, a bounded number of them: a save that touches every span reads
// each of them once, not once a span.

import StoreFormat
import Threading
import Units

/// The page table of a parent's region. Thread-safe.
final class ParentTree: Sendable {
    let blocks: BlockReader
    let region: RegionRecord
    /// By level and first page.
    private let inner = Lock<[UInt8: [PageIndex: InnerNode]]>([:])
    /// Nodes kept of one level: about 8 KiB each; those above the leaves cover 16 GiB of region.
    private static let keptOfLevel = 64

    init(blocks: BlockReader, region: RegionRecord) {
        self.blocks = blocks
        self.region = region
    }

    /// The leaf of `span`; nil when the span is all zero or lies behind the parent's region. O(depth) reads.
    func leaf(of span: SpanIndex) throws(StoreError) -> BlockPointer? {
        guard span.rawValue < PageTable.spanCount(region.pageCount) else { return nil }
        return try node(of: span, level: 0)
    }

    /// The node of `level` (0: the leaf) that holds `span`.
    func node(of span: SpanIndex, level: UInt8) throws(StoreError) -> BlockPointer? {
        guard level <= region.depth, var pointer = region.root else { return nil }
        for upper in stride(from: region.depth, to: level, by: -1) {
            let node = try innerNode(pointer, firstPage: PageTable.firstPage(of: span, level: upper), level: upper)
            guard let child = node.children[PageTable.childIndex(span, level: upper)] else { return nil }
            pointer = child
        }
        return pointer
    }

    /// The first span from `start` on and in front of `end` that has a leaf; nil: there is none. O(depth) reads.
    func nextSpan(from start: SpanIndex, before end: SpanIndex) throws(StoreError) -> SpanIndex? {
        guard let root = region.root else { return nil }
        return try nextSpan(below: root, level: region.depth, first: SpanIndex(UInt64(0)), from: start, before: end)
    }

    private func nextSpan(
        below pointer: BlockPointer, level: UInt8, first: SpanIndex, from start: SpanIndex, before end: SpanIndex
    ) throws(StoreError) -> SpanIndex? {
        guard level > 0 else { return start <= first && first < end ? first : nil }
        let node = try innerNode(pointer, firstPage: first.firstPage, level: level)
        let width = PageTable.spansPerChild(level: level)
        for (index, child) in node.children.enumerated() {
            let low = SpanIndex(first.rawValue + UInt64(index) * width)
            guard low < end else { return nil }
            guard let child, low.rawValue + width > start.rawValue else { continue }
            if let found = try nextSpan(below: child, level: level - 1, first: low, from: start, before: end) { return found }
        }
        return nil
    }

    /// The inner node at `pointer`, which is that of `firstPage` and `level`.
    func innerNode(_ pointer: BlockPointer, firstPage: PageIndex, level: UInt8) throws(StoreError) -> InnerNode {
        if let known = inner.withLock({ $0[level]?[firstPage] }) { return known }
        let node = try blocks.readInner(pointer, of: region, firstPage: firstPage, level: level)
        inner.withLock { inner in
            if inner[level, default: [:]].count >= Self.keptOfLevel { inner[level] = [:] }
            inner[level, default: [:]][firstPage] = node
        }
        return node
    }
}
