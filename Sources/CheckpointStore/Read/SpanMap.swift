// Where each page of one span is: a leaf, or a patch leaf over its base, decoded for use.

import StoreFormat
import Units

/// The pages of one span as a checkpoint has them. Immutable.
final class SpanMap: Sendable {
    static let zeroPage = UInt16.max

    /// The runs that pages are in.
    let runs: [BlockPointer]
    /// For each of the 512 pages: which of `runs`, or `zeroPage`.
    let runOf: [UInt16]
    /// For each page: which page of that run it is.
    let offsetOf: [UInt8]
    /// For each page: its hash; undefined for a zero page.
    let hashes: [Hash128]
    /// The full leaf behind this map.
    let base: BlockPointer?
    /// What the patch leaf changes, when there is one: pages that differ from the base.
    let patched: PageSet
    /// Where the base has the pages that the patch leaf changes: descendants may still read them through it.
    let hidden: [HiddenPage]

    /// A page of the base behind an entry of a patch leaf.
    struct HiddenPage: Sendable {
        /// Which of `runs`.
        var run: UInt16
        var offset: UInt8
    }

    init(
        runs: [BlockPointer], runOf: [UInt16], offsetOf: [UInt8], hashes: [Hash128], base: BlockPointer?, patched: PageSet,
        hidden: [HiddenPage] = []
    ) {
        self.runs = runs
        self.runOf = runOf
        self.offsetOf = offsetOf
        self.hashes = hashes
        self.base = base
        self.patched = patched
        self.hidden = hidden
    }

    static let empty = SpanMap(
        runs: [], runOf: Array(repeating: zeroPage, count: pagesPerSpan), offsetOf: Array(repeating: 0, count: pagesPerSpan),
        hashes: Array(repeating: .zero, count: pagesPerSpan), base: nil, patched: PageSet())

    /// The map of a full leaf that was read from `pointer`.
    convenience init(_ leaf: Leaf, at pointer: BlockPointer) {
        var runOf = SpanMap.empty.runOf
        var offsetOf = SpanMap.empty.offsetOf
        var hashes = SpanMap.empty.hashes
        // Every save of a few pages does this for every span that it touches.
        var runs = runOf.mutableSpan
        var offsets = offsetOf.mutableSpan
        var sums = hashes.mutableSpan
        let listed = leaf.hashes.span
        var next = 0
        for extent in leaf.extents {
            for index in 0..<Int(extent.pageCount) {
                let page = Int(extent.firstPage) + index
                runs[page] = extent.runIndex
                offsets[page] = extent.pageOffset + UInt8(index)
                sums[page] = listed[next]
                next += 1
            }
        }
        self.init(runs: leaf.runs, runOf: runOf, offsetOf: offsetOf, hashes: hashes, base: pointer, patched: PageSet())
    }

    /// The map of a patch leaf over the map of its base.
    convenience init(_ patch: PatchLeaf, over base: SpanMap) {
        var runOf = base.runOf
        var offsetOf = base.offsetOf
        var hashes = base.hashes
        var patched = PageSet()
        var hidden: [HiddenPage] = []
        for entry in patch.entries {
            let page = Int(entry.page)
            patched.insert(page)
            if runOf[page] != SpanMap.zeroPage { hidden.append(HiddenPage(run: runOf[page], offset: offsetOf[page])) }
            runOf[page] = entry.run.map { $0 + UInt16(base.runs.count) } ?? SpanMap.zeroPage
            offsetOf[page] = entry.pageOffset
            hashes[page] = entry.hash
        }
        self.init(
            runs: base.runs + patch.runs, runOf: runOf, offsetOf: offsetOf, hashes: hashes, base: base.base, patched: patched,
            hidden: hidden)
    }

    @inline(__always) func isZero(_ page: Int) -> Bool { runOf[page] == SpanMap.zeroPage }

    /// How many pages are not zero.
    var storedPages: Int { runOf.count { $0 != SpanMap.zeroPage } }

    /// Calls `body` for each run that pages are in, with these pages, ascending within a run.
    func forEachRun<E: Error>(
        among wanted: PageSet = .all, _ body: (_ run: Int, _ pages: PageSet) throws(E) -> Void
    ) throws(E) {
        var pagesOf = [PageSet](repeating: PageSet(), count: runs.count)
        var order: [Int] = []
        order.reserveCapacity(runs.count)
        wanted.forEach { page in
            guard !isZero(page) else { return }
            let run = Int(runOf[page])
            if pagesOf[run].isEmpty { order.append(run) }
            pagesOf[run].insert(page)
        }
        for run in order { try body(run, pagesOf[run]) }
    }
}

