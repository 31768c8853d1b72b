// Bringing one store up to another: the target gets the checkpoints that it lacks, each as a change of what it has.
//
// Invariants:
// - Each checkpoint goes as a stream of its own and is durable in the target before the next one starts.
// - When it is interrupted, what has come of the one under way is kept, and the next run goes on from there.
// - At the source a checkpoint is deleted only when the target has it, durable, under its id, and no name there keeps it.
// - Names that move lead in the target where they lead in the source once all checkpoints of the pass are there; what has such a name in the
//   target for something else keeps it.

import CheckpointStore
import Glibc
import StoreFormat
import Threading
import Units

/// How stores are brought up to each other.
public struct SyncOptions: Sendable {
    /// As many of the newest checkpoints stay at the source, and those that names lead to; the others are deleted there. nil: all stay.
    public var keptAtSource: Int?
    /// Names that move come along, but for `latest`, which each store moves itself.
    public var setsReferences: Bool
    /// How much comes between two steps that make durable what has come.
    public var stepBytes: ByteCount
    public var parallelism: Int
    /// Called with each checkpoint that starts, and with each that is there, by the calling thread.
    public var event: (@Sendable (SyncEvent) -> Void)?
    /// Called with the bytes of the stream under way, by the calling thread.
    public var progress: (@Sendable (ByteCount) -> Void)?
    public var cancellation: StreamCancellation?

    public init(
        keptAtSource: Int? = nil, setsReferences: Bool = true, stepBytes: ByteCount = .mebibytes(256),
        parallelism: Int = WriterOptions.defaultParallelism,
        event: (@Sendable (SyncEvent) -> Void)? = nil, progress: (@Sendable (ByteCount) -> Void)? = nil, cancellation: StreamCancellation? = nil
    ) {
        precondition(keptAtSource ?? 0 >= 0 && parallelism >= 1)
        self.keptAtSource = keptAtSource
        self.setsReferences = setsReferences
        self.stepBytes = stepBytes
        self.parallelism = parallelism
        self.event = event
        self.progress = progress
        self.cancellation = cancellation
    }
}

/// What happens while stores are brought up to each other.
public enum SyncEvent: Sendable {
    /// A checkpoint is going to be copied.
    case began(SendItem)
    /// It is durable in the target.
    case copied(SendItem, ReceiveReport)
    /// A name has been set or moved in the target, or kept out; not told of those that led there before.
    case named(ReferenceAdoption)
    /// The target had it, deleted it, and still joins branches by it: it can't come again as long as these are there.
    case passedBy(CheckpointInfo)
    /// It is gone at the source.
    case deletedAtSource(CheckpointInfo)
}

/// What one pass did.
public struct SyncReport: Sendable {
    /// Checkpoints that the target got.
    public var copied: [CheckpointInfo] = []
    /// Those that it lacks and can't get, since it has deleted them and still joins branches by them.
    public var passedBy: [CheckpointInfo] = []
    /// What became of each name of the source that leads to a checkpoint that the target has.
    public var references: [ReferenceAdoption] = []
    /// Those that were deleted at the source.
    public var deleted: [CheckpointInfo] = []
    /// Pages with content, and bytes of the streams.
    public var writtenPages = PageCount.zero
    public var streamBytes = ByteCount.zero
}

extension CheckpointStore {
    /// Copies what `target` lacks, parents first, has its names follow, and deletes at this store what `options` let go. One pass; blocks.
    ///
    /// Names that only the target has stay: they may be its own.
    /// - Throws: what sending and receiving throw: `.exists` when another checkpoint of the target has the name of one of the source's.
    ///   What was copied before is there.
    public func copyCheckpoints(to target: CheckpointStore, options: SyncOptions = SyncOptions()) throws(StoreError) -> SyncReport {
        var report = SyncReport()
        let source = try snapshot()
        let known = try target.snapshot()
        let items = try source.sendItems { id throws(StoreError) in
            try known.hasCheckpoint(id)
        } leavingOut: { info throws(StoreError) in
            guard try known.remembersDeleted(info.id), try !known.hasCheckpoint(info.id) else { return false }
            report.passedBy.append(info)
            options.event?(.passedBy(info))
            return true
        }
        let copy = StoreCopy(source: source, ids: try source.checkpointIDs().reversed(), target: target, options: options)
        for item in items {
            let item = try continued(item, source, target)
            options.event?(.began(item))
            let received = try copy.copy(item)
            report.copied.append(item.checkpoint)
            report.writtenPages += received.writtenPages
            report.streamBytes += received.streamBytes
            options.event?(.copied(item, received))
        }
        if options.setsReferences {
            report.references = try copyReferences(of: source, to: target)
            for adoption in report.references where adoption.outcome != .unchanged { options.event?(.named(adoption)) }
        }
        if let kept = options.keptAtSource { report.deleted = try letGo(keeping: kept, besides: target, options) }
        return report
    }

