// What stands in the store around damaged blocks of the index: what has the same place in other trees, and what they were made of.
//
// Invariants:
// - Blocks count only where their own checksums say that they are whole. Whether anything made of them is right, is for others to say.
// - Pointers are as trees name them: those of blocks that were moved lead to where they were first written.
// - Memory: what stands at the places of the damaged blocks and directly below them, in all checkpoints, living and deleted. No page.

import Media
import PageCodec
import StoreFormat
import Units

/// A place in the page table of a region.
struct NodePosition: Hashable, Sendable {
    var key: RegionKey
    /// 0: a leaf.
    var level: UInt8
    var first: SpanIndex

    init(_ key: RegionKey, level: UInt8, first: SpanIndex) {
        (self.key, self.level, self.first) = (key, level, first)
    }

    init(_ node: TreeNode) { self.init(node.regionKey, level: node.level, first: node.first) }

    /// The place of the node that has this one's as a child; nil above the highest.
    var above: NodePosition? {
        guard level < PageTree.maximumDepth else { return nil }
        return NodePosition(key, level: level + 1, first: SpanIndex(of: PageTable.firstPage(of: first, level: level + 1)))
    }
}

/// A run as far as it is left.
struct RelatedRun: Sendable {
    struct Page: Sendable {
        /// Which page of the run as it was first written.
        var offset: UInt8
        /// Its number in the span.
        var page: UInt16
        var hash: Hash128
    }
    var pointer: BlockPointer
    var pages: [Page]
}

/// What was asked for.
struct RelativesWanted {
    /// The places of damaged nodes and leaves.
    var places: Set<NodePosition> = []
    /// The damaged blocks themselves: a copy may be left somewhere.
    var blocks: Set<BlockPointer> = []
    /// Regions of damaged records: everything that may be their root.
    var regions: Set<RegionKey> = []

    var wantsRuns: Bool { places.contains { $0.level == 0 } || !regions.isEmpty }
}

/// Everything that was found.
struct Relatives {
    private(set) var inner: [NodePosition: [(pointer: BlockPointer, node: InnerNode)]] = [:]
    private(set) var leaves: [NodePosition: [(pointer: BlockPointer, leaf: Leaf)]] = [:]
    private(set) var patches: [NodePosition: [(pointer: BlockPointer, patch: PatchLeaf)]] = [:]
    private(set) var runs: [NodePosition: [RelatedRun]] = [:]
    /// What stands below wanted places, in the order in which it was written as far as that shows.
    private(set) var children: [NodePosition: [BlockPointer]] = [:]
    private var childSets: [NodePosition: Set<BlockPointer>] = [:]
    /// Copies of the damaged blocks.
    private(set) var copies: [BlockPointer: [UInt8]] = [:]
    /// What may be a region's root.
    private(set) var roots: [RegionKey: [(pointer: BlockPointer, level: UInt8)]] = [:]
    private var stored: [BlockBirth: [RegionKey: [RunOrigin: StoredRun]]] = [:]

    /// Scans the store. Reads the segments of the index, and those of runs when leaves or records are wanted.
    /// - Parameter slot: a generation that is registered.
    /// - Throws: `.corrupt` when the forwarding tables can't be read.
    init(_ wanted: RelativesWanted, in slot: Slot, _ store: CheckpointStore) throws(StoreError) {
        var scan = RelativesScan(wanted, store, pageHashSeed: slot.pageHashSeed)
        scan.run(slot)
        try scan.lookUpOrigins(slot)
        for found in scan.found { add(found, wanted) }
        copies = scan.copies
        for place in runs.keys { namePointersOfRuns(at: place) }
        children = childSets.mapValues { $0.sorted(by: Self.isBefore) }
        childSets = [:]
        for place in runs.keys { runs[place]?.sort { Self.isBefore($0.pointer, $1.pointer) } }
    }

