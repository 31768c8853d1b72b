// The page table of a finished region: new leaves, new inner nodes above them, the parent's subtrees elsewhere.
//
// Invariant: a subtree in which nothing changed is the parent's, by pointer.

import Glibc
import PageCodec
import StoreFormat
import Threading
import Units

struct RegionFinisher {
    let writer: CheckpointWriter
    let region: RegionState

    /// Stores what is missing of the region's tree. Returns its record.
    func finish() throws(StoreError) -> RegionRecord {
        do throws(StoreError) {
            try trimTail()
            let pages = region.pageCount
            let depth = PageTree.depth(pageCount: pages)
            let leaves = region.progress.withLock { $0.leaves }
            let spans = leaves.keys.filter { $0.rawValue < PageTable.spanCount(pages) }.sorted()
            let root = pages.rawValue == 0 ? nil : try build(level: depth, first: SpanIndex(UInt64(0)), spans[...], leaves)
            let progress = region.progress.withLock { $0 }
            guard progress.storedPages >= 0 else {
                throw StoreError(
                    .corrupt, "the parent's record counts fewer pages than its leaves have", remedy: "Run `ckstore verify`.",
                    medium: writer.store.medium.name)
            }
            return RegionRecord(
                name: region.name, kind: region.kind, depth: depth, byteLength: progress.byteLength, key: region.key,
                root: root, storedPages: PageCount(progress.storedPages), newPages: PageCount(progress.newPages))
        } catch {
            throw error.at(checkpoint: writer.name, region: region.name)
        }
    }

    private var spanCount: UInt64 { PageTable.spanCount(region.pageCount) }

    /// The node at `level` whose range starts at `first`, with the changed `spans` in it.
    private func build(
        level: UInt8, first: SpanIndex, _ spans: ArraySlice<SpanIndex>, _ leaves: [SpanIndex: BlockPointer?]
    ) throws(StoreError) -> BlockPointer? {
        let inherited = try inheritedNode(level: level, first: first)
        if spans.isEmpty, !mustRebuild(level: level, first: first) { return inherited }
        if level == 0 { return leaves[first] ?? inherited }
        var children = [BlockPointer?](repeating: nil, count: PageTree.fanout)
        if let inherited, let tree = region.parentTree {
            children = try tree.innerNode(inherited, firstPage: first.firstPage, level: level).children
        }
        let before = children
        var rest = spans
        let below = PageTable.spansPerChild(level: level)
        for index in 0..<PageTree.fanout {
            let start = SpanIndex(first.rawValue + UInt64(index) * below)
            guard start.rawValue < spanCount else {
                children[index] = nil
                continue
            }
            let inChild = rest.prefix { $0.rawValue < start.rawValue + below }
            rest = rest.dropFirst(inChild.count)
            let isAboveParent = level > (region.parent?.depth ?? level) && start.rawValue == 0
            if inChild.isEmpty, !isAboveParent, !mustRebuild(level: level - 1, first: start) { continue }
            children[index] = try build(level: level - 1, first: start, inChild, leaves)
        }
        if children.allSatisfy({ $0 == nil }) { return nil }
        if let inherited, children == before { return inherited }
        let node = InnerNode(regionKey: region.key, firstPage: first.firstPage, level: level, children: children)
        return try writer.appendIndex(node.encoded(birth: BlockBirth(writer.id)))
    }

    /// The parent's node for that place; nil when it has none of that level there.
    private func inheritedNode(level: UInt8, first: SpanIndex) throws(StoreError) -> BlockPointer? {
        guard let tree = region.parentTree, first.rawValue < PageTable.spanCount(tree.region.pageCount) else { return nil }
        return try tree.node(of: first, level: level)
    }

    /// True where the shape of the tree differs from the parent's: above its root, and where the region
    /// ends earlier than the parent's.
    private func mustRebuild(level: UInt8, first: SpanIndex) -> Bool {
        guard level > 0, let parent = region.parent else { return false }
        if level > parent.depth { return first.rawValue == 0 && parent.root != nil }
        let end = first.rawValue + PageTable.spansPerNode(level: level)
        return spanCount < PageTable.spanCount(parent.pageCount) && first.rawValue < spanCount && end > spanCount
    }

    /// What lies behind the region's end is given up, in its last page too, so that nothing of it comes back should a descendant
    /// grow again.
    private func trimTail() throws(StoreError) {
        region.progress.withLock { $0.isGrowing = false }
        let length = region.byteLength
        let oldLength = region.parent?.byteLength ?? .zero
        if let parent = region.parent, length < oldLength {
            try dropWholeSpans(from: spanCount, to: PageTable.spanCount(parent.pageCount))
        }
        guard length.rawValue > 0 else { return }
        let last = PageIndex(PageCount(covering: length).rawValue - 1)
        let span = SpanIndex(of: last)
        let used = Int(length.rawValue % UInt64(pageSize))
        let page = AlignedBuffer(count: pageSize)
        var hasTail = false
        if used > 0, length < oldLength || region.progress.withLock({ $0.leaves[span] != nil }) {
            unsafe try readOwnPage(last, span: span, into: page.bytes)
            hasTail = unsafe !isZero(UnsafeRawBufferPointer(rebasing: page.bytes[used...]))
            page.clear(used..<pageSize)
        }
        guard length < oldLength || hasTail else { return }
        let number = Int((last - span.firstPage).rawValue)
        try writer.withLane { lane throws(StoreError) in
            let base = unsafe UnsafeRawPointer(page.base) - number * pageSize
            let input = unsafe SpanInput(
                span: span, base: base, given: hasTail ? PageSet(number..<number + 1) : PageSet(), zeros: PageSet(),
                isStable: true)
            try writer.saveSpan(region, input, lane)
        }
    }

    /// Counts what the spans behind the end had; their pointers go with the inner nodes.
    private func dropWholeSpans(from first: UInt64, to end: UInt64) throws(StoreError) {
        for number in stride(from: first, to: end, by: 1) {
            let span = SpanIndex(number)
            guard let leaf = try writer.currentLeaf(of: region, span: span) else { continue }
            let map = try writer.blocks.spanMap(
                at: leaf, bytes: try writer.indexBlock(leaf), key: region.key, span: span, writer: writer)
            region.progress.withLock { $0.storedPages -= map.storedPages }
        }
    }

    /// A page as the checkpoint has it so far.
    private func readOwnPage(
        _ page: PageIndex, span: SpanIndex, into target: UnsafeMutableRawBufferPointer
    ) throws(StoreError) {
        unsafe target.initializeMemory(as: UInt8.self, repeating: 0)
        guard let leaf = try writer.currentLeaf(of: region, span: span) else { return }
        let map = try writer.blocks.spanMap(
            at: leaf, bytes: try writer.indexBlock(leaf), key: region.key, span: span, writer: writer)
        let number = Int((page - span.firstPage).rawValue)
        guard !map.isZero(number) else { return }
        try writer.makeReadable(map.runs[Int(map.runOf[number])])
        var wanted = PageSet()
        wanted.insert(number)
        let decoder = RunDecoder(writer.blocks)
        // Page q is written at `base + q * 4096`; only page `number` is asked for.
        guard let base = target.baseAddress else { return }
        unsafe try decoder.place(wanted, of: map, key: region.key, span: span, at: base - number * pageSize)
    }
}
