// Saving one span: pages -> zero, unchanged or new -> runs -> a new leaf.
//
// Invariants:
// - A page's zero test, hash and compression see the same bytes: those of a private copy, unless the
//   caller declared its memory stable.
// - A leaf lists no zero page and no page behind the region's end.

import Glibc
import PageCodec
import StoreFormat
import Units

/// Pages of one span handed in for saving.
@safe struct SpanInput {
    var span: SpanIndex
    /// Page q of the span stands at `base + q * 4096`, for the pages in `given`.
    var base: UnsafeRawPointer?
    /// Pages whose bytes are given.
    var given: PageSet
    /// Pages that are zero by declaration (holes).
    var zeros: PageSet
    /// True when nobody else can change the bytes meanwhile.
    var isStable: Bool
}

/// What saving a span did.
struct SpanOutcome {
    /// The span's leaf; nil when all its pages are zero.
    var leaf: BlockPointer?
    var newPages = 0
    var storedBytes = 0
    /// Pages that are not zero, after and before.
    var storedPages = 0
    var storedPagesBefore = 0
}

/// The private memory and the data segment of one thread at work on a writer. Confined to one thread at a time.
final class Lane {
    let data: SegmentAppender
    var compressor = RunCompressor()
    /// A private copy of a span's pages, at their places.
    let copy = AlignedBuffer(count: pagesPerSpan * pageSize)
    /// The pages of one run, one behind the other.
    let gathered = AlignedBuffer(count: pagesPerRun * pageSize)
    /// A run whose length must be known before it gets its place.
    let scratch = AlignedBuffer(count: pagesPerRun * pageSize + 4096)

    init(data: SegmentAppender) { self.data = data }
}

struct SpanBuilder {
    let writer: CheckpointWriter
    let lane: Lane
    let key: RegionKey
    /// Pages of the span that the region has; fewer than 512 only in its last span.
    let limit: Int

    /// Saves `input` over `parent`. `parentLeaf` is returned as it is when nothing has changed.
    func save(
        _ input: SpanInput, parent: SpanMap?, parentLeaf: BlockPointer?
    ) throws(StoreError) -> SpanOutcome {
        let before = parent ?? .empty
        var changed = Change(before)
        classify(input, before, &changed)
        if limit < pagesPerSpan {
            PageSet(limit..<pagesPerSpan).forEach { if !before.isZero($0) { changed.zeroed.insert($0) } }
        }
        var outcome = SpanOutcome(leaf: parentLeaf)
        outcome.storedPagesBefore = parent?.storedPages ?? 0
        outcome.storedPages = outcome.storedPagesBefore
        // A patch leaf may name pages behind the end of a region that was made shorter, if only as zeros.
        let mustRewrite = !before.patched.subtracting(PageSet(0..<limit)).isEmpty
        guard !changed.fresh.isEmpty || !changed.zeroed.isEmpty || mustRewrite else { return outcome }
        let runs = try storeRuns(input, &changed)
        outcome.newPages = changed.fresh.count
        outcome.storedBytes = runs.reduce(0) { $0 + Int($1.storedLength) }
        let map = changed.merged(before, runs: runs)
        outcome.storedPages = map.storedPages
        outcome.leaf = try storeLeaf(map, span: input.span)
        return outcome
    }

    /// What changes in a span.
    @safe private struct Change {
        var fresh = PageSet()
        var zeroed = PageSet()
        var hashes: [Hash128]
        /// Where the bytes of fresh pages are: page q at `source + q * 4096`.
        var source: UnsafeRawPointer?
        /// For fresh pages: which new run, which page of it.
        var runOf = [UInt16](repeating: 0, count: pagesPerSpan)
        var offsetOf = [UInt8](repeating: 0, count: pagesPerSpan)

        init(_ before: SpanMap) { hashes = before.hashes }

