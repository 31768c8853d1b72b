// A checkpoint being written.
//
// Invariants:
// - Nothing of it is visible before its commit has returned; without a commit it leaves no trace.
// - Its base generation stays registered until then, so that what it takes over from its parent stays.
// - Memory is bounded: buffers by a constant, leaves by one pointer for each span that was changed.

import Media
import PageCodec
import StoreFormat
import Threading
import Units

/// Writes one checkpoint. Get one from `CheckpointStore.begin`.
///
/// Thread-safe: regions and pages may be put from many threads, in any order. A page that is put twice by threads that
/// don't wait for each other has one of the two contents. Ends with `commit` or `abort`; one that is dropped is
/// aborted.
public final class CheckpointWriter: Sendable {
    /// The checkpoint's identity, chosen at random.
    public let id: CheckpointID
    /// The checkpoint's name.
    public let name: String
    /// The parent's identity; nil when there is none.
    public var parentID: CheckpointID? { parent?.id }
    let store: CheckpointStore
    let options: WriterOptions
    let base: Slot
    let parent: CheckpointRecord?
    let createdNanoseconds: UInt64
    let pageHashSeed: UInt64
    /// Reads the parent's blocks, as the base generation has them.
    var blocks: BlockReader { store.blocks(in: base) }
    private let queue: WriteQueue
    private let index: Lock<SegmentAppender>
    private let state: Lock<State>

    struct State {
        var regions: [RegionKey: RegionState] = [:]
        /// By the bytes of their keys: texts that Swift takes for equal may differ in those.
        var labels: [[UInt8]: Label]
        var idleLanes: [Lane] = []
        var laneCount = 0
        var gatherers: [RegionKey: PageGatherer] = [:]
        /// What it wrote in each segment and has superseded itself, counted as `live` is.
        var superseded: [SegmentIndex: UInt32] = [:]
        var isCancelled = false
        var phase = Phase.open
        /// Calls that are putting pages right now; ending waits for them.
        var activeCalls = 0
        /// The first error of a put: something that the caller handed over may be missing, so nothing is committed any more.
        var failure: StoreError?
    }
    enum Phase { case open, ending, ended }

    init(
        store: CheckpointStore, name: String, base: Slot, parent: CheckpointRecord?, options: WriterOptions
    ) {
        self.store = store
        self.name = name
        self.base = base
        self.parent = parent
        self.options = options
        id = store.environment.newID()
        createdNanoseconds = store.environment.nowNanoseconds()
        pageHashSeed = base.pageHashSeed
        let isInline = options.parallelism == 1 || store.medium.traits.writesAreCopies
        queue = WriteQueue(
            medium: store.medium, threads: isInline ? 0 : options.parallelism,
            buffers: options.parallelism * 3 + 4, bufferBytes: SegmentAppender.bufferBytes(base.geometry))
        index = Lock(SegmentAppender(store: store, segmentClass: .index, id: id, queue: queue))
        state = Lock(
            State(labels: Dictionary(uniqueKeysWithValues: options.labels.map { (Array($0.key.utf8), Label(key: $0.key, value: $0.value)) })))
    }

    deinit { abort() }

    // MARK: regions

    /// Adds a region, or returns the one of that name that was added before.
    ///
    /// With a parent, pages that are never put are what they are in the parent's region of that name;
    /// else they are zero.
    /// - Parameter byteLength: its length; nil: it ends behind the last byte that is put.
    /// - Throws: `.invalidInput` for a bad name, for memory whose length is no multiple of the page, or when
    ///   a region of that name has another kind.
    @discardableResult
    public func addRegion(
        _ name: String, kind: RegionKind, byteLength: ByteCount?
    ) throws(StoreError) -> RegionWriter {
        try checkOpen()
        do { try Names.check(name) } catch {
            throw StoreError(.invalidInput, "\(error)", remedy: "Choose another name.", checkpoint: self.name, region: name)
        }
        try checkLength(name, kind, byteLength)
        let key = PageCodec.regionKey(name)
        let region = try state.withLock { (state) throws(StoreError) in
            if let known = state.regions[key] {
                guard Names.equal(known.name, name) else {
                    throw StoreError(
                        .invalidInput, "its key is that of region \(known.name)", remedy: "Choose another name.",
                        checkpoint: self.name, region: name)
                }
                guard known.kind == kind, byteLength == nil || known.byteLength == byteLength else {
                    throw StoreError(
                        .invalidInput, "the region is there already with another kind or length",
                        remedy: "Name each region once.", checkpoint: self.name, region: name)
                }
                return known
            }
            let inherited = parent?.regions.first { Names.equal($0.name, name) }
            let region = RegionState(blocks: blocks, name: name, kind: kind, key: key, byteLength: byteLength, parent: inherited)
            state.regions[key] = region
            return region
        }
        return RegionWriter(writer: self, region: region)
    }

