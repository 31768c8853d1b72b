// Checking everything that a store's newest generation reaches.
//
// Invariant: a damage is reported for every checkpoint that it concerns, with the pages that can't be read.

import Media
import PageCodec
import StoreFormat
import Threading
import Units

/// How thoroughly to verify.
public struct VerifyOptions: Sendable {
    /// Also decompress every run and compare every page with its hash, not only the checksum of what is stored.
    public var checksPages: Bool
    public var parallelism: Int
    /// Called by the working threads with the bytes verified so far; must be quick.
    public var progress: (@Sendable (ByteCount) -> Void)?

    public init(
        checksPages: Bool = false, parallelism: Int = WriterOptions.defaultParallelism,
        progress: (@Sendable (ByteCount) -> Void)? = nil
    ) {
        self.checksPages = checksPages
        self.parallelism = parallelism
        self.progress = progress
    }
}

/// One damaged place and whom it concerns.
public struct Damage: Sendable, CustomStringConvertible {
    /// The checkpoint that can't be read whole; nil: the catalog or the segment table.
    public var checkpoint: String?
    public var region: String?
    /// The pages that can't be read.
    public var pages: Range<PageIndex>?
    /// Where on the medium, when it has one place.
    public var offset: MediumOffset?
    /// What is wrong.
    public var reason: String

    public var description: String {
        StoreError(.corrupt, reason, offset: offset, checkpoint: checkpoint, region: region, pages: pages).description
    }
}

/// What verifying found.
public struct VerifyReport: Sendable {
    public var generation: Generation
    public var checkpointCount = 0
    /// Blocks and bytes that were read and found sound, each counted once.
    public var blocks = 0
    public var bytes = ByteCount.zero
    /// Pages of runs, and bytes of other blocks, that the segment table counts as alive though nothing reaches them: no damage, but space that
    /// deleting does not give back. Other programs may leave some. Not known (zero) where there is damage, or for a single checkpoint.
    public var lostPages = PageCount.zero
    public var lostBytes = ByteCount.zero
    /// Empty when all is well.
    public var damages: [Damage] = []
    public var isSound: Bool { damages.isEmpty }
}

extension CheckpointStore {
    /// Verifies one checkpoint, or all of them with the catalog and the segment table.
    ///
    /// Reads every stored byte once, on several threads, wherever it is shared.
    /// - Throws: `.notFound` when there is no such checkpoint, `.storeFailed`. Damage is not thrown but reported.
    public func verify(
        checkpoint name: String? = nil, options: VerifyOptions = VerifyOptions()
    ) throws(StoreError) -> VerifyReport {
        let snapshot = try snapshot()
        guard let name else { return try verify(slot: snapshot.slot, options: options) }
        let verifier = Verifier(store: self, slot: snapshot.slot, options: options)
        guard let id = try checkpointID(of: name, in: snapshot.slot), let value = try catalogValue(of: id, in: snapshot.slot) else {
            throw try notFound(snapshot, name)
        }
        try verifier.checkpoint(name, id, value)
        return verifier.report
    }

    private func notFound(_ snapshot: Snapshot, _ name: String) throws(StoreError) -> StoreError {
        do {
            _ = try snapshot.checkpoint(named: name)
            return StoreError(.corrupt, "the catalog's trees disagree", medium: medium.name, checkpoint: name)
        } catch { return error }
    }

    /// Verifies everything that `slot` reaches. Registers nothing: for use under the commit lock too.
    func verify(slot: Slot, options: VerifyOptions) throws(StoreError) -> VerifyReport {
        let verifier = Verifier(store: self, slot: slot, options: options)
        try verifier.everything()
        return verifier.report
    }
}

/// One verification. The public methods are for one thread; the leaves' work is spread over several.
final class Verifier: Sendable {
    let store: CheckpointStore
    let slot: Slot
    let options: VerifyOptions
    let state: Lock<State>
    /// Reads blocks as the generation that is verified has them.
    var blocks: BlockReader { store.blocks(in: slot) }

    struct State {
        var report: VerifyReport
        /// Index, catalog and table blocks that were found sound, each counted once.
        var blocks = Set<UInt64>()
        /// Leaves that were found sound with all their runs; a damaged one is looked at again for each checkpoint.
        var leaves: [UInt64: SoundLeaf] = [:]
        /// Runs that were found sound.
        var runs: [UInt64: SoundRun] = [:]
        /// Pages of runs that a patch leaf hides, by the run's key.
        var hidden: [UInt64: HiddenPlaces] = [:]
        /// For each used segment: its entry; empty when only one checkpoint is verified.
        var entries: [SegmentIndex: SegmentEntry] = [:]
        /// What is reachable in each segment, counted as the table's `live`.
        var live: [SegmentIndex: UInt64] = [:]
        /// For each segment a block that the table does not count as written.
        var uncounted: [SegmentIndex: BlockPointer] = [:]
    }

