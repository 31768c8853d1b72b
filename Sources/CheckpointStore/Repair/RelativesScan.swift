// Finding what stands around damaged blocks by reading segments from one end to the other: FORMAT.md 4.3.
//
// Invariants:
// - Nothing is found but blocks whose own checksums are right.
// - What was moved is named by the place where it was written first.

import Media
import PageCodec
import StoreFormat
import Units

/// Reads segments for `Relatives`. Confined to one thread.
struct RelativesScan {
    enum Content {
        /// Nothing but where it stands is needed.
        case place
        case inner(InnerNode)
        case leaf(Leaf)
        case patch(PatchLeaf)
        case run([RelatedRun.Page])
        /// Only how much it is.
        case countedRun(pages: Int)
    }
    struct Found {
        var pointer: BlockPointer
        var place: NodePosition
        var content: Content
    }

    private struct ContentID: Hashable {
        var birth: BlockBirth
        var checksum: Hash128
        init(_ birth: BlockBirth, _ checksum: Hash128) { (self.birth, self.checksum) = (birth, checksum) }
    }

    private let wanted: RelativesWanted
    private let store: CheckpointStore
    private let pageHashSeed: UInt64
    private let lost: [ContentID: BlockPointer]
    private let decoded = AlignedBuffer(count: pagesPerRun * pageSize)
    private(set) var found: [Found] = []
    private(set) var copies: [BlockPointer: [UInt8]] = [:]

    init(_ wanted: RelativesWanted, _ store: CheckpointStore, pageHashSeed: UInt64) {
        self.wanted = wanted
        self.store = store
        self.pageHashSeed = pageHashSeed
        lost = Dictionary(wanted.blocks.map { (ContentID($0.birth, $0.checksum), $0) }, uniquingKeysWith: { first, _ in first })
    }

    // MARK: scanning

    mutating func run(_ slot: Slot) {
        let geometry = slot.geometry
        let scan = SegmentScan(medium: store.medium, geometry: geometry)
        for number in 0..<UInt64(geometry.segmentCount) {
            let segment = SegmentIndex(number)
            // One without a header that can be read may be of any class.
            let header = SalvageLayout.header(store.medium, at: geometry.offset(of: segment))
            if let header, header.storeUUID != store.uuid || header.segmentClass == .catalog { continue }
            if header?.segmentClass == .runs, !wanted.wantsRuns { continue }
            scan.forEachBlock(in: segment, table: { _ in }) { block, bytes in note(block, bytes) }
        }
    }

    private mutating func note(_ block: FoundBlock, _ bytes: RawSpan) {
        let pointer = block.pointer
        if let missing = lost[ContentID(pointer.birth, pointer.checksum)], (try? Block.verify(bytes, pointer: missing)) != nil {
            copies[missing] = bytes.copy(0, count: Int(pointer.storedLength))
        }
        switch pointer.kind {
        case .inner:
            guard let node = try? InnerNode.decode(bytes) else { return }
            let place = NodePosition(node.regionKey, level: node.level, first: SpanIndex(of: node.firstPage))
            note(pointer, place, wanted.places.contains(place) ? .inner(node) : .place)
        case .leaf:
            guard let place = Self.placeOfLeaf(bytes) else { return }
            guard wanted.places.contains(place), let leaf = try? Leaf.decode(bytes) else { return note(pointer, place, .place) }
            note(pointer, place, .leaf(leaf))
        case .patchLeaf:
            guard let place = Self.placeOfLeaf(bytes) else { return }
            guard wanted.places.contains(place), let patch = try? PatchLeaf.decode(bytes) else { return note(pointer, place, .place) }
            note(pointer, place, .patch(patch))
        case .run:
            guard let run = try? PageRunHeader.decode(bytes) else { return }
            let place = NodePosition(run.regionKey, level: 0, first: run.span)
            if wanted.places.contains(place) {
                found.append(Found(pointer: pointer, place: place, content: .run(pages(run, bytes))))
            } else if wanted.regions.contains(run.regionKey) {
                found.append(Found(pointer: pointer, place: place, content: .countedRun(pages: run.pages.count)))
            }
        default: break
        }
    }

    private static func placeOfLeaf(_ bytes: RawSpan) -> NodePosition? {
        guard bytes.byteCount >= 48 else { return nil }
        return NodePosition(RegionKey(bytes.u64(32)), level: 0, first: SpanIndex(of: PageIndex(bytes.u64(40))))
    }

    private mutating func note(_ pointer: BlockPointer, _ place: NodePosition, _ content: Content) {
        let isWanted = wanted.places.contains(place) || (place.above.map(wanted.places.contains) ?? false)
        let isRoot = place.first.rawValue == 0 && wanted.regions.contains(place.key)
        if isWanted || isRoot { found.append(Found(pointer: pointer, place: place, content: content)) }
    }

    /// The pages of a run; none when it can't be unpacked.
    private func pages(_ run: PageRunHeader, _ bytes: RawSpan) -> [RelatedRun.Page] {
        guard unpack(run, bytes) else { return [] }
        return run.pages.enumerated().map { offset, page in
            let hash = unsafe pageHash(UnsafeRawPointer(decoded.base + offset * pageSize), seed: pageHashSeed)
            return RelatedRun.Page(offset: UInt8(offset), page: page, hash: hash)
        }
    }

    private func unpack(_ run: PageRunHeader, _ bytes: RawSpan) -> Bool {
        let whole = unsafe UnsafeMutableRawBufferPointer(rebasing: decoded.bytes[0..<run.pages.count * pageSize])
        return unsafe bytes.withUnsafeBytes { bytes in
            let payload = unsafe UnsafeRawBufferPointer(rebasing: bytes[run.payloadOffset...])
            guard run.codec == .raw else { return unsafe decompress(payload, into: whole) }
            guard payload.count == whole.count else { return false }
            unsafe whole.copyMemory(from: payload)
            return true
        }
    }

    // MARK: moved blocks

    private struct Standing: Hashable {
        var place: UInt64
        var birth: BlockBirth
    }

    /// Puts in place of where blocks stand where pointers say that they are.
    mutating func lookUpOrigins(_ slot: Slot) throws(StoreError) {
        guard slot.forwarding != nil else { return }
        var numbers: [Standing: Int] = [:]
        for (number, one) in found.enumerated() { numbers[Standing(place: one.pointer.placeNumber, birth: one.pointer.birth)] = number }
        var origins: [(number: Int, segment: SegmentIndex, entry: ForwardingEntry)] = []
        try store.forEachForwardingTable(slot.forwarding) { (_, table) throws(StoreError) in
            for entry in table.entries {
                guard let number = numbers[Standing(place: entry.target.placeNumber, birth: entry.birth)] else { continue }
                origins.append((number, table.segment, entry))
            }
        }
        for (number, segment, entry) in origins where entry.kind == found[number].pointer.kind {
            (found[number].pointer.segment, found[number].pointer.offset) = (segment, entry.offset)
            if case .run(let pages) = found[number].content { found[number].content = .run(Self.renumbered(pages, entry.kept)) }
        }
    }

    /// The pages of a run that was moved, by their numbers in the run as it was.
    private static func renumbered(_ pages: [RelatedRun.Page], _ kept: UInt16) -> [RelatedRun.Page] {
        let old = (0..<UInt8(pagesPerRun)).filter { kept >> UInt16($0) & 1 == 1 }
        guard old.count == pages.count else { return [] }
        return zip(pages, old).map { RelatedRun.Page(offset: $1, page: $0.page, hash: $0.hash) }
    }
}
