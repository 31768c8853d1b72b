// Finding nodes in the page table of a parent's region.

import StoreFormat
import Units

struct ParentTree {
    let blocks: BlockReader
    let region: RegionRecord

    /// The leaf of `span`; nil when the span is all zero or lies behind the parent's region. O(depth) reads.
    func leaf(of span: SpanIndex) throws(StoreError) -> BlockPointer? {
        guard span.rawValue < PageTable.spanCount(region.pageCount) else { return nil }
        return try node(of: span, level: 0)
    }

    /// The node of `level` (0: the leaf) that holds `span`.
    func node(of span: SpanIndex, level: UInt8) throws(StoreError) -> BlockPointer? {
        guard level <= region.depth, var pointer = region.root else { return nil }
        for upper in stride(from: region.depth, to: level, by: -1) {
            let node = try blocks.readInner(
                pointer, of: region, firstPage: PageTable.firstPage(of: span, level: upper), level: upper)
            guard let child = node.children[PageTable.childIndex(span, level: upper)] else { return nil }
            pointer = child
        }
        return pointer
    }
}