    struct SoundLeaf {
        var fingerprint: UInt64
        /// How many pages it lists, and the end of the last one within the span.
        var pages: UInt64
        var end: UInt64
    }

    struct SoundRun {
        var fingerprint: UInt64
        /// The places in the run that leaves list.
        var places: UInt16
    }

    struct HiddenPlaces {
        var segment: SegmentIndex
        var places: UInt16
    }

    init(store: CheckpointStore, slot: Slot, options: VerifyOptions) {
        self.store = store
        self.slot = slot
        self.options = options
        state = Lock(State(report: VerifyReport(generation: slot.generation)))
    }

    var report: VerifyReport { state.withLock { $0.report } }

    /// The slots, the segment table, the catalog both ways, every checkpoint, and whether the table fits all of it.
    func everything() throws(StoreError) {
        try slots()
        let isTableWhole = try table()
        let names = try catalog(slot.catalogByName, .byName) { (bytes) throws(StoreError) in try store.decodeCatalogID(bytes) }
        let values = try catalog(slot.catalogByID, .byID) { (bytes) throws(StoreError) in try store.decodeCatalogValue(bytes) }
        var nameOf: [CheckpointID: String] = [:]
        for (key, value) in values.entries {
            guard let id = CatalogTree.id(ofKey: key) else { preconditionFailure("decoding checks the keys of the catalog") }
            nameOf[id] = ""
            try noting(checkpoint: id.description) { () throws(StoreError) in
                let record = try blocks.readRecord(value, id: id)
                nameOf[id] = record.name
                try checkpoint(record, value)
            }
        }
        if values.isWhole, names.isWhole { try catalogAgreement(names.entries, nameOf) }
        try lineage(ids: values.isWhole ? Set(nameOf.keys) : nil, names: Set(names.entries.map { String(decoding: $0.0, as: UTF8.self) }))
        let isForwardingWhole = try forwarding()
        if isTableWhole, isForwardingWhole { try checkLive() }
    }

    /// One checkpoint with all its regions.
    func checkpoint(_ name: String, _ id: CheckpointID, _ value: CatalogValue) throws(StoreError) {
        try noting(checkpoint: name) { () throws(StoreError) in
            try checkpoint(try blocks.readRecord(value, id: id), value)
        }
    }

    private func checkpoint(_ record: CheckpointRecord, _ value: CatalogValue) throws(StoreError) {
        state.withLock { $0.report.checkpointCount += 1 }
        try noting(checkpoint: record.name) { () throws(StoreError) in
            try countReached([value.record])
            guard value.generation <= slot.baseGeneration else {
                throw disagreement("it was committed in generation \(value.generation), which is still to come")
            }
            guard record.newPages.rawValue == record.regions.reduce(0, { $0 &+ $1.newPages.rawValue }) else {
                throw disagreement("its newPages is not the sum of its regions'")
            }
        }
        for region in record.regions { try self.region(region, of: record.name) }
    }

    // MARK: catalog

    /// The entries of a catalog tree, as far as it can be read.
    private func catalog<Value>(
        _ root: BlockPointer?, _ tree: CatalogTree, _ decode: ([UInt8]) throws(StoreError) -> Value
    ) throws(StoreError) -> (entries: [([UInt8], Value)], isWhole: Bool) {
        var entries: [([UInt8], Value)] = []
        let failure = failure { () throws(StoreError) in
            try store.forEachInCatalog(root, tree: tree, visiting: { countSound([$0]) }) { (key, bytes) throws(StoreError) in
                entries.append((key, try decode(bytes)))
            }
        }
        if let failure { try note(failure, checkpoint: nil, region: nil, ranges: []) }
        return (entries, failure == nil)
    }

