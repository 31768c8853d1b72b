// Receiving a stream into a store. Formats/STREAM.md.
//
// Invariants:
// - A checkpoint is visible when all of it, and the stream's end or its next checkpoint behind it, have come as they were sent.
// - A stream that is refused changes nothing that is visible. What had come of a checkpoint when the stream was cut is kept as a part.

import CheckpointStore
import StoreFormat
import Threading
import Units

/// How a stream is received.
public struct ReceiveOptions: Sendable {
    /// The name for the checkpoint, when there is only one; nil: the one that it had.
    public var name: String?
    /// How much comes between two steps that make durable what has come; a stream that is shorter takes one commit.
    public var stepBytes: ByteCount
    /// Pass checkpoints by that are there already, instead of refusing the stream.
    public var skipsPresent: Bool
    /// Set the names that move and come with the checkpoints, where that takes none away from something else.
    public var setsReferences: Bool
    /// Threads that unpack and store; 1 does everything on the calling thread.
    public var parallelism: Int
    /// Called after each frame with the bytes that have come so far, by the calling thread.
    public var progress: (@Sendable (ByteCount) -> Void)?
    /// Ends the work; what has come is kept.
    public var cancellation: StreamCancellation?

    public init(
        name: String? = nil, stepBytes: ByteCount = .mebibytes(256), skipsPresent: Bool = false, setsReferences: Bool = true,
        parallelism: Int = WriterOptions.defaultParallelism, progress: (@Sendable (ByteCount) -> Void)? = nil,
        cancellation: StreamCancellation? = nil
    ) {
        precondition(parallelism >= 1)
        self.name = name
        self.stepBytes = stepBytes
        self.skipsPresent = skipsPresent
        self.setsReferences = setsReferences
        self.parallelism = parallelism
        self.progress = progress
        self.cancellation = cancellation
    }
}

/// What was received.
public struct ReceiveReport: Sendable {
    /// The stream, and the store that it came from.
    public var stream: StreamID
    public var origin: StoreUUID
    /// The checkpoints that are there now, in their order.
    public var received: [CheckpointInfo] = []
    /// Those that were there before.
    public var skipped: [CheckpointID] = []
    /// What became of the names that came with the checkpoints, those that were there before too.
    public var references: [ReferenceAdoption] = []
    /// Pages with content, and pages that became zero, that came in this stream.
    public var writtenPages = PageCount.zero
    public var zeroedPages = PageCount.zero
    /// Bytes of the stream.
    public var streamBytes = ByteCount.zero
    /// Set when all is well but for the parts of it that were kept on the way: they are still there.
    public var obstacle: StoreError?
}

extension CheckpointStore {
    /// Receives a stream until its end. Blocks. On return everything that came is durable and visible.
    ///
    /// - Parameter descriptor: a pipe, file or socket; it stays open.
    /// - Throws: `.notAStream`, `.unsupported`, `.damagedStream`, `.cutStream` (what has come is kept, see `Snapshot.partialCheckpoints`);
    ///   `.duplicate`, `.exists` (another checkpoint has that name), `.outOfOrder`, `.foreign`; `.noSpace`, `.readOnly`, `.cancelled`, and
    ///   what writing throws. Checkpoints of the stream that were complete before stay.
    public func receive(from descriptor: Int32, options: ReceiveOptions = ReceiveOptions()) throws(StoreError) -> ReceiveReport {
        let receiver = StreamReceiver(self, StreamDescriptor(number: descriptor, cancellation: options.cancellation), options)
        defer { receiver.end() }
        do throws(StoreError) { return try receiver.run() } catch { throw receiver.giveUp(error) }
    }
}

/// The work of one stream. Confined to the receiving thread, but for what `IntakeWork` runs.
private final class StreamReceiver {
    private let store: CheckpointStore
    private let options: ReceiveOptions
    private let frames: FrameReader
    private let work: IntakeWork
    private let small = AlignedBuffer(count: max(FrameKind.checkpoint.longestPayload, FrameKind.start.longestPayload))
    private var start: StartFrame?
    private var intake: CheckpointIntake?
    /// The checkpoint that is passed by, and whether its end has come.
    private var skipped: (frame: CheckpointFrame, isComplete: Bool)?
    private var checkpointCount: UInt64 = 0
    private var report: ReceiveReport?

    init(_ store: CheckpointStore, _ descriptor: StreamDescriptor, _ options: ReceiveOptions) {
        self.store = store
        self.options = options
        frames = FrameReader(descriptor)
        work = IntakeWork(workers: options.parallelism)
    }

    func end() {
        work.end()
        intake?.abort()
    }

