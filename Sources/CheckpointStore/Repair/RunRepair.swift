// Building damaged runs again from pages that are to be had elsewhere.
//
// Invariants:
// - Every page that goes into a run has the hash that the leaves name for its place.
// - A run is written over its own place only with the very bytes that its pointer was made for; with any others it goes to a new
//   place, and the old one stays as it is.

import Glibc
import Media
import PageCodec
import StoreFormat
import Units

/// Rebuilds runs into segments of its own. Confined to one thread.
final class RunRepair {
    /// What came of a run.
    enum Outcome {
        /// It can be read as it is: whatever was wrong with it is over.
        case sound
        /// It stands again where it was. Not durable before the next flush.
        case rewritten(pages: PageCount)
        case forwarded(RebuiltBlock, pages: PageCount)
        /// No more of it is to be had than it has.
        case nothing
    }

    private let store: CheckpointStore
    private let blocks: BlockReader
    private let donor: PageDonor?
    private let pageHashSeed: UInt64
    private let isDryRun: Bool
    private let output: RepairOutput
    private var compressor = RunCompressor()
    private let stored = AlignedBuffer(count: PageRunHeader.maximumLength)
    /// Page i of the run as it was first written, at i * 4096.
    private let pages = AlignedBuffer(count: pagesPerRun * pageSize)
    /// The pages that go into the new run, one behind the other.
    private let gathered = AlignedBuffer(count: pagesPerRun * pageSize)

    /// - Parameter slot: a generation that is registered; nobody moves or deletes anything meanwhile.
    init(_ store: CheckpointStore, _ slot: Slot, donor: PageDonor?, isDryRun: Bool) {
        self.store = store
        self.donor = donor
        self.isDryRun = isDryRun
        blocks = store.blocks(in: slot)
        pageHashSeed = slot.pageHashSeed
        output = RepairOutput(store, .runs)
    }

    /// As of `RepairOutput`.
    func finish() throws(StoreError) -> [SegmentUse] { try output.finish() }

    /// As of `RepairOutput`.
    func close() { output.close() }

    /// Brings back what can be had of a run.
    ///
    /// - Parameter sources: the checkpoints that a page of the region is to be sought in; nil: all.
    /// - Throws: what ends the repair; damage is an outcome.
    func repair(_ run: ListedRun, sources: (PageIndex) -> [CheckpointID]?) throws(StoreError) -> Outcome {
        let block = try blocks.resolve(run.pointer)
        let own = try ownPages(run, block)
        let wanted = run.places
        if own == wanted { return .sound }
        guard let donor, !run.isContradictory else { return .nothing }
        var have = own
        for (place, listed) in run.pages.enumerated() where own >> UInt16(place) & 1 == 0 {
            guard let listed else { continue }
            let page = run.span.firstPage + PageCount(UInt64(listed.page))
            let target = unsafe UnsafeMutableRawBufferPointer(rebasing: pages.bytes[place * pageSize..<(place + 1) * pageSize])
            if unsafe try donor.page(page, of: run.key, hash: listed.hash, from: sources(page), into: target) { have |= 1 << UInt16(place) }
        }
        let gained = PageCount(UInt64((have & ~own).nonzeroBitCount))
        guard gained > .zero else { return .nothing }
        if own == 0, have == wanted, wanted & ~(block.kept ?? .max) == 0, try rewrite(run, block) { return .rewritten(pages: gained) }
        return .forwarded(try forward(run, have), pages: gained)
    }

    // MARK: what is there

    /// The places whose pages the run still has as leaves say; they stand in `pages` then. Of a block that is damaged, nothing is used.
    private func ownPages(_ run: ListedRun, _ block: ResolvedBlock) throws(StoreError) -> UInt16 {
        do throws(StoreError) {
            let bytes = unsafe try store.readInPlace(block.pointer, into: stored.bytes)
            return unsafe ownPages(run, block, bytes)
        } catch {
            guard error.isDamage else { throw error }
            return 0
        }
    }

    private func ownPages(_ run: ListedRun, _ block: ResolvedBlock, _ bytes: UnsafeRawBufferPointer) -> UInt16 {
        guard let header = unsafe try? PageRunHeader.decode(bytes.bytes), header.regionKey == run.key, header.span == run.span else { return 0 }
        let payload = unsafe UnsafeRawBufferPointer(rebasing: bytes[header.payloadOffset...])
        let whole = unsafe UnsafeMutableRawBufferPointer(rebasing: gathered.bytes[0..<header.pages.count * pageSize])
        switch header.codec {
        case .raw: unsafe whole.copyMemory(from: payload)
        case .lz4: guard unsafe decompress(payload, into: whole) else { return 0 }
        }
        var own: UInt16 = 0
        for (place, listed) in run.pages.enumerated() {
            guard let listed, let rank = block.place(of: place), rank < header.pages.count, header.pages[rank] == listed.page,
                unsafe pageHash(UnsafeRawPointer(gathered.base + rank * pageSize), seed: pageHashSeed) == listed.hash
            else { continue }
            unsafe memcpy(pages.base + place * pageSize, gathered.base + rank * pageSize, pageSize)
            own |= 1 << UInt16(place)
        }
        return own
    }

