// From stored runs to pages: copied out, verified in the private copy, decoded from there.
//
// Invariant: no byte reaches the target that was not covered by a checksum found right before.

import Glibc
import Media
import PageCodec
import StoreFormat
import Units

/// The private memory of one reading thread. Confined to one thread at a time.
final class RunDecoder {
    let blocks: BlockReader
    let stored = AlignedBuffer(count: PageRunHeader.maximumLength)
    private let decoded = AlignedBuffer(count: pagesPerRun * pageSize)

    init(_ blocks: BlockReader) { self.blocks = blocks }

    /// Puts `wanted` pages of a span where they belong: page q at `base + q * 4096`. Zero pages among them are
    /// not touched.
    func place(
        _ wanted: PageSet, of map: SpanMap, key: RegionKey, span: SpanIndex, at base: UnsafeMutableRawPointer
    ) throws(StoreError) {
        try unsafe place(wanted, of: map, key: key, span: span, at: base) { _, _, _ in false }
    }

    /// The same, but runs of which all pages are wanted are shown to `take` first, as they are stored: pages, codec and verified payload.
    /// One that it takes is not decoded.
    func place(
        _ wanted: PageSet, of map: SpanMap, key: RegionKey, span: SpanIndex, at base: UnsafeMutableRawPointer,
        orTake take: ([UInt16], RunCodec, UnsafeRawBufferPointer) -> Bool
    ) throws(StoreError) {
        try map.forEachRun(among: wanted) { (run, pages) throws(StoreError) in
            try unsafe placeRun(map, run, pages, key: key, span: span, at: base, orTake: take)
        }
    }

    /// The same for pages that are all in one run of the map.
    func placeRun(
        _ map: SpanMap, _ run: Int, _ pages: PageSet, key: RegionKey, span: SpanIndex, at base: UnsafeMutableRawPointer,
        orTake take: ([UInt16], RunCodec, UnsafeRawBufferPointer) -> Bool = { _, _, _ in false }
    ) throws(StoreError) {
        let pointer = map.runs[run]
        let (bytes, block) = unsafe try blocks.readRun(pointer, into: stored.bytes)
        let placeOf = try places(of: pages, map, block)
        let header = unsafe try checkPages(bytes, block.pointer, placeOf, pages, key: key, span: span)
        guard header.pageCount == block.kept?.nonzeroBitCount ?? header.pageCount else {
            throw corrupt(
                FormatError(.misplaced, subject: "page run", reason: "it has not the pages that its forwarding says"), block.pointer)
        }
        let payload = unsafe UnsafeRawBufferPointer(rebasing: bytes[header.payloadOffset...])
        if let list = wholeList(placeOf, pages, pageCount: header.pageCount), unsafe take(list, header.codec, payload) { return }
        if let first = wholeRun(placeOf, pages, pageCount: header.pageCount) {
            // The run's pages follow each other in the target: decode straight into it.
            let target = unsafe UnsafeMutableRawBufferPointer(start: base + first * pageSize, count: header.pageCount * pageSize)
            return try unsafe decode(payload, header.codec, into: target, total: target.count, block.pointer)
        }
        var last = 0
        pages.forEach { last = max(last, placeOf($0)) }
        let needed = unsafe UnsafeMutableRawBufferPointer(rebasing: decoded.bytes[0..<(last + 1) * pageSize])
        try unsafe decode(payload, header.codec, into: needed, total: header.pageCount * pageSize, block.pointer)
        pages.forEach { page in
            unsafe memcpy(base + page * pageSize, decoded.base + placeOf(page) * pageSize, pageSize)
        }
    }

    /// Where the wanted pages stand in the run as it is now. A page that the run has lost is damage.
    private func places(
        of pages: PageSet, _ map: SpanMap, _ block: ResolvedBlock
    ) throws(StoreError) -> (Int) -> Int {
        guard block.kept != nil else { return { Int(map.offsetOf[$0]) } }
        var isWhole = true
        pages.forEach { if block.place(of: Int(map.offsetOf[$0])) == nil { isWhole = false } }
        guard isWhole else {
            throw corrupt(
                FormatError(.misplaced, subject: "page run", reason: "it was moved without a page that a leaf lists"), block.pointer)
        }
        if blocks.store.has(.movesWithoutRanks) { return { Int(map.offsetOf[$0]) } }
        return { block.place(of: Int(map.offsetOf[$0])) ?? 0 }
    }

    /// The run must say of each wanted page that it is where the leaf says.
    private func checkPages(
        _ bytes: UnsafeRawBufferPointer, _ pointer: BlockPointer, _ placeOf: (Int) -> Int, _ pages: PageSet, key: RegionKey,
        span: SpanIndex
    ) throws(StoreError) -> (codec: RunCodec, pageCount: Int, payloadOffset: Int) {
        var header: (codec: RunCodec, pageCount: Int, payloadOffset: Int)?
        do {
            try pages.forEach { (page) throws(FormatError) in
                header = try PageRunHeader.check(
                    unsafe bytes.bytes, regionKey: key, span: span, page: UInt16(page), at: placeOf(page))
            }
        } catch { throw corrupt(error, pointer) }
        guard let header else { preconditionFailure("a run is read for at least one page") }
        return header
    }

    /// The run's pages in its order, when exactly those are wanted.
    private func wholeList(_ placeOf: (Int) -> Int, _ pages: PageSet, pageCount: Int) -> [UInt16]? {
        guard pages.count == pageCount else { return nil }
        var list: [UInt16] = []
        var isInOrder = true
        pages.forEach { page in
            if placeOf(page) != list.count { isInOrder = false }
            list.append(UInt16(page))
        }
        return isInOrder ? list : nil
    }

    /// The page of the target that the run starts with, when exactly the run's pages are wanted and stand in a row.
    private func wholeRun(_ placeOf: (Int) -> Int, _ pages: PageSet, pageCount: Int) -> Int? {
        guard pages.count == pageCount else { return nil }
        var first: Int?
        var expected = 0
        var isRow = true
        pages.forEach { page in
            if first == nil { first = page }
            if page != first! + expected || placeOf(page) != expected { isRow = false }
            expected += 1
        }
        return isRow ? first : nil
    }

    func decode(
        _ payload: UnsafeRawBufferPointer, _ codec: RunCodec, into target: UnsafeMutableRawBufferPointer, total: Int,
        _ pointer: BlockPointer
    ) throws(StoreError) {
        let isRight: Bool
        switch codec {
        case .raw:
            isRight = payload.count == total
            if isRight { unsafe target.copyMemory(from: UnsafeRawBufferPointer(rebasing: payload[0..<target.count])) }
        case .lz4:
            isRight =
                unsafe target.count == total
                ? decompress(payload, into: target) : decompressPrefix(payload, into: target, totalLength: total)
        }
        guard isRight else {
            throw corrupt(
                FormatError(.badField, subject: "page run", reason: "its payload does not decode to \(total) bytes"), pointer)
        }
    }

    /// Damage of a run that was found at `pointer`.
    private func corrupt(_ error: FormatError, _ pointer: BlockPointer) -> StoreError {
        blocks.store.medium.corrupt(error, at: blocks.store.geometry.position(of: pointer))
    }
}