    /// The other blocks that were written nearest to one, a bounded number: what it was made on is likely among the first.
    static func nearest(to block: BlockPointer, of others: [BlockPointer]) -> [BlockPointer] {
        func distance(_ other: BlockPointer) -> UInt64 {
            max(other.placeNumber, block.placeNumber) - min(other.placeNumber, block.placeNumber)
        }
        let order = others.filter { $0 != block }.sorted { (distance($0), $0.placeNumber) < (distance($1), $1.placeNumber) }
        return Array(order.prefix(mostRelatives))
    }

    private static let mostRelatives = 1024

    private static func isBefore(_ a: BlockPointer, _ b: BlockPointer) -> Bool { a.placeNumber < b.placeNumber }

    private mutating func add(_ found: RelativesScan.Found, _ wanted: RelativesWanted) {
        let (place, pointer) = (found.place, found.pointer)
        if place.first.rawValue == 0, wanted.regions.contains(place.key), pointer.kind != .run { roots[place.key, default: []].append((pointer, place.level)) }
        if pointer.kind != .run, let above = place.above, wanted.places.contains(above) { addChild(pointer, at: place) }
        switch found.content {
        case .place: break
        case .inner(let node):
            inner[place, default: []].append((pointer, node))
            // It may name what can't be read.
            for (index, child) in node.children.enumerated() {
                let first = SpanIndex(place.first.rawValue + UInt64(index) * PageTable.spansPerChild(level: place.level))
                if let child { addChild(child, at: NodePosition(place.key, level: place.level - 1, first: first)) }
            }
        case .leaf(let leaf): leaves[place, default: []].append((pointer, leaf))
        case .patch(let patch): patches[place, default: []].append((pointer, patch))
        case .run(let pages):
            runs[place, default: []].append(RelatedRun(pointer: pointer, pages: pages))
            count(pointer, place.key, pages.count)
        case .countedRun(let pages): count(pointer, place.key, pages)
        }
    }

    private mutating func addChild(_ child: BlockPointer, at place: NodePosition) {
        childSets[place, default: []].insert(child)
    }

    /// Of a run as it was and the run as it was moved that counts which has more pages.
    private mutating func count(_ run: BlockPointer, _ key: RegionKey, _ pages: Int) {
        let origin = RunOrigin(run)
        if let known = stored[run.birth]?[key]?[origin], known.pages >= pages { return }
        stored[run.birth, default: [:]][key, default: [:]][origin] = StoredRun(pages: pages, bytes: Int(run.storedLength))
    }

    /// A run that was moved without some of its pages is named in leaves by what it was before; these know.
    private mutating func namePointersOfRuns(at place: NodePosition) {
        var named: [RunOrigin: BlockPointer] = [:]
        for (_, leaf) in leaves[place] ?? [] { for run in leaf.runs { named[RunOrigin(run)] = run } }
        for (_, patch) in patches[place] ?? [] { for run in patch.runs { named[RunOrigin(run)] = run } }
        var merged: [RunOrigin: RelatedRun] = [:]
        for run in runs[place] ?? [] {
            let origin = RunOrigin(run.pointer)
            let pointer = named[origin] ?? run.pointer
            // Of the run as it was, and as it is now, that counts which has more pages.
            if let known = merged[origin], known.pages.count >= run.pages.count { continue }
            merged[origin] = RelatedRun(pointer: pointer, pages: run.pages)
        }
        runs[place] = Array(merged.values)
    }

    /// What `birth` stored in runs of a region that was wanted.
    func stored(by birth: BlockBirth, in key: RegionKey) -> (pages: PageCount, bytes: ByteCount) {
        let runs = stored[birth]?[key] ?? [:]
        return (PageCount(runs.values.reduce(0) { $0 + $1.pages }), ByteCount(runs.values.reduce(0) { $0 + $1.bytes }))
    }

    private struct StoredRun {
        var pages: Int
        var bytes: Int
    }

    private struct RunOrigin: Hashable {
        var place: UInt64
        var birth: BlockBirth
        init(_ pointer: BlockPointer) { (place, birth) = (pointer.placeNumber, pointer.birth) }
    }
}

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
