// Checking everything that a store's newest generation reaches.
//
// Invariant: a damage is reported for every checkpoint that it concerns, with the pages that can't be read.

import Media
import PageCodec
import StoreFormat
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
        guard let id = try catalogID(of: name, in: snapshot.slot), let value = try catalogValue(of: id, in: snapshot.slot) else {
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
    private let state: Lock<State>

    private struct State {
        var report: VerifyReport
        /// Blocks already found sound, with all below them; a damaged one is looked at again for each checkpoint.
        var sound = Set<UInt64>()
        /// For each used segment: its entry; empty when only one checkpoint is verified.
        var entries: [SegmentIndex: SegmentEntry] = [:]
    }

    init(store: CheckpointStore, slot: Slot, options: VerifyOptions) {
        self.store = store
        self.slot = slot
        self.options = options
        state = Lock(State(report: VerifyReport(generation: slot.generation)))
    }

    var report: VerifyReport { state.withLock { $0.report } }

    /// The segment table, the catalog both ways, every checkpoint.
    func everything() throws(StoreError) {
        try noting { () throws(StoreError) in try table() }
        var values: [(CheckpointID, CatalogValue)] = []
        try noting { () throws(StoreError) in
            try store.forEachInCatalog(slot.catalogByID, tree: .byID) { (key, bytes) throws(StoreError) in
                values.append((CheckpointID(key.reduce(UInt64(0)) { $0 << 8 | UInt64($1) }), try store.decodeCatalogValue(bytes)))
            }
        }
        try noting { () throws(StoreError) in try catalogAgreement(values.map(\.0)) }
        for (id, value) in values {
            var name = id.description
            try noting(checkpoint: name) { () throws(StoreError) in
                name = try store.readRecord(value, id: id).name
                try checkpoint(name, id, value)
            }
        }
    }

    /// One checkpoint with all its regions.
    func checkpoint(_ name: String, _ id: CheckpointID, _ value: CatalogValue) throws(StoreError) {
        state.withLock { $0.report.checkpointCount += 1 }
        try noting(checkpoint: name) { () throws(StoreError) in
            let record = try store.readRecord(value, id: id)
            try inTable(value.record)
            countSound([value.record])
            for region in record.regions { try self.region(region, of: name) }
        }
    }

    // MARK: catalog and table

    private func catalogAgreement(_ ids: [CheckpointID]) throws(StoreError) {
        var named = Set<CheckpointID>()
        try store.forEachInCatalog(slot.catalogByName, tree: .byName) { (key, bytes) throws(StoreError) in
            let id = try store.decodeCatalogID(bytes)
            let name = String(decoding: key, as: UTF8.self)
            guard named.insert(id).inserted, let value = try store.catalogValue(of: id, in: slot),
                try store.readRecord(value, id: id).name == name
            else { throw disagreement("the name \(name) leads to no checkpoint of that name") }
        }
        guard named == Set(ids), UInt64(ids.count) == slot.checkpointCount else {
            throw disagreement(
                "\(named.count) names, \(ids.count) ids and a count of \(slot.checkpointCount) don't agree")
        }
    }

    private func table() throws(StoreError) {
        var reader = TableReader(store: store, slot: slot)
        var used: UInt32 = 0
        var number: UInt64 = 0
        while number < UInt64(slot.geometry.segmentCount) {
            if let leaf = try reader.leaf(of: SegmentIndex(number)) {
                for (index, entry) in leaf.entries.enumerated() where entry.isUsed {
                    used += 1
                    let segment = SegmentIndex(number + UInt64(index))
                    guard segment.rawValue < UInt64(slot.geometry.segmentCount),
                        entry.committedLength <= slot.geometry.segmentSize
                    else { throw disagreement("the entry of segment \(segment) is beyond the store's geometry") }
                    state.withLock { $0.entries[segment] = entry }
                }
            }
            number += UInt64(TableReader.fanOut)
        }
        guard used == slot.usedSegments else {
            throw disagreement("\(used) segments are in use, but the superblock counts \(slot.usedSegments)")
        }
    }

    private func disagreement(_ reason: String) -> StoreError { StoreError(.corrupt, reason, medium: store.medium.name) }

    /// Every reachable block lies in a used segment of its class, below its committed length.
    private func inTable(_ pointer: BlockPointer) throws(StoreError) {
        let entries = state.withLock { $0.entries }
        guard !entries.isEmpty else { return }
        let entry = entries[pointer.segment]
        guard let entry, entry.segmentClass == SegmentClass(holding: pointer.kind),
            UInt64(pointer.offset.rawValue) + UInt64(pointer.storedLength) <= UInt64(entry.committedLength)
        else {
            throw store.misplaced(pointer, "the segment table does not count it as written")
        }
    }

    // MARK: regions

    private struct LeafTask: Sendable {
        var pointer: BlockPointer
        var span: SpanIndex
    }

    private func region(_ region: RegionRecord, of checkpoint: String) throws(StoreError) {
        var tasks: [LeafTask] = []
        if let root = region.root {
            try collect(root, region, level: region.depth, first: SpanIndex(UInt64(0)), checkpoint, &tasks)
        }
        let queue = Lock(tasks[...])
        try inParallel(workers: max(1, min(options.parallelism, tasks.count))) { (_: Int) throws(StoreError) in
            let buffer = AlignedBuffer(count: PageRunHeader.maximumLength)
            let decoder = RunDecoder(store: self.store)
            let pages = self.options.checksPages ? AlignedBuffer(count: pagesPerSpan * pageSize) : nil
            while let task = queue.withLock({ $0.popFirst() }) {
                let first = task.span.firstPage
                try self.noting(checkpoint: checkpoint, region: region.name, pages: first..<first + PageCount(pagesPerSpan)) {
                    () throws(StoreError) in
                    try self.leaf(task, region, checkpoint, buffer, decoder, pages)
                }
            }
        }
    }

    /// Reads the inner nodes and lists the leaves that are not known to be sound.
    private func collect(
        _ pointer: BlockPointer, _ region: RegionRecord, level: UInt8, first: SpanIndex, _ checkpoint: String,
        _ tasks: inout [LeafTask]
    ) throws(StoreError) {
        if level == 0 {
            if !isSound(pointer) { tasks.append(LeafTask(pointer: pointer, span: first)) }
            return
        }
        let spans = PageTable.spansPerNode(level: level)
        var node: InnerNode?
        let pages = first.firstPage..<first.firstPage + PageCount(spans * UInt64(pagesPerSpan))
        try noting(checkpoint: checkpoint, region: region.name, pages: pages) { () throws(StoreError) in
            let read = try store.readInner(pointer, key: region.key, firstPage: first.firstPage, level: level)
            try inTable(pointer)
            countSound([pointer])
            node = read
        }
        guard let node else { return }
        for (index, child) in node.children.enumerated() {
            guard let child else { continue }
            let start = SpanIndex(first.rawValue + UInt64(index) * PageTable.spansPerChild(level: level))
            try collect(child, region, level: level - 1, first: start, checkpoint, &tasks)
        }
    }

    private func leaf(
        _ task: LeafTask, _ region: RegionRecord, _ checkpoint: String, _ buffer: AlignedBuffer, _ decoder: RunDecoder,
        _ pages: AlignedBuffer?
    ) throws(StoreError) {
        let map = try store.readSpan(task.pointer, key: region.key, span: task.span)
        try inTable(task.pointer)
        if task.pointer.kind == .patchLeaf, let base = map.base {
            try inTable(base)
            countSound([base])
        }
        try checkEnd(map, region, task.span)
        // One look at the shared state before the runs and one after them: locks for each run cost more than hashing it.
        let known = state.withLock { state in map.runs.map { state.sound.contains(Self.key($0)) } }
        var found: [BlockPointer] = []
        var isWhole = true
        try map.forEachRun { (run, listed) throws(StoreError) in
            let failure = self.failure { () throws(StoreError) in
                try self.run(map, run, listed, isKnown: known[run], region, task.span, buffer, decoder, pages)
            }
            guard let failure else {
                if !known[run] { found.append(map.runs[run]) }
                return
            }
            isWhole = false
            try note(failure, checkpoint: checkpoint, region: region.name, ranges: ranges(listed, task.span))
        }
        countSound(found + (isWhole ? [task.pointer] : []))
    }

    private func checkEnd(_ map: SpanMap, _ region: RegionRecord, _ span: SpanIndex) throws(StoreError) {
        let end = region.pageCount.rawValue
        for page in 0..<pagesPerSpan where !map.isZero(page) && span.firstPage.rawValue + UInt64(page) >= end {
            throw disagreement("a leaf lists page \(span.firstPage.rawValue + UInt64(page)), behind the region's end")
        }
    }

    private func run(
        _ map: SpanMap, _ run: Int, _ listed: PageSet, isKnown: Bool, _ region: RegionRecord, _ span: SpanIndex,
        _ buffer: AlignedBuffer, _ decoder: RunDecoder, _ pages: AlignedBuffer?
    ) throws(StoreError) {
        let pointer = map.runs[run]
        try inTable(pointer)
        if let pages {
            unsafe try decoder.place(listed, of: map, key: region.key, span: span, at: pages.base)
            try checkHashes(map, listed, pages)
            return
        }
        guard !isKnown else { return }
        let bytes = unsafe try store.readBlock(pointer, into: buffer.bytes)
        do {
            try listed.forEach { (page) throws(FormatError) in
                _ = try PageRunHeader.check(
                    unsafe bytes.bytes, regionKey: region.key, span: span, page: UInt16(page), at: Int(map.offsetOf[page]))
            }
        } catch { throw store.medium.corrupt(error, at: try store.placeOf(pointer)) }
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

    private static func key(_ pointer: BlockPointer) -> UInt64 {
        pointer.segment.rawValue << 32 | UInt64(pointer.offset.rawValue)
    }

    private func isSound(_ pointer: BlockPointer) -> Bool { state.withLock { $0.sound.contains(Self.key(pointer)) } }

    /// Takes blocks for sound and counts those that were not known to be.
    private func countSound(_ pointers: [BlockPointer]) {
        let bytes = state.withLock { state in
            for pointer in pointers where state.sound.insert(Self.key(pointer)).inserted {
                state.report.blocks += 1
                state.report.bytes += ByteCount(UInt64(pointer.storedLength))
            }
            return state.report.bytes
        }
        options.progress?(bytes)
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

    private func failure(_ body: () throws(StoreError) -> Void) -> StoreError? {
        do throws(StoreError) {
            try body()
            return nil
        } catch { return error }
    }

    /// Adds damage to the report; throws what is no damage but an end to verifying.
    private func note(
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