extension BlockReader {
    /// Reads the leaf at `pointer`, and its base when it is a patch leaf. Checks that they belong to `span` of the
    /// region, and list no page behind its end.
    func readSpan(_ pointer: BlockPointer, of region: RegionRecord, span: SpanIndex) throws(StoreError) -> SpanMap {
        let map = try spanMap(at: pointer, bytes: try readBlock(pointer), key: region.key, span: span)
        let (first, end) = (span.firstPage.rawValue, region.pageCount.rawValue)
        guard end < first + UInt64(pagesPerSpan) else { return map }
        let isBehind = (Int(end > first ? end - first : 0)..<pagesPerSpan).contains { !map.isZero($0) || map.patched.contains($0) }
        guard !isBehind else { throw misplaced(pointer, "it lists pages behind the region's end") }
        return map
    }

    /// The same for a block whose verified bytes are at hand; its base may be one that `writer` still holds.
    func spanMap(
        at pointer: BlockPointer, bytes: [UInt8], key: RegionKey, span: SpanIndex, writer: CheckpointWriter? = nil
    ) throws(StoreError) -> SpanMap {
        do {
            guard pointer.kind == .patchLeaf else {
                let leaf = unsafe try Leaf.decode(bytes.span.bytes)
                try requirePlace(leaf.regionKey == key && leaf.span == span)
                return SpanMap(leaf, at: pointer)
            }
            let patch = try decodePatch(bytes, key: key, span: span)
            let base = try writer?.indexBlock(patch.base) ?? readBlock(patch.base)
            return SpanMap(patch, over: try spanMap(at: patch.base, bytes: base, key: key, span: span))
        } catch let error as FormatError {
            throw corrupt(error, pointer)
        } catch let error as StoreError {
            throw error
        } catch {
            preconditionFailure("decoding throws format errors, reading throws store errors")
        }
    }

    /// Reads the patch leaf at `pointer` without its base.
    func readPatch(_ pointer: BlockPointer, key: RegionKey, span: SpanIndex) throws(StoreError) -> PatchLeaf {
        let bytes = try readBlock(pointer)
        do { return try decodePatch(bytes, key: key, span: span) } catch { throw corrupt(error, pointer) }
    }

    private func decodePatch(_ bytes: [UInt8], key: RegionKey, span: SpanIndex) throws(FormatError) -> PatchLeaf {
        let patch = unsafe try PatchLeaf.decode(bytes.span.bytes)
        try requirePlace(patch.regionKey == key && patch.span == span)
        return patch
    }

    private func requirePlace(_ isRight: Bool) throws(FormatError) {
        guard isRight else { throw FormatError(.misplaced, subject: "leaf", reason: "it belongs to another region or span") }
    }

    /// Reads an inner node and checks that it is the one expected, with no child behind the region's end.
    func readInner(
        _ pointer: BlockPointer, of region: RegionRecord, firstPage: PageIndex, level: UInt8
    ) throws(StoreError) -> InnerNode {
        guard pointer.kind == .inner else { throw misplaced(pointer, "an inner node of level \(level) should be here") }
        let node = try decodeBlock(pointer) { bytes throws(FormatError) in try InnerNode.decode(bytes) }
        guard node.regionKey == region.key, node.firstPage == firstPage, node.level == level else {
            throw misplaced(pointer, "it belongs to another region or range")
        }
        let last = UInt64(node.children.lastIndex { $0 != nil } ?? 0)
        guard firstPage.rawValue + last * PageTree.pagesPerChild(level: level).rawValue < region.pageCount.rawValue else {
            throw misplaced(pointer, "it has children behind the region's end")
        }
        return node
    }
}

/// Spans in a region's page table (format, 5.4).
enum PageTable {
    static func spanCount(_ pages: PageCount) -> UInt64 {
        (pages.rawValue + UInt64(pagesPerSpan) - 1) / UInt64(pagesPerSpan)
    }

    /// Spans below one child of an inner node of `level` (1: one).
    static func spansPerChild(level: UInt8) -> UInt64 {
        PageTree.pagesPerChild(level: level).rawValue / UInt64(pagesPerSpan)
    }

    /// Spans below a node of `level` (0, a leaf: one).
    static func spansPerNode(level: UInt8) -> UInt64 {
        level == 0 ? 1 : spansPerChild(level: level) * UInt64(PageTree.fanout)
    }

    static func childIndex(_ span: SpanIndex, level: UInt8) -> Int {
        PageTree.childIndex(of: span.firstPage, level: level)
    }

    /// The first page of the node of `level` that holds `span`.
    static func firstPage(of span: SpanIndex, level: UInt8) -> PageIndex {
        let covered = spansPerNode(level: level)
        return SpanIndex(span.rawValue / covered * covered).firstPage
    }
}