    // MARK: writing

    /// Puts the pages of `places` one behind the other. Nil when they don't ascend in the span, as those of a run do.
    private func gather(_ run: ListedRun, _ places: UInt16) -> (list: [UInt16], content: UnsafeRawBufferPointer)? {
        var list: [UInt16] = []
        for (place, listed) in run.pages.enumerated() where places >> UInt16(place) & 1 == 1 {
            guard let listed, listed.page > (list.last.map(Int.init) ?? -1) else { return nil }
            unsafe memcpy(gathered.base + list.count * pageSize, pages.base + place * pageSize, pageSize)
            list.append(listed.page)
        }
        return unsafe (list, UnsafeRawBufferPointer(rebasing: UnsafeRawBufferPointer(gathered.bytes)[0..<list.count * pageSize]))
    }

    /// Tries to make the bytes that the block had, and writes them over it. False when they would be others, or can't be written there.
    private func rewrite(_ run: ListedRun, _ block: ResolvedBlock) throws(StoreError) -> Bool {
        guard let (list, content) = unsafe gather(run, run.places) else { return false }
        let length = unsafe RunEncoding.fill(stored.bytes, content, list, key: run.key, span: run.span, &compressor)
        guard length == Int(block.pointer.storedLength) else { return false }
        let bytes = unsafe UnsafeMutableRawBufferPointer(rebasing: stored.bytes[0..<length])
        guard unsafe Block.seal(bytes, kind: .run, birth: run.pointer.birth) == block.pointer.checksum else { return false }
        return isDryRun ? true : unsafe try store.rewrite(UnsafeRawBufferPointer(bytes), at: block.pointer)
    }

    private func forward(_ run: ListedRun, _ places: UInt16) throws(StoreError) -> RebuiltBlock {
        guard let (list, content) = unsafe gather(run, places) else {
            throw store.misplaced(run.pointer, "leaves list its pages in an order that no run has")
        }
        if isDryRun { return RebuiltBlock(pointer: run.pointer, copy: run.pointer, listed: run.places, kept: places) }
        let block = unsafe try output.appender.beginBlock(PageRunHeader.payloadOffset(pageCount: list.count) + content.count)
        let length = unsafe RunEncoding.fill(block, content, list, key: run.key, span: run.span, &compressor)
        let copy = unsafe RunEncoding.finish(block, length, pageCount: list.count, birth: run.pointer.birth, output.appender)
        return RebuiltBlock(pointer: run.pointer, copy: copy, listed: run.places, kept: places)
    }
}

extension CheckpointStore {
    /// Writes the very bytes of a block over its damaged place, and reads them back. Not durable before the next flush.
    ///
    /// The only overwriting that there is below a segment's committed length: whoever reads there meanwhile finds damage, as before,
    /// or what was committed. Some registration of this handle must keep the place from being used again.
    /// - Returns: false when the medium does not take them there.
    func rewrite(_ bytes: UnsafeRawBufferPointer, at pointer: BlockPointer) throws(StoreError) -> Bool {
        let isRight = unsafe (try? Block.verify(bytes.bytes, pointer: pointer)) != nil
        precondition(isRight || has(.derivesUnchecked), "nothing but the bytes that were committed is written over them")
        let place = try placeOf(pointer)
        do throws(StoreError) {
            let source = unsafe bytes
            try onMedium { () throws(MediumError) in unsafe try medium.write(at: place, source) }
            return try readInPlace(pointer).count == bytes.count
        } catch {
            guard error.isDamage else { throw error }
            return false
        }
    }

    /// The same for an array.
    func rewrite(_ bytes: [UInt8], at pointer: BlockPointer) throws(StoreError) -> Bool {
        var isWritten = false
        var failure: StoreError?
        unsafe bytes.withUnsafeBytes { source in
            do throws(StoreError) { isWritten = unsafe try rewrite(source, at: pointer) } catch { failure = error }
        }
        if let failure { throw failure }
        return isWritten
    }

    /// Makes durable what was written over damaged places.
    func flushRepaired() throws(StoreError) {
        do { try onMedium { () throws(MediumError) in try medium.flush() } } catch { throw fail(error) }
    }
}