        func merged(_ before: SpanMap, runs: [BlockPointer]) -> SpanMap {
            var runIndex = before.runOf
            var offsets = before.offsetOf
            zeroed.forEach { runIndex[$0] = SpanMap.zeroPage }
            fresh.forEach { page in
                runIndex[page] = runOf[page] + UInt16(before.runs.count)
                offsets[page] = offsetOf[page]
            }
            let patched = before.patched.union(fresh).union(zeroed)
            return SpanMap(
                runs: before.runs + runs, runOf: runIndex, offsetOf: offsets, hashes: hashes, base: before.base,
                patched: patched)
        }
    }

    // MARK: classifying

    private func classify(_ input: SpanInput, _ before: SpanMap, _ change: inout Change) {
        input.zeros.forEach { if !before.isZero($0) { change.zeroed.insert($0) } }
        guard let base = unsafe input.base else { return }
        let seed = writer.pageHashSeed
        unsafe change.source = input.isStable ? base : UnsafeRawPointer(lane.copy.base)
        let isStable = input.isStable
        let hashesTheSource = writer.store.has(.hashesTheSource)
        unsafe change.hashes.withUnsafeMutableBufferPointer { hashes in
            input.given.forEach { page in
                var bytes = unsafe base + page * pageSize
                if !isStable {
                    // Copied once; from here on nothing looks at the caller's memory any more.
                    let copy = unsafe lane.copy.base + page * pageSize
                    unsafe memcpy(copy, bytes, pageSize)
                    if !hashesTheSource { unsafe bytes = UnsafeRawPointer(copy) }
                }
                if unsafe isZero(UnsafeRawBufferPointer(start: bytes, count: pageSize)) {
                    if !before.isZero(page) { change.zeroed.insert(page) }
                    return
                }
                let hash = unsafe pageHash(bytes, seed: seed)
                if !before.isZero(page), unsafe hashes[page] == hash { return }
                unsafe hashes[page] = hash
                change.fresh.insert(page)
            }
        }
    }

    // MARK: runs

    /// Cuts the fresh pages, in page order, into runs of up to 16 and stores them.
    private func storeRuns(_ input: SpanInput, _ change: inout Change) throws(StoreError) -> [BlockPointer] {
        var runs: [BlockPointer] = []
        var pages: [UInt16] = []
        pages.reserveCapacity(pagesPerRun)
        var all: [UInt16] = []
        all.reserveCapacity(pagesPerSpan)
        change.fresh.forEach { all.append(UInt16($0)) }
        var next = 0
        while next < all.count {
            pages.removeAll(keepingCapacity: true)
            pages.append(contentsOf: all[next..<min(next + pagesPerRun, all.count)])
            next += pages.count
            for (offset, page) in pages.enumerated() {
                change.runOf[Int(page)] = UInt16(runs.count)
                change.offsetOf[Int(page)] = UInt8(offset)
            }
            guard let source = unsafe change.source else { preconditionFailure("fresh pages have a source") }
            runs.append(try unsafe storeRun(pages, span: input.span, source: source))
        }
        return runs
    }

    private func storeRun(
        _ pages: [UInt16], span: SpanIndex, source: UnsafeRawPointer
    ) throws(StoreError) -> BlockPointer {
        let payload = unsafe contiguous(pages, source)
        let payloadOffset = PageRunHeader.payloadOffset(pageCount: pages.count)
        if lane.data.hasRoom(PageRunHeader.maximumLength) {
            let block = unsafe try lane.data.beginBlock(payloadOffset + payload.count)
            let length = unsafe fill(block, payload, pages, span)
            return unsafe finish(block, length, pages)
        }
        // Near the end of a segment: find the length first, so that what fits is used.
        let block = unsafe lane.scratch.bytes
        let length = unsafe fill(block, payload, pages, span)
        let target = unsafe try lane.data.beginBlock(length)
        unsafe target.copyMemory(from: UnsafeRawBufferPointer(rebasing: block[0..<length]))
        return unsafe finish(target, length, pages)
    }