    /// Takes over a region of the parent as it is.
    public func inheritRegion(_ name: String) throws(StoreError) {
        guard let inherited = parent?.regions.first(where: { Names.equal($0.name, name) }) else {
            throw StoreError(
                .notFound, "the parent has no such region", remedy: "See `ckstore show` for its regions.",
                checkpoint: self.name, region: name)
        }
        try addRegion(name, kind: inherited.kind, byteLength: inherited.byteLength)
    }

    /// Adds a region with `bytes` as its whole content: device state and the like.
    public func putBlob(_ name: String, kind: RegionKind = .state, _ bytes: UnsafeRawBufferPointer) throws(StoreError) {
        let region = try addRegion(name, kind: kind, byteLength: ByteCount(bytes.count))
        unsafe try region.write(bytes, at: PageIndex(UInt64(0)), isStable: false)
    }

    /// Sets a label; it replaces an earlier one of that key.
    public func setLabel(_ key: String, _ value: String) throws(StoreError) {
        try checkOpen()
        state.withLock { $0.labels[Array(key.utf8)] = Label(key: key, value: value) }
    }

    /// Makes everything under way and the commit throw `.cancelled`, unless that has come to its last step. May be called
    /// from any thread.
    public func cancel() { state.withLock { $0.isCancelled = true } }

    func checkOpen() throws(StoreError) {
        let (phase, failure) = state.withLock { ($0.phase, $0.failure) }
        try checkNotCancelled()
        precondition(phase != .ended, "the checkpoint has been committed or aborted")
        if let failure { throw failure }
        try store.checkUsable(forWriting: true)
    }

    private func checkNotCancelled() throws(StoreError) {
        if state.withLock({ $0.isCancelled }) { throw cancelled() }
    }

    private func cancelled() -> StoreError {
        StoreError(.cancelled, "the checkpoint was cancelled", medium: store.medium.name, checkpoint: name)
    }

    /// Runs a call that puts pages. When it fails for another reason than its input, so does everything after it: pages
    /// that had been taken over may be lost.
    func putting(_ body: () throws(StoreError) -> Void) throws(StoreError) {
        try checkOpen()
        try state.withLock { state throws(StoreError) in
            // Somebody may have given it up since it was looked at.
            if state.isCancelled { throw cancelled() }
            precondition(state.phase == .open, "the checkpoint is being committed")
            state.activeCalls += 1
        }
        defer {
            state.withLock { $0.activeCalls -= 1 }
            state.wake()
        }
        do throws(StoreError) { try body() } catch {
            if error.code != .invalidInput { state.withLock { $0.failure = $0.failure ?? error } }
            throw error
        }
    }

    private func checkLength(_ region: String, _ kind: RegionKind, _ length: ByteCount?) throws(StoreError) {
        guard let length else { return }
        if length.rawValue > UInt64(Int64.max) {
            throw StoreError(.invalidInput, "\(length) bytes are more than a region can have", checkpoint: name, region: region)
        }
        if kind == .memory, length.rawValue % UInt64(pageSize) != 0 {
            throw StoreError(
                .invalidInput, "its length of \(length) bytes is no multiple of the page of \(pageSize) bytes",
                remedy: "Pad the image, or store it as state or disk, which may have any length.", checkpoint: name,
                region: region)
        }
    }

    // MARK: lanes

    /// Lends a lane to the calling thread; waits while all are lent.
    func withLane<R>(_ body: (Lane) throws(StoreError) -> R) throws(StoreError) -> R {
        let lane: Lane = state.waitFor { state in
            if let lane = state.idleLanes.popLast() { return lane }
            guard state.laneCount < options.parallelism else { return nil }
            state.laneCount += 1
            return Lane(blocks: blocks, data: SegmentAppender(store: store, segmentClass: .runs, id: id, queue: queue))
        }
        defer {
            state.withLock { $0.idleLanes.append(lane) }
            state.wake()
        }
        return try body(lane)
    }

    /// Appends an encoded block of the index.
    func appendIndex(_ bytes: [UInt8]) throws(StoreError) -> BlockPointer {
        try index.withLock { appender throws(StoreError) in try appender.append(bytes) }
    }

    /// The bytes of an index block that this writer may have written itself.
    func indexBlock(_ pointer: BlockPointer) throws(StoreError) -> [UInt8] {
        if pointer.birth == BlockBirth(id) {
            if let held = index.withLock({ $0.heldBlock(pointer) }) { return held }
            try index.withLock { appender throws(StoreError) in try appender.flushHeld() }
            try queue.drain()
        }
        return try blocks.readBlock(pointer)
    }

    /// Makes sure that a run which this writer may have written itself can be read from the medium. All lanes are
    /// idle.
    func makeReadable(_ run: BlockPointer) throws(StoreError) {
        guard run.birth == BlockBirth(id) else { return }
        let lanes = state.withLock { $0.idleLanes }
        for lane in lanes { try lane.data.flushHeld() }
        try queue.drain()
    }

    /// Notes that a block of its own, or pages of a run, will not be reached from the checkpoint.
    func discount(_ block: BlockPointer, _ places: UInt16) {
        state.withLock { $0.superseded[block.segment, default: 0] += CommitTransaction.liveUnits(of: block, places: places) }
    }

