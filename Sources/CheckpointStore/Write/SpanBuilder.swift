// Saving one span: pages -> zero, unchanged or new -> runs -> a new leaf. Pages of runs that have become too empty are stored anew
// with them (`RepackingRules`).
//
// Invariants:
// - A page's zero test, hash and compression see the same bytes: those of a private copy, unless the
//   caller declared its memory stable.
// - A leaf lists no zero page and no page behind the region's end.
// - A page is stored anew only from bytes that were verified, and keeps its hash.

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
    /// Pages stored: those that differ, and those that were re-packed.
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
    /// For reading what is re-packed.
    private(set) lazy var decoder = RunDecoder(blocks)
    private let blocks: BlockReader

    init(blocks: BlockReader, data: SegmentAppender) {
        self.blocks = blocks
        self.data = data
    }
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
        try chooseMoved(before, input, &changed)
        try storeRuns(changed.fresh, input.span, &changed)
        // In runs of their own: what has lasted is likely to last, what has just been written is not.
        try storeRuns(changed.moved, input.span, &changed)
        outcome.newPages = changed.fresh.count + changed.moved.count
        outcome.storedBytes = changed.runs.reduce(0) { $0 + Int($1.storedLength) }
        let map = changed.merged(before)
        outcome.storedPages = map.storedPages
        outcome.leaf = try storeLeaf(map, span: input.span)
        return outcome
    }

    /// What changes in a span.
    @safe struct Change {
        var fresh = PageSet()
        var zeroed = PageSet()
        /// Pages that stay as they are and are stored anew.
        var moved = PageSet()
        var hashes: [Hash128]
        /// Where the bytes of given pages are: page q at `source + q * 4096`.
        var source: UnsafeRawPointer?
        /// Of `moved`, the pages whose bytes were not given: they are in the lane's copy.
        var readBack = PageSet()
        /// The new runs.
        var runs: [BlockPointer] = []
        /// For fresh and moved pages: which new run, which page of it.
        var runOf = [UInt16](repeating: 0, count: pagesPerSpan)
        var offsetOf = [UInt8](repeating: 0, count: pagesPerSpan)

        init(_ before: SpanMap) { hashes = before.hashes }

        func merged(_ before: SpanMap) -> SpanMap {
            var runIndex = before.runOf
            var offsets = before.offsetOf
            zeroed.forEach { runIndex[$0] = SpanMap.zeroPage }
            let stored = fresh.union(moved)
            stored.forEach { page in
                runIndex[page] = runOf[page] + UInt16(before.runs.count)
                offsets[page] = offsetOf[page]
            }
            return SpanMap(
                runs: before.runs + runs, runOf: runIndex, offsetOf: offsets, hashes: hashes, base: before.base,
                patched: before.patched.union(stored).union(zeroed))
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

    /// Cuts pages, in their order, into runs of up to 16 and stores them.
    private func storeRuns(_ pages: PageSet, _ span: SpanIndex, _ change: inout Change) throws(StoreError) {
        var all: [UInt16] = []
        all.reserveCapacity(pages.count)
        pages.forEach { all.append(UInt16($0)) }
        for start in stride(from: 0, to: all.count, by: pagesPerRun) {
            let members = all[start..<min(start + pagesPerRun, all.count)]
            for (offset, page) in members.enumerated() {
                change.runOf[Int(page)] = UInt16(change.runs.count)
                change.offsetOf[Int(page)] = UInt8(offset)
            }
            change.runs.append(try storeRun(Array(members), span: span, change))
        }
    }

    private func storeRun(_ pages: [UInt16], span: SpanIndex, _ change: Change) throws(StoreError) -> BlockPointer {
        let payload = unsafe contiguous(pages, change)
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
    private func contiguous(_ pages: [UInt16], _ change: Change) -> UnsafeRawBufferPointer {
        let count = pages.count * pageSize
        let first = unsafe bytes(of: Int(pages[0]), change)
        let last = unsafe bytes(of: Int(pages[pages.count - 1]), change)
        let isInOnePlace = pages.allSatisfy { change.readBack.contains(Int($0)) == change.readBack.contains(Int(pages[0])) }
        if isInOnePlace, unsafe last - first == count - pageSize { return unsafe UnsafeRawBufferPointer(start: first, count: count) }
        for (index, page) in pages.enumerated() {
            unsafe memcpy(lane.gathered.base + index * pageSize, bytes(of: Int(page), change), pageSize)
        }
        return unsafe UnsafeRawBufferPointer(start: UnsafeRawPointer(lane.gathered.base), count: count)
    }

    private func bytes(of page: Int, _ change: Change) -> UnsafeRawPointer {
        if change.readBack.contains(page) { return unsafe UnsafeRawPointer(lane.copy.base) + page * pageSize }
        guard let source = unsafe change.source else { preconditionFailure("pages to be stored have a source") }
        return unsafe source + page * pageSize
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
}
