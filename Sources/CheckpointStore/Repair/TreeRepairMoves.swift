// Where moved blocks are when forwarding tables can't be read.
//
// Invariants:
// - A block is taken to be somewhere only after it was read there: birth, kind and checksum are the pointer's, or, for a run that was
//   moved without its dead pages, each page that leaves list has the hash that they name.
// - Nobody is led into a segment that the segment table, where it can be read, does not count as written there.

import PageCodec
import StoreFormat
import Threading
import Units

/// Finds blocks for a repair of the trees. Thread-safe, though one thread uses it.
final class RecoveredMoves: Sendable {
    private let store: CheckpointStore
    private let scan: TreeScan
    private let known: [ForwardingKey: ForwardingEntry]
    private let lost: LostKeys
    /// Of segments of which the table can be read: the class and the committed length; 0: free.
    private let written: [SegmentIndex: (segmentClass: SegmentClass?, length: UInt32)]
    /// Blocks of lost tables that were looked for. Nil: it is where pointers say.
    private let found = Lock<[ForwardingKey: ForwardingEntry?]>([:])

    init(_ store: CheckpointStore, _ survey: TreeSurvey, _ scan: TreeScan) {
        self.store = store
        self.scan = scan
        known = survey.moves
        lost = survey.lostKeys(.forwarding)
        written = survey.entries.mapValues { ($0.isUsed ? $0.segmentClass : nil, $0.committedLength) }
    }

    func isLost(_ pointer: BlockPointer) -> Bool { pointer.kind.isForwarded && !lost.isEmpty && lost.contains(pointer.forwardingKey.bytes) }

    /// Where `pointer` leads.
    /// - Throws: `.corrupt` when nobody knows.
    func resolve(_ pointer: BlockPointer) throws(StoreError) -> ResolvedBlock {
        let key = pointer.forwardingKey
        if let entry = known[key] { return try resolved(pointer, entry) }
        guard isLost(pointer) else { return ResolvedBlock(pointer: pointer, kept: nil) }
        if let known = found.withLock({ $0[key] }) {
            guard let known else { return ResolvedBlock(pointer: pointer, kept: nil) }
            return try resolved(pointer, known)
        }
        if let entry = scan.moves[key]?.entry, entry.kind == pointer.kind, isSound(entry, pointer) { return try take(entry, pointer) }
        if isThere(pointer) {
            found.withLock { $0[key] = .some(nil) }
            return ResolvedBlock(pointer: pointer, kept: nil)
        }
        for copy in scan.movedBlocks[SalvageInventory.MovedKey(birth: pointer.birth, checksum: pointer.checksum)] ?? []
        where copy.kind == pointer.kind && isThere(copy) {
            let pages = pointer.kind == .run ? try header(copy).pages.count : 1
            let kept = UInt16(truncatingIfNeeded: (1 << pages) - 1)
            return try take(ForwardingEntry(from: pointer, to: copy, kept: kept, live: kept), pointer)
        }
        throw store.misplaced(pointer, "the forwarding table that knew where it is can't be read, and it was not found again")
    }

    /// Finds a run that was moved without pages that had died, by the pages that leaves list. False when it is nowhere.
    func find(_ run: ListedRun, pageHashSeed: UInt64) throws(StoreError) -> Bool {
        if (try? resolve(run.pointer)) != nil { return true }
        let key = TreeScan.RunKey(birth: run.pointer.birth, key: run.key, span: run.span)
        for copy in scan.movedRuns[key] ?? [] where !run.isContradictory && isThere(copy) {
            guard let kept = try kept(of: run, in: copy, pageHashSeed) else { continue }
            _ = try take(ForwardingEntry(from: run.pointer, to: copy, kept: kept, live: run.places & kept), run.pointer)
            return true
        }
        return false
    }

    /// The entries of lost tables that were found again.
    var entries: [ForwardingKey: ForwardingEntry] { found.withLock { $0.compactMapValues { $0 } } }

    /// What older tables say of blocks that no walk met, as far as it still holds.
    var unmet: [ForwardingKey: ForwardingEntry] {
        let met = found.withLock { $0 }
        return scan.moves.filter { key, move in met[key] == nil && lost.contains(key.bytes) && isThere(move.entry.target) }.mapValues(\.entry)
    }