    func gatherer(for region: RegionState) -> PageGatherer {
        state.withLock { state in
            if let known = state.gatherers[region.key] { return known }
            let gatherer = PageGatherer(writer: self, region: region)
            state.gatherers[region.key] = gatherer
            return gatherer
        }
    }

    /// Saves the single pages of a region that are still held back.
    func saveGathered(_ region: RegionState) throws(StoreError) {
        if let gatherer = state.withLock({ $0.gatherers[region.key] }) { try gatherer.finish() }
    }

    // MARK: ending

    /// Commits: on return the checkpoint is durable and visible to everybody.
    ///
    /// - Throws: `.exists` (the name was taken meanwhile), `.wrongBase` (the parent was deleted),
    ///   `.noSpace`, `.storeFailed` (a flush failed: whether the checkpoint is there shows when the store is
    ///   reopened), and what the medium throws. The checkpoint is then gone without trace.
    @discardableResult
    public func commit() throws(StoreError) -> CheckpointInfo {
        try store.commit([self])[0]
    }

    /// Gives the checkpoint up; nothing of it remains. Waits for calls that are putting pages. Harmless after a commit; during
    /// one it does no more than `cancel`.
    public func abort() {
        let isFirst = state.waitFor { state -> Bool? in
            state.isCancelled = state.isCancelled || state.phase != .ended
            guard state.phase == .open else { return false }
            guard state.activeCalls == 0 else { return nil }
            state.phase = .ended
            return true
        }
        if isFirst { end() }
    }

    /// Ends a writer whose commit did not come about.
    func endUncommitted() {
        abort()
        let wasEnding = state.withLock { state in
            defer { state.phase = .ended }
            return state.phase == .ending
        }
        if wasEnding { end() }
    }

    /// What was written, complete and submitted to the medium but not yet visible.
    struct Prepared {
        var record: CheckpointRecord
        var pointer: BlockPointer
        var uses: [SegmentUse]
        /// Names that move to it.
        var references: [String]
        /// Bytes handed to the medium that no flush has covered.
        var writtenBytes: Int
    }

    /// Finishes all regions, the record and the commit records.
    func prepare(groupID: UInt64, as identity: CheckpointIdentity? = nil) throws(StoreError) -> Prepared {
        let (regions, gatherers, labels) = state.waitFor { state -> ([RegionState], [PageGatherer], [Label])? in
            precondition(state.phase == .open, "the checkpoint has been committed or aborted, or is just being so")
            guard state.activeCalls == 0 else { return nil }
            state.phase = .ending
            // In a fixed order, so that the same calls write the same bytes.
            let gatherers = state.gatherers.sorted { $0.key < $1.key }.map(\.value)
            return (Array(state.regions.values), gatherers, Array(state.labels.values))
        }
        try checkOpen()
        for gatherer in gatherers { try gatherer.finish() }
        var records: [RegionRecord] = []
        for region in regions.sorted(by: { Names.precedes($0.name, $1.name) }) {
            try checkNotCancelled()
            records.append(try RegionFinisher(writer: self, region: region).finish())
        }
        let storedBytes = regions.reduce(0) { $0 + $1.progress.withLock(\.storedBytes) }
        var record = CheckpointRecord(
            id: id, parent: parent?.id, createdNanoseconds: createdNanoseconds, baseGeneration: base.generation, name: name,
            labels: labels.sorted { Names.precedes($0.key, $1.key) }, newPages: records.reduce(.zero) { $0 + $1.newPages },
            storedBytes: ByteCount(storedBytes), groupID: groupID, regions: records)
        try identity?.apply(to: &record, over: parent, medium: store.medium.name)
        do { try record.check() } catch {
            throw StoreError(
                .invalidInput, "\(error)", remedy: "Use fewer or shorter labels and regions.", medium: store.medium.name,
                checkpoint: name)
        }
        let pointer = try appendIndex(record.encoded())
        var uses = try index.withLock { appender throws(StoreError) in try appender.finish(record: pointer, name: record.name) }
        let lanes = state.withLock { $0.idleLanes }
        for lane in lanes { uses += try lane.data.finish(record: pointer, name: record.name) }
        try queue.drain()
        try checkNotCancelled()
        let superseded = state.withLock { $0.superseded }
        for index in uses.indices {
            uses[index].live -= superseded[uses[index].segment] ?? 0
            uses[index].written = uses[index].live
        }
        return Prepared(
            record: record, pointer: pointer, uses: uses, references: options.references,
            writtenBytes: uses.reduce(0) { $0 + $1.committedLength - $1.firstOffset })
    }

    /// Everything is durable: the claims can go.
    func didCommit(_ uses: [SegmentUse]) {
        state.withLock { $0.phase = .ended }
        end()
        store.remember(uses)
    }

    private func end() {
        let lanes = state.withLock { $0.idleLanes }
        queue.close()
        var claims = index.withLock { appender in
            appender.abandon()
            return appender.claims
        }
        for lane in lanes {
            lane.data.abandon()
            claims += lane.data.claims
        }
        store.release(claims)
        store.unregister(base.generation)
        store.forget(self)
    }
}