    private func copyReferences(of source: Snapshot, to target: CheckpointStore) throws(StoreError) -> [ReferenceAdoption] {
        let there = try target.snapshot()
        var references: [Reference] = []
        for (id, names) in try source.userReferences() where try there.hasCheckpoint(id) {
            references += names.map { Reference(name: $0, checkpoint: id) }
        }
        references.sort { Names.precedes($0.name, $1.name) }
        return try target.adopt(references) { id throws(StoreError) in try source.hasCheckpoint(id) }
    }

    /// The item from where the target has it already.
    private func continued(_ item: SendItem, _ source: Snapshot, _ target: CheckpointStore) throws(StoreError) -> SendItem {
        let parts = try target.snapshot().partialCheckpoints()
        guard let part = parts.first(where: { $0.checkpoint == item.checkpoint.id }) else { return item }
        guard let base = part.base else { return SendItem(item.checkpoint, base: nil, start: part.position) }
        guard let found = try source.find(base) else { return item }
        return SendItem(item.checkpoint, base: found, start: part.position)
    }

    /// Deletes all but the newest checkpoints that the target has, and those that names keep.
    private func letGo(keeping count: Int, besides target: CheckpointStore, _ options: SyncOptions) throws(StoreError) -> [CheckpointInfo] {
        let known = try target.snapshot()
        var deleted: [CheckpointInfo] = []
        let here = try snapshot()
        let named = try here.userReferences()
        for info in try here.checkpointsInSendingOrder().dropLast(count) {
            if options.cancellation?.isCancelled ?? false { throw StoreError(.cancelled, "the work was cancelled", medium: medium.name) }
            guard named[info.id] == nil, try known.hasCheckpoint(info.id) else { continue }
            // By its id: another one may have got its name meanwhile.
            let result = try delete([info])
            guard !result.deleted.isEmpty else { continue }
            deleted.append(info)
            options.event?(.deletedAtSource(info))
            if let obstacle = result.obstacle { throw obstacle }
        }
        return deleted
    }
}

/// One checkpoint on its way from thread to thread, through a pair of sockets: a pipe without a reader would end the process by a signal.
private struct StoreCopy {
    let source: Snapshot
    /// The source's checkpoints, the newest first.
    let ids: [CheckpointID]
    let target: CheckpointStore
    let options: SyncOptions

    func copy(_ item: SendItem) throws(StoreError) -> ReceiveReport {
        var ends: [Int32] = [0, 0]
        let type = Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue)
        guard unsafe socketpair(AF_UNIX, type, 0, &ends) == 0 else {
            throw StoreError(.ioFailed, "can't connect two threads: \(unsafe String(cString: strerror(errno)))")
        }
        let (reading, writing) = (ends[0], ends[1])
        let failure = Lock<StoreError?>(nil)
        var sending = SendOptions(parallelism: options.parallelism, sendsReferences: false)
        sending.checkpointIDs = ids
        let sender = PlainThread { [source, sending] in
            do throws(StoreError) {
                _ = try source.send([item], to: writing, options: sending)
            } catch { failure.withLock { $0 = error } }
            close(writing)
        }
        guard sender != nil else {
            close(reading)
            close(writing)
            throw StoreError(.ioFailed, "the system has no thread to give")
        }
        let received = Result { () throws(StoreError) -> ReceiveReport in
            try target.receive(
                from: reading,
                options: ReceiveOptions(
                    stepBytes: options.stepBytes, parallelism: options.parallelism, progress: options.progress,
                    cancellation: options.cancellation))
        }
        // The sender's next write finds that nobody reads any more.
        close(reading)
        sender?.join()
        // A sender that failed has cut the stream; one that was cut says nothing that matters.
        if case .failure(let error) = received, error.code == .cutStream, let cause = failure.withLock({ $0 }) { throw cause }
        return try received.get()
    }
}