    /// The pages as one piece of memory: in place when they follow each other, else gathered.
    private func contiguous(_ pages: [UInt16], _ source: UnsafeRawPointer) -> UnsafeRawBufferPointer {
        let count = pages.count * pageSize
        if Int(pages[pages.count - 1]) - Int(pages[0]) == pages.count - 1 {
            return unsafe UnsafeRawBufferPointer(start: source + Int(pages[0]) * pageSize, count: count)
        }
        for (index, page) in pages.enumerated() {
            unsafe memcpy(lane.gathered.base + index * pageSize, source + Int(page) * pageSize, pageSize)
        }
        return unsafe UnsafeRawBufferPointer(start: UnsafeRawPointer(lane.gathered.base), count: count)
    }

    /// Writes header and payload of a run into `block`. Returns the run's length.
    private func fill(
        _ block: UnsafeMutableRawBufferPointer, _ payload: UnsafeRawBufferPointer, _ pages: [UInt16], _ span: SpanIndex
    ) -> Int {
        unsafe RunEncoding.fill(block, payload, pages, key: key, span: span, &lane.compressor)
    }

    private func finish(
        _ block: UnsafeMutableRawBufferPointer, _ length: Int, _ pages: [UInt16]
    ) -> BlockPointer {
        unsafe RunEncoding.finish(block, length, pageCount: pages.count, birth: BlockBirth(writer.id), lane.data)
    }

    // MARK: leaves

    /// Most entries that a patch leaf has; past that a full leaf reads and costs less.
    static let maximumPatch = 64

    private func storeLeaf(_ map: SpanMap, span: SpanIndex) throws(StoreError) -> BlockPointer? {
        guard map.storedPages > 0 else { return nil }
        let birth = BlockBirth(writer.id)
        // Neither a patch leaf nor its base may list pages behind the region's end: one that was made shorter gets a full leaf.
        let isShortened = !map.patched.subtracting(PageSet(0..<limit)).isEmpty
        if let base = map.base, map.patched.count <= SpanBuilder.maximumPatch, !isShortened {
            return try writer.appendIndex(patch(map, base, span).encoded(birth: birth))
        }
        return try writer.appendIndex(leaf(map, span).encoded(birth: birth))
    }

    private func patch(_ map: SpanMap, _ base: BlockPointer, _ span: SpanIndex) -> PatchLeaf {
        var used = UsedRuns(map.runs)
        var entries: [PatchEntry] = []
        map.patched.forEach { page in
            let run = map.isZero(page) ? nil : used.index(map.runOf[page])
            entries.append(
                PatchEntry(
                    page: UInt16(page), run: run, pageOffset: run == nil ? 0 : map.offsetOf[page],
                    hash: run == nil ? .zero : map.hashes[page]))
        }
        return PatchLeaf(regionKey: key, span: span, base: base, runs: used.runs, entries: entries)
    }

    private func leaf(_ map: SpanMap, _ span: SpanIndex) -> Leaf {
        var used = UsedRuns(map.runs)
        var extents: [Extent] = []
        var hashes: [Hash128] = []
        for page in 0..<pagesPerSpan where !map.isZero(page) {
            let run = used.index(map.runOf[page])
            hashes.append(map.hashes[page])
            if let last = extents.last, last.runIndex == run, Int(last.firstPage) + Int(last.pageCount) == page,
                last.pageOffset + last.pageCount == map.offsetOf[page]
            {
                extents[extents.count - 1].pageCount += 1
            } else {
                extents.append(
                    Extent(firstPage: UInt16(page), pageCount: 1, pageOffset: map.offsetOf[page], runIndex: run))
            }
        }
        return Leaf(regionKey: key, span: span, runs: used.runs, extents: extents, hashes: hashes)
    }

    /// Numbers the runs that are still used, in the order of their first use.
    private struct UsedRuns {
        private let all: [BlockPointer]
        private var numbers: [UInt16: UInt16] = [:]
        private(set) var runs: [BlockPointer] = []
        init(_ all: [BlockPointer]) { self.all = all }
        mutating func index(_ run: UInt16) -> UInt16 {
            if let number = numbers[run] { return number }
            let number = UInt16(runs.count)
            numbers[run] = number
            runs.append(all[Int(run)])
            return number
        }
    }
}
