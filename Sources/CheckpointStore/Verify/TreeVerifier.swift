// Checking checkpoints: their records, and the trees of their regions, on several threads.
//
// Invariants:
// - Each block is read once, wherever it is shared, and each thread is busy as long as any tree has a leaf that nobody is at: work is
//   handed out by checkpoint, and who finds none left helps in the trees of those that are under way.
// - What a tree lost is known when its root is finished, so that a shared damage costs each checkpoint one entry.
// - What was found sound stays so for the life of this object: blocks are never changed, and a pointer tells a block by its checksum.

import Media
import PageCodec
import StoreFormat
import Synchronization
import Threading
import Units

/// A checkpoint to verify.
struct CheckpointJob: Sendable {
    var id: CheckpointID
    /// As the catalog by name has it; nil where that can't be read.
    var name: String?
    var value: CatalogValue
}

/// Thread-safe.
final class TreeVerifier: Sendable {
    let store: CheckpointStore
    let options: VerifyOptions
    let pageHashSeed: UInt64
    let memo = NodeMemo()
    let limit: RateLimit?
    let state = Lock(State())
    private let paidBytes = Atomic<UInt64>(0)

    /// Bytes that were read so far, or were about to be: sound or not, and again each time.
    var readBytes: ByteCount { ByteCount(paidBytes.load(ordering: .relaxed)) }

    /// Waits until the rate allows the block to be read.
    func pay(_ pointer: BlockPointer) {
        let bytes = UInt64(pointer.storedLength)
        paidBytes.add(bytes, ordering: .relaxed)
        limit?.take(ByteCount(bytes))
    }

    struct State {
        var log = DamageLog()
        var checkpointCount = 0
        var blocks = 0
        var bytes = ByteCount.zero
        var expectedBytes: ByteCount?
        /// Runs that were found sound, by their places.
        var runs: [UInt64: SoundRun] = [:]
        /// For each used segment: its entry; empty when nothing is to be compared with the table.
        var entries: [SegmentIndex: SegmentEntry] = [:]
        /// What the table counts beyond what is reachable.
        var lost = (pages: PageCount.zero, bytes: ByteCount.zero)
        /// What is reachable in each segment, counted as the table's `live`.
        var live: [SegmentIndex: UInt64] = [:]
        /// For each segment a block that the table does not count as written.
        var uncounted: [SegmentIndex: BlockPointer] = [:]
        /// The names that records have.
        var recordNames: [CheckpointID: String] = [:]
        var jobsSeen = Set<CheckpointID>()
        /// The roots of checkpoints that threads are at, by thread.
        var active: [Int: [TreeNode]] = [:]
    }

    struct SoundRun {
        var fingerprint: UInt64
        /// The places in the run that leaves list, with the pages that they list there.
        var claims: PageClaims
    }

    init(store: CheckpointStore, pageHashSeed: UInt64, options: VerifyOptions) {
        self.store = store
        self.pageHashSeed = pageHashSeed
        self.options = options
        limit = options.bytesPerSecond.map { RateLimit(bytesPerSecond: $0, clock: options.clock) }
    }

    func report(generation: Generation) -> VerifyReport {
        state.withLock { state in
            VerifyReport(
                generation: generation, checkpointCount: state.checkpointCount, blocks: state.blocks, bytes: state.bytes,
                lostPages: state.lost.pages, lostBytes: state.lost.bytes, damages: state.log.damages)
        }
    }

    /// Bytes that were found sound so far.
    var verifiedBytes: ByteCount { state.withLock { $0.bytes } }

    /// Bytes that were found sound, and damages, so far: alike as long as nothing new was found.
    var found: (soundBytes: ByteCount, damages: Int) { state.withLock { ($0.bytes, $0.log.count) } }

    /// The names of all records that could be read.
    var recordNames: [CheckpointID: String] { state.withLock { $0.recordNames } }
    var jobsSeen: Set<CheckpointID> { state.withLock { $0.jobsSeen } }

    // MARK: checkpoints

    /// Verifies checkpoints of the generation of `slot`, which is registered or kept by the commit lock. `mayGoOn` is asked before each leaf.
    /// - Throws: `.cancelled` when `mayGoOn` says no: what was found so far is kept, and a single job that was stopped can be given again.
    func verify(
        _ jobs: [CheckpointJob], in slot: Slot, mayGoOn: @escaping @Sendable () -> Bool = { true }
    ) throws(StoreError) {
        let queue = Lock(jobs[...])
        let workers = options.parallelism
        let (blocks, newest) = (store.blocks(in: slot), slot.baseGeneration)
        let names = Lock(0..<workers)
        try inParallel(workers: workers) { (_: Int) throws(StoreError) in
            guard let number = names.withLock({ $0.popFirst() }) else { return }
            let worker = VerifyWorker(self, blocks, share: Double(number) / Double(workers), mayGoOn: mayGoOn)
            while let job = queue.withLock({ $0.popFirst() }) {
                defer { self.state.withLock { $0.active[number] = nil } }
                try self.checkpoint(job, worker, number, newest)
            }
            let rest = self.state.withLock { Array($0.active.values.joined()) }
            for root in rest { _ = try worker.visit(root) }
        }
    }