    /// Both trees name the same checkpoints. A name in `nameOf` is empty when the record can't be read.
    private func catalogAgreement(
        _ names: [([UInt8], CheckpointID)], _ nameOf: [CheckpointID: String]
    ) throws(StoreError) {
        for (key, id) in names where nameOf[id].map({ !$0.isEmpty && !$0.utf8.elementsEqual(key) }) ?? true {
            try noteStore("the name \(String(decoding: key, as: UTF8.self)) leads to no checkpoint of that name")
        }
        let named = Set(names.map(\.1))
        for (id, name) in nameOf.sorted(by: { $0.key < $1.key }) where !named.contains(id) {
            try noteStore("checkpoint \(id) (\(name)) is not in the catalog by name")
        }
        guard names.count == nameOf.count, UInt64(nameOf.count) == slot.checkpointCount else {
            return try noteStore(
                "\(names.count) names, \(nameOf.count) ids and a count of \(slot.checkpointCount) don't agree")
        }
    }

    func disagreement(_ reason: String) -> StoreError { StoreError(.corrupt, reason, medium: store.medium.name) }

    /// Damage of the store as a whole.
    func noteStore(_ reason: String, at offset: MediumOffset? = nil) throws(StoreError) {
        var error = disagreement(reason)
        error.offset = offset
        try note(error, checkpoint: nil, region: nil, ranges: [])
    }

    // MARK: regions

    private struct LeafTask: Sendable {
        var pointer: BlockPointer
        var span: SpanIndex
    }

    /// What the leaves of a region list, as far as they are sound.
    private struct Tally {
        var pages: UInt64 = 0
        var isWhole = true
    }

    private func region(_ region: RegionRecord, of checkpoint: String) throws(StoreError) {
        var tasks: [LeafTask] = []
        let tally = Lock(Tally())
        if let root = region.root {
            try collect(root, region, level: region.depth, first: SpanIndex(UInt64(0)), checkpoint, &tasks, tally)
        }
        let queue = Lock(tasks[...])
        try inParallel(workers: max(1, min(options.parallelism, tasks.count))) { (_: Int) throws(StoreError) in
            let buffer = AlignedBuffer(count: PageRunHeader.maximumLength)
            let decoder = RunDecoder(self.blocks)
            let pages = self.options.checksPages ? AlignedBuffer(count: pagesPerSpan * pageSize) : nil
            while let task = queue.withLock({ $0.popFirst() }) {
                let failure = self.failure { () throws(StoreError) in
                    try self.leaf(task, region, checkpoint, buffer, decoder, pages, tally)
                }
                guard let failure else { continue }
                tally.withLock { $0.isWhole = false }
                try self.note(
                    failure, checkpoint: checkpoint, region: region.name, ranges: [self.pages(of: region, task.span, level: 0)])
            }
        }
        let (found, isWhole) = tally.withLock { ($0.pages, $0.isWhole) }
        guard isWhole, found != region.storedPages.rawValue else { return }
        try note(
            disagreement("the region counts \(region.storedPages) stored pages, its leaves list \(found)"),
            checkpoint: checkpoint, region: region.name, ranges: [PageIndex(UInt64(0))..<PageIndex(UInt64(0)) + region.pageCount])
    }

    /// The pages of a node's range that the region has.
    private func pages(of region: RegionRecord, _ first: SpanIndex, level: UInt8) -> Range<PageIndex> {
        let low = min(first.firstPage.rawValue, region.pageCount.rawValue)
        let count = min(PageTable.spansPerNode(level: level) * UInt64(pagesPerSpan), region.pageCount.rawValue - low)
        return PageIndex(low)..<PageIndex(low + count)
    }

    /// Reads the inner nodes and lists the leaves that are not known to be sound; those that are go into the tally.
    private func collect(
        _ pointer: BlockPointer, _ region: RegionRecord, level: UInt8, first: SpanIndex, _ checkpoint: String,
        _ tasks: inout [LeafTask], _ tally: Lock<Tally>
    ) throws(StoreError) {
        if level == 0 {
            let known = state.withLock { $0.leaves[Self.key(pointer)] }
            if let known, known.fingerprint == Self.fingerprint(pointer, region.key, first),
                known.end <= region.pageCount.rawValue - first.firstPage.rawValue
            {
                tally.withLock { $0.pages += known.pages }
            } else {
                tasks.append(LeafTask(pointer: pointer, span: first))
            }
            return
        }
        var node: InnerNode?
        let failure = failure { () throws(StoreError) in
            let read = try blocks.readInner(pointer, of: region, firstPage: first.firstPage, level: level)
            try countReached([pointer])
            node = read
        }
        if let failure {
            tally.withLock { $0.isWhole = false }
            try note(failure, checkpoint: checkpoint, region: region.name, ranges: [pages(of: region, first, level: level)])
        }
        guard let node else { return }
        for (index, child) in node.children.enumerated() {
            guard let child else { continue }
            let start = SpanIndex(first.rawValue + UInt64(index) * PageTable.spansPerChild(level: level))
            try collect(child, region, level: level - 1, first: start, checkpoint, &tasks, tally)
        }
    }