    // MARK: looking

    private func take(_ entry: ForwardingEntry, _ pointer: BlockPointer) throws(StoreError) -> ResolvedBlock {
        found.withLock { $0[pointer.forwardingKey] = .some(entry) }
        return try resolved(pointer, entry)
    }

    private func resolved(_ pointer: BlockPointer, _ entry: ForwardingEntry) throws(StoreError) -> ResolvedBlock {
        let isSame = entry.newStoredLength == pointer.storedLength && entry.newChecksum == pointer.checksum
        guard entry.kind == pointer.kind, pointer.kind == .run || isSame else {
            throw store.misplaced(pointer, "the forwarding tables take it for another block")
        }
        return ResolvedBlock(pointer: entry.target, kept: entry.kind == .run ? entry.kept : nil)
    }

    /// Whether the block stands there, whole, where something is written.
    private func isThere(_ place: BlockPointer) -> Bool {
        if let written = written[place.segment] {
            let end = UInt64(place.offset.rawValue) + UInt64(place.storedLength)
            guard written.segmentClass == SegmentClass(holding: place.kind), end <= UInt64(written.length) else { return false }
        }
        return (try? store.readInPlace(place)) != nil
    }

    private func isSound(_ entry: ForwardingEntry, _ pointer: BlockPointer) -> Bool {
        guard isThere(entry.target) else { return false }
        guard pointer.kind == .run else { return entry.newStoredLength == pointer.storedLength && entry.newChecksum == pointer.checksum }
        return (try? header(entry.target))?.pages.count == entry.kept.nonzeroBitCount
    }

    private func header(_ run: BlockPointer) throws(StoreError) -> PageRunHeader {
        try store.decodeInPlace(run) { bytes throws(FormatError) in try PageRunHeader.decode(bytes) }
    }

    /// Which pages of the old run a copy has; nil when it lacks one that is listed. Of pages that nobody lists the place in the old run is
    /// not known: any does that keeps the order.
    private func kept(of run: ListedRun, in copy: BlockPointer, _ seed: UInt64) throws(StoreError) -> UInt16? {
        let pages = try header(copy).pages
        var placeOf: [UInt16: Int] = [:]
        for (place, listed) in run.pages.enumerated() { if let listed { placeOf[listed.page] = place } }
        var (kept, next, seen): (UInt16, Int, Int) = (0, 0, 0)
        for page in pages {
            let place = placeOf[page] ?? next
            guard place >= next, place < pagesPerRun else { return nil }
            if placeOf[page] != nil { seen += 1 }
            kept |= 1 << UInt16(place)
            next = place + 1
        }
        guard seen == placeOf.count else { return nil }
        let buffer = AlignedBuffer(count: pagesPerSpan * pageSize)
        let map = Self.map(of: copy, run, kept)
        let decoder = RunDecoder(store.blocksInPlace)
        let wanted = run.pages.reduce(into: PageSet()) { if let listed = $1 { $0.insert(Int(listed.page)) } }
        guard unsafe (try? decoder.place(wanted, of: map, key: run.key, span: run.span, at: buffer.base)) != nil else { return nil }
        for case let listed? in run.pages
        where unsafe pageHash(UnsafeRawPointer(buffer.base + Int(listed.page) * pageSize), seed: seed) != listed.hash { return nil }
        return kept
    }

    private static func map(of copy: BlockPointer, _ run: ListedRun, _ kept: UInt16) -> SpanMap {
        var (runOf, offsetOf) = (SpanMap.empty.runOf, SpanMap.empty.offsetOf)
        for (place, listed) in run.pages.enumerated() {
            guard let listed else { continue }
            runOf[Int(listed.page)] = 0
            offsetOf[Int(listed.page)] = UInt8((kept & ((1 << UInt16(place)) - 1)).nonzeroBitCount)
        }
        return SpanMap(runs: [copy], runOf: runOf, offsetOf: offsetOf, hashes: SpanMap.empty.hashes, base: nil, patched: PageSet())
    }
}

extension BlockPointer {
    /// Under which the forwarding tables know the block.
    var forwardingKey: ForwardingKey { ForwardingKey(segment: segment, offset: offset, birth: birth) }
}