    private func checkpoint(
        _ job: CheckpointJob, _ worker: VerifyWorker, _ number: Int, _ newest: Generation
    ) throws(StoreError) {
        state.withLock { _ = $0.jobsSeen.insert(job.id) }
        pay(job.value.record)
        let record: CheckpointRecord
        do throws(StoreError) { record = try worker.blocks.readRecord(job.value, id: job.id) } catch {
            let damage = try note(error, block: job.value.record, isOfBlock: true)
            return addLoss(damage, AffectedCheckpoint(id: job.id, name: job.name ?? job.id.description))
        }
        let affected = AffectedCheckpoint(id: job.id, name: record.name)
        let roots = record.regions.compactMap { region in
            region.root.map {
                (region, TreeNode(pointer: $0, regionKey: region.key, first: SpanIndex(UInt64(0)), level: region.depth))
            }
        }
        state.withLock { $0.active[number] = roots.map(\.1) }
        var findings: [NodeFinding] = []
        for (_, root) in roots { findings.append(try worker.finding(root)) }
        // From here on nothing is stopped any more: what is added to the report is added once.
        for ((region, root), finding) in zip(roots, findings) { try account(finding, region, root, affected, worker.blocks) }
        state.withLock { state in
            state.recordNames[job.id] = record.name
            state.checkpointCount += 1
        }
        countSound(try worker.blocks.resolve(job.value.record).pointer)
        try checkRecord(record, job, affected, newest)
    }

    private func checkRecord(
        _ record: CheckpointRecord, _ job: CheckpointJob, _ affected: AffectedCheckpoint, _ newest: Generation
    ) throws(StoreError) {
        if job.value.generation > newest {
            try noteDisagreement("it was committed in generation \(job.value.generation), which is still to come", affected)
        }
        if record.newPages.rawValue != record.regions.reduce(0, { $0 &+ $1.newPages.rawValue }) {
            try noteDisagreement("its newPages is not the sum of its regions'", affected)
        }
    }

    private func noteDisagreement(_ reason: String, _ checkpoint: AffectedCheckpoint) throws(StoreError) {
        addLoss(try note(StoreError(.corrupt, reason, medium: store.medium.name), block: nil), checkpoint)
    }

    /// Adds what was found of a region's tree to the report of one checkpoint.
    private func account(
        _ finding: NodeFinding, _ region: RegionRecord, _ root: TreeNode, _ checkpoint: AffectedCheckpoint,
        _ blocks: BlockReader
    ) throws(StoreError) {
        let whole = PageRanges(PageIndex(UInt64(0))..<PageIndex(region.pageCount.rawValue))
        for loss in finding.losses {
            let pages = loss.pages.intersection(whole)
            guard !pages.isEmpty else {
                state.withLock { $0.log.noteOutside(loss.damage) }
                continue
            }
            state.withLock { $0.log.addLoss(loss.damage, checkpoint, region: region.name, pages: pages, regionPages: region.pageCount) }
        }
        if finding.end > region.pageCount.rawValue {
            try checkTail(root, region, checkpoint, blocks)
        } else if finding.losses.isEmpty, finding.pages != region.storedPages.rawValue {
            let error = StoreError(
                .corrupt, "the region counts \(region.storedPages) stored pages, its leaves list \(finding.pages)", medium: store.medium.name)
            let damage = try note(error, block: nil)
            state.withLock { $0.log.addLoss(damage, checkpoint, region: region.name, pages: whole, regionPages: region.pageCount) }
        }
    }

    /// A tree names pages behind the region's end: finds the node for which that is so.
    private func checkTail(
        _ root: TreeNode, _ region: RegionRecord, _ checkpoint: AffectedCheckpoint, _ blocks: BlockReader
    ) throws(StoreError) {
        let lastSpan = SpanIndex(of: PageIndex(region.pageCount.rawValue - 1))
        var node = root
        do throws(StoreError) {
            while node.level > 0 {
                let inner = try blocks.readInner(node.pointer, of: region, firstPage: node.first.firstPage, level: node.level)
                let index = PageTable.childIndex(lastSpan, level: node.level)
                guard let child = inner.children[index] else { return }
                let first = SpanIndex(node.first.rawValue + UInt64(index) * PageTable.spansPerChild(level: node.level))
                node = TreeNode(pointer: child, regionKey: region.key, first: first, level: node.level - 1)
            }
            _ = try blocks.readSpan(node.pointer, of: region, span: node.first)
        } catch {
            let damage = try note(error, block: node.pointer)
            let pages = VerifyWorker.pages(of: node, regionPages: region.pageCount)
            state.withLock { $0.log.addLoss(damage, checkpoint, region: region.name, pages: pages, regionPages: region.pageCount) }
        }
    }
}