    private func leaf(
        _ task: LeafTask, _ region: RegionRecord, _ checkpoint: String, _ buffer: AlignedBuffer, _ decoder: RunDecoder,
        _ pages: AlignedBuffer?, _ tally: Lock<Tally>
    ) throws(StoreError) {
        let map = try blocks.readSpan(task.pointer, of: region, span: task.span)
        try countReached([task.pointer] + (map.base.map { [$0] } ?? []))
        let blocks = try map.runs.map { pointer throws(StoreError) in try self.blocks.resolve(pointer) }
        // One look at the shared state before the runs and one after them: locks for each run cost more than hashing it.
        let prints = blocks.map { Self.fingerprint($0.pointer, region.key, task.span) }
        let known = state.withLock { state in
            zip(blocks, prints).map { block, print in
                state.runs[Self.key(block.pointer)].flatMap { $0.fingerprint == print ? $0.places : nil } ?? 0
            }
        }
        var found: [(BlockPointer, SoundRun)] = []
        var isWhole = true
        try map.forEachRun { (run, listed) throws(StoreError) in
            var places: UInt16 = 0
            listed.forEach { places |= 1 << UInt16(map.offsetOf[$0]) }
            let failure = self.failure { () throws(StoreError) in
                try self.run(map, blocks[run], listed, isKnown: places & ~known[run] == 0, region, task.span, buffer, decoder, pages)
            }
            guard let failure else {
                found.append((blocks[run].pointer, SoundRun(fingerprint: prints[run], places: places)))
                return
            }
            isWhole = false
            try note(failure, checkpoint: checkpoint, region: region.name, ranges: ranges(listed, task.span))
        }
        countSound(runs: found)
        countHidden(map)
        let listed = (0..<pagesPerSpan).filter { !map.isZero($0) }
        let sound = SoundLeaf(
            fingerprint: Self.fingerprint(task.pointer, region.key, task.span), pages: UInt64(listed.count),
            end: UInt64((listed.last ?? -1) + 1))
        if isWhole { state.withLock { $0.leaves[Self.key(task.pointer)] = sound } }
        tally.withLock { tally in
            tally.pages += sound.pages
            tally.isWhole = tally.isWhole && isWhole
        }
    }

    private func run(
        _ map: SpanMap, _ block: ResolvedBlock, _ listed: PageSet, isKnown: Bool, _ region: RegionRecord, _ span: SpanIndex,
        _ buffer: AlignedBuffer, _ decoder: RunDecoder, _ pages: AlignedBuffer?
    ) throws(StoreError) {
        if let pages {
            unsafe try decoder.place(listed, of: map, key: region.key, span: span, at: pages.base)
            try checkHashes(map, listed, pages)
            return
        }
        guard !isKnown else { return }
        let place = try store.checkSum(block.pointer)
        // Its bytes are those that the pointer was made for; are they also what the leaf takes them for?
        // A few bytes more than the list: a read that ends in zero, as lists do, costs a look at the medium's size.
        let length = min(Int(block.pointer.storedLength), PageRunHeader.payloadOffset(pageCount: pagesPerRun) + 8)
        let head = unsafe UnsafeMutableRawBufferPointer(rebasing: buffer.bytes[0..<length])
        try onMedium { () throws(MediumError) in unsafe try store.medium.read(at: place, into: head) }
        do {
            try listed.forEach { (page) throws(FormatError) in
                try PageRunHeader.checkListed(
                    unsafe UnsafeRawBufferPointer(head).bytes, regionKey: region.key, span: span, page: UInt16(page),
                    at: block.place(of: Int(map.offsetOf[page])) ?? -1)
            }
        } catch { throw store.medium.corrupt(error, at: place) }
    }

    private func checkHashes(_ map: SpanMap, _ listed: PageSet, _ pages: AlignedBuffer) throws(StoreError) {
        let seed = slot.pageHashSeed
        try listed.forEach { (page) throws(StoreError) in
            guard unsafe pageHash(UnsafeRawPointer(pages.base + page * pageSize), seed: seed) == map.hashes[page] else {
                throw disagreement("page \(page) of the span is not what its hash says")
            }
        }
    }

    // MARK: bookkeeping

    static func key(_ pointer: BlockPointer) -> UInt64 {
        pointer.segment.rawValue << 32 | UInt64(pointer.offset.rawValue)
    }