    func run() throws(StoreError) -> ReceiveReport {
        try frames.begin()
        let start = try begin()
        while true {
            let payload = try next()
            switch payload.kind {
            case .start: throw .damagedStream("it starts twice")
            case .checkpoint:
                try finishIntake()
                try open(try payload.decoded { bytes throws(FormatError) in try CheckpointFrame.decode(bytes) }, start)
            case .span, .zeros: try put(payload)
            case .checkpointEnd: try complete(try payload.decoded { bytes throws(FormatError) in try CheckpointEndFrame.decode(bytes) })
            case .end:
                let expected = EndFrame(stream: start.stream, checkpointCount: checkpointCount, frameCount: frames.frameCount - 1)
                let end = try payload.decoded { bytes throws(FormatError) in try EndFrame.decode(bytes) }
                guard end == expected, checkpointCount == UInt64(start.checkpointCount) else {
                    throw .damagedStream("its totals are not what came")
                }
                try frames.requireEnd()
                try finishIntake()
                if report?.obstacle != nil { deletePartsOfWhatIsThere() }
                guard var report else { preconditionFailure("a stream that has begun has a report") }
                report.streamBytes = frames.byteCount
                return report
            }
            options.progress?(frames.byteCount)
        }
    }

    /// Ends a stream that failed; says what is left of it and what can be done.
    func giveUp(_ failure: StoreError) -> StoreError {
        var error = failure
        guard let intake else { return error }
        error.checkpoint = error.checkpoint ?? intake.name
        error.medium = error.medium.isEmpty ? store.medium.name : error.medium
        if [.cutStream, .cancelled].contains(error.code) {
            // What had come is sound: it was held against its checksums. Where it can't be kept, the stream is lost and nothing else.
            do throws(StoreError) { try intake.keep() } catch { return lost(failure, error) }
        } else {
            // Nothing may put pages any more.
            work.end()
            intake.abort()
        }
        if let obstacle = intake.obstacle { error.reason += "; an earlier part could not be deleted: \(obstacle.reason)" }
        do throws(StoreError) {
            guard let part = try intake.part() else { return error }
            if error.code == .noSpace { error.remedy = "Free space first (`ckstore delete`, `ckstore resize`)." }
            error.remedy =
                "\(error.remedy) What has come is kept: go on with `ckstore send ... --resume \(part.token)`, or drop it with "
                + "`ckstore receive ... --discard`."
        } catch { return lost(failure, error) }
        return error
    }

    private func lost(_ failure: StoreError, _ reason: StoreError) -> StoreError {
        var error = failure
        error.reason += "; what had come could not be kept: \(reason.reason)"
        return error
    }

    private func begin() throws(StoreError) -> StartFrame {
        let payload = try next()
        guard payload.kind == .start else { throw .damagedStream("it does not start with a start frame") }
        let start = try payload.decoded { bytes throws(FormatError) in try StartFrame.decode(bytes) }
        self.start = start
        report = ReceiveReport(stream: start.stream, origin: start.origin)
        deletePartsOfWhatIsThere()
        guard options.name == nil || start.checkpointCount == 1 else {
            throw StoreError(
                .invalidInput, "there are \(start.checkpointCount) checkpoints in the stream, and one name for them",
                remedy: "Let them keep their names.", medium: store.medium.name)
        }
        return start
    }

    /// What is in the way of that is in the way of nothing else: it is tried again when the stream has come.
    private func deletePartsOfWhatIsThere() {
        report?.obstacle = nil
        do throws(StoreError) { try store.deletePartsOfWhatIsThere() } catch { report?.obstacle = error }
    }

    private func next() throws(StoreError) -> FramePayload {
        try frames.next { kind in kind == .span ? work.takeBuffer() : small }
    }

    private func open(_ frame: CheckpointFrame, _ start: StartFrame) throws(StoreError) {
        checkpointCount += 1
        let fit = try StreamFit(store, frame, start, newName: options.name)
        if fit.isPresent, options.skipsPresent {
            skipped = (frame, false)
            return
        }
        intake = try CheckpointIntake(store, frame, start, fit, work, options)
    }

    private func put(_ payload: FramePayload) throws(StoreError) {
        if let intake { return try intake.put(payload) }
        guard let skipped, !skipped.isComplete else { throw .damagedStream("pages of no checkpoint") }
        if payload.kind == .span { work.giveBack(payload.buffer) }
    }

    private func complete(_ end: CheckpointEndFrame) throws(StoreError) {
        if let intake { return try intake.complete(end) }
        guard let passed = skipped, passed.frame.id == end.id, !passed.isComplete else {
            throw .damagedStream("the end of a checkpoint that had not begun")
        }
        skipped = (passed.frame, true)
    }

    /// Makes the checkpoint that is complete visible, now that something has come behind it.
    private func finishIntake() throws(StoreError) {
        if let skipped { try pass(skipped.frame, isComplete: skipped.isComplete) }
        skipped = nil
        guard let intake else { return }
        let finished = try intake.finish()
        self.intake = nil
        report?.received.append(finished.info)
        report?.references += finished.references
        report?.writtenPages += finished.totals.writtenPages
        report?.zeroedPages += finished.totals.zeroedPages
        if let obstacle = finished.obstacle { report?.obstacle = obstacle }
    }

    /// Passes a checkpoint by that was there before; its names may have moved to it since.
    private func pass(_ frame: CheckpointFrame, isComplete: Bool) throws(StoreError) {
        guard isComplete else { throw .damagedStream("a checkpoint without its end") }
        report?.skipped.append(frame.id)
        guard options.setsReferences, let start else { return }
        let references = frame.references.map { Reference(name: $0, checkpoint: frame.id) }
        report?.references += try store.adopt(references) { start.relatives.contains($0) }
    }
}