    /// Tells apart blocks that are said to be in one place, and uses of a block for several places of a tree.
    private static func fingerprint(_ pointer: BlockPointer, _ key: RegionKey, _ span: SpanIndex) -> UInt64 {
        (pointer.checksum.low ^ key.rawValue &* 0x9E37_79B9_7F4A_7C15) &+ span.rawValue &* 0xC2B2_AE3D_27D4_EB4F
    }

    /// Counts sound blocks of checkpoints, where they are now.
    private func countReached(_ pointers: [BlockPointer]) throws(StoreError) {
        countSound(try pointers.map { pointer throws(StoreError) in try blocks.resolve(pointer).pointer })
    }

    /// Counts index, catalog and table blocks that were not known to be sound, by the places where they are.
    func countSound(_ pointers: [BlockPointer]) {
        let bytes = state.withLock { state in
            for pointer in pointers where state.blocks.insert(Self.key(pointer)).inserted {
                state.count(pointer)
                state.live[pointer.segment, default: 0] += UInt64(CommitTransaction.liveUnits(Int(pointer.storedLength)))
            }
            return state.report.bytes
        }
        options.progress?(bytes)
    }

    /// Counts runs that were not known to be sound, and the places in them that were not known to be listed.
    private func countSound(runs: [(BlockPointer, SoundRun)]) {
        let bytes = state.withLock { state in
            for (pointer, run) in runs {
                let before = state.runs[Self.key(pointer)]
                if before == nil { state.count(pointer) }
                let places = (before?.places ?? 0) | run.places
                state.runs[Self.key(pointer)] = SoundRun(fingerprint: run.fingerprint, places: places)
                state.live[pointer.segment, default: 0] += UInt64(places.nonzeroBitCount - (before?.places.nonzeroBitCount ?? 0))
            }
            return state.report.bytes
        }
        options.progress?(bytes)
    }

    /// Notes the pages of a base that a patch leaf hides: they are alive, though nobody may be there to read them.
    private func countHidden(_ map: SpanMap) {
        guard !map.hidden.isEmpty else { return }
        state.withLock { state in
            for page in map.hidden {
                let run = map.runs[Int(page.run)]
                state.hidden[Self.key(run), default: HiddenPlaces(segment: run.segment, places: 0)].places |= 1 << UInt16(page.offset)
            }
        }
    }

    private func ranges(_ pages: PageSet, _ span: SpanIndex) -> [Range<PageIndex>] {
        (0..<pagesPerSpan).runs(where: pages.contains).map {
            span.firstPage + PageCount($0.lowerBound)..<span.firstPage + PageCount($0.upperBound)
        }
    }

    /// Runs `body`; what it finds damaged is added to the report for the given place.
    private func noting(
        checkpoint: String? = nil, region: String? = nil, pages: Range<PageIndex>? = nil,
        _ body: () throws(StoreError) -> Void
    ) throws(StoreError) {
        guard let failure = failure(body) else { return }
        try note(failure, checkpoint: checkpoint, region: region, ranges: pages.map { [$0] } ?? [])
    }

    func failure(_ body: () throws(StoreError) -> Void) -> StoreError? {
        do throws(StoreError) {
            try body()
            return nil
        } catch { return error }
    }

    /// Adds damage to the report; throws what is no damage but an end to verifying.
    func note(
        _ error: StoreError, checkpoint: String?, region: String?, ranges: [Range<PageIndex>]
    ) throws(StoreError) {
        guard [.corrupt, .truncated, .ioFailed].contains(error.code) else { throw error }
        let places: [Range<PageIndex>?] = ranges.isEmpty ? [nil] : ranges
        state.withLock { state in
            for pages in places {
                state.report.damages.append(
                    Damage(
                        checkpoint: error.checkpoint ?? checkpoint, region: error.region ?? region, pages: pages,
                        offset: error.offset, reason: error.reason))
            }
        }
    }
}

extension Verifier.State {
    /// Every reachable block lies in a used segment of its class, below its committed length.
    fileprivate mutating func count(_ pointer: BlockPointer) {
        report.blocks += 1
        report.bytes += ByteCount(UInt64(pointer.storedLength))
        guard !entries.isEmpty else { return }
        let end = UInt64(pointer.offset.rawValue) + UInt64(pointer.storedLength)
        if let entry = entries[pointer.segment], entry.segmentClass == SegmentClass(holding: pointer.kind),
            end <= UInt64(entry.committedLength)
        {
            return
        }
        if uncounted[pointer.segment] == nil { uncounted[pointer.segment] = pointer }
    }
}
