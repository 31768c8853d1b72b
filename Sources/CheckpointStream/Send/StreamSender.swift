// Sending checkpoints as a stream. Formats/STREAM.md.
//
// Invariants:
// - Frames come in the order of regions and pages, whatever thread made them.
// - Runs that are wanted whole go as they are stored: verified, not decoded.

import CheckpointStore
import StoreFormat
import Threading
import Units

/// What was sent.
public struct SendReport: Sendable {
    /// The stream.
    public var stream: StreamID
    /// The checkpoints, in their order.
    public var checkpoints: [CheckpointInfo]
    /// Pages with content.
    public var writtenPages = PageCount.zero
    /// Pages that became zero.
    public var zeroedPages = PageCount.zero
    /// Bytes of the stream.
    public var streamBytes = ByteCount.zero
    /// Runs that went as they are stored, and runs that had to be made.
    public var storedRuns = 0
    public var encodedRuns = 0
    /// Names that move and were sent with their checkpoints.
    public var references: [Reference] = []
    /// What was read of the indexes.
    public var counts = ComparisonCounts()
}

/// How a stream is sent.
public struct SendOptions: Sendable {
    /// Threads that read and compress; 1 does everything on the calling thread.
    public var parallelism: Int
    /// Send the names that move and lead to the checkpoints, but for `latest`, which each store moves itself.
    public var sendsReferences: Bool
    /// Called after each frame with the pages that have gone so far, by the working threads.
    public var progress: (@Sendable (PageCount) -> Void)?
    /// Ends the work.
    public var cancellation: StreamCancellation?
    /// The checkpoints of the view, the newest first, where the caller knows them.
    var checkpointIDs: [CheckpointID]?

    public init(
        parallelism: Int = WriterOptions.defaultParallelism, sendsReferences: Bool = true,
        progress: (@Sendable (PageCount) -> Void)? = nil, cancellation: StreamCancellation? = nil
    ) {
        precondition(parallelism >= 1)
        self.parallelism = parallelism
        self.sendsReferences = sendsReferences
        self.progress = progress
        self.cancellation = cancellation
    }
}

extension Snapshot {
    /// Sends checkpoints of this view as one stream. Blocks until everything has been written.
    ///
    /// A process that sends into a pipe must ignore SIGPIPE, or a receiver that goes away ends it.
    /// - Parameters:
    ///   - items: in an order in which each one's base is there before it.
    ///   - descriptor: a pipe, file or socket; it stays open.
    /// - Throws: `.corrupt` where the store is damaged; `.cutStream` when the receiver has ended, `.noSpace`, `.ioFailed`, `.cancelled`;
    ///   `.invalidInput` when more names lead to a checkpoint than a stream can have.
    public func send(_ items: [SendItem], to descriptor: Int32, options: SendOptions = SendOptions()) throws(StoreError) -> SendReport {
        precondition(!items.isEmpty, "there is something to send")
        let sender = try StreamSender(self, StreamDescriptor(number: descriptor, cancellation: options.cancellation), options)
        defer { sender.end() }
        return try sender.send(items)
    }
}

/// The work of one stream. Confined to the sending thread, but for what `OrderedWork` runs.
private final class StreamSender {
    private let snapshot: Snapshot
    private let output: Lock<Output>
    private let work: OrderedWork<Job, FramePayload>
    private let stream = StreamID(UInt64.random(in: 1...UInt64.max))
    /// The names that go with each checkpoint, ascending.
    private let references: [CheckpointID: [String]]
    private let checkpointIDs: [CheckpointID]

    /// What a frame is made of.
    private enum Job: Sendable {
        case span(ChangedSpan, region: Int)
        case zeros(ZerosFrame)
    }

    /// What frames go to, one at a time.
    private struct Output {
        let frames: Handed<FrameWriter>
        var report: SendReport
        var dataFrames: UInt64 = 0
    }

    init(_ snapshot: Snapshot, _ descriptor: StreamDescriptor, _ options: SendOptions) throws(StoreError) {
        self.snapshot = snapshot
        references = options.sendsReferences ? try snapshot.userReferences() : [:]
        if let known = options.checkpointIDs { checkpointIDs = known } else { checkpointIDs = try snapshot.checkpointIDs().reversed() }
        let output = Lock(
            Output(frames: Handed(FrameWriter(descriptor)), report: SendReport(stream: stream, checkpoints: [])))
        let buffers = Lock<[AlignedBuffer]>([])
        let encoders = Lock<[Handed<SpanFrameEncoder>]>([])
        self.output = output
        work = OrderedWork(workers: options.parallelism) { (job) throws(StoreError) in
            let buffer = buffers.withLock { $0.popLast() } ?? AlignedBuffer(count: SpanFrameEncoder.bufferBytes)
            switch job {
            case .zeros(let frame):
                let bytes = frame.encoded()
                unsafe buffer.bytes.copyBytes(from: bytes)
                return FramePayload(kind: .zeros, buffer: buffer, range: 0..<bytes.count)
            case .span(let span, let region):
                let encoder = encoders.withLock { $0.popLast() } ?? Handed(SpanFrameEncoder())
                defer { encoders.withLock { $0.append(encoder) } }
                return try encoder.value.encode(span, region: region, into: buffer)
            }
        } deliver: { (payload) throws(StoreError) in
            let pages = try output.withLock { (output) throws(StoreError) in
                try output.frames.value.put(payload)
                output.dataFrames += 1
                output.report.storedRuns += payload.storedRuns
                output.report.encodedRuns += payload.encodedRuns
                return output.report.writtenPages
            }
            buffers.withLock { $0.append(payload.buffer) }
            options.progress?(pages)
        }
    }

    func end() { work.end() }

    func send(_ items: [SendItem]) throws(StoreError) -> SendReport {
        for item in items {
            let length = names(of: item).reduce(0) { $0 + 2 + $1.utf8.count }
            guard length <= CheckpointFrame.mostReferenceBytes else {
                throw StoreError(
                    .invalidInput, "more names lead to it than a stream can have", remedy: "Send it without them: --no-names.",
                    medium: snapshot.store.medium.name, checkpoint: item.checkpoint.name)
            }
        }
        let start = StartFrame(
            stream: stream, origin: snapshot.store.uuid, createdNanoseconds: wallClockNanoseconds(), checkpointCount: UInt32(items.count),
            relatives: relatives(of: items))
        try put { (frames) throws(StoreError) in
            try frames.begin()
            try frames.put(.start, start.encoded())
        }
        for item in items { try send(item) }
        return try output.withLock { (output) throws(StoreError) in
            let frames = output.frames.value
            let end = EndFrame(stream: stream, checkpointCount: UInt64(items.count), frameCount: frames.frameCount)
            try frames.put(.end, end.encoded())
            output.report.streamBytes = frames.byteCount
            return output.report
        }
    }

    private func names(of item: SendItem) -> [String] { references[item.checkpoint.id] ?? [] }

    private func put(_ body: (FrameWriter) throws(StoreError) -> Void) throws(StoreError) {
        try output.withLock { (output) throws(StoreError) in try body(output.frames.value) }
    }

    /// The checkpoints that a receiver may know: what is sent and its bases first, then the newest.
    private func relatives(of items: [SendItem]) -> [CheckpointID] {
        var seen = Set<CheckpointID>()
        let bases = items.compactMap { $0.base?.id } + items.compactMap(\.checkpoint.parent) + items.map(\.checkpoint.id)
        return Array((bases + checkpointIDs).filter { seen.insert($0).inserted }.prefix(StartFrame.mostRelatives))
    }

    private func send(_ item: SendItem) throws(StoreError) {
        let reader = snapshot.reader(item.checkpoint)
        let changes = ChangeSet(from: item.base.map { snapshot.reader($0) }, to: reader)
        let kept = changes.regions.filter { $0.newer != nil }
        let before = output.withLock { ($0.report.writtenPages, $0.report.zeroedPages, $0.dataFrames) }
        try put { (frames) throws(StoreError) in try frames.put(.checkpoint, CheckpointFrame(item, names(of: item)).encoded()) }
        for (index, change) in kept.enumerated() where index >= item.start.region {
            try sendRegion(change, index, of: changes, from: index == item.start.region ? item.start.page : PageIndex(UInt64(0)))
        }
        try work.drain()
        try output.withLock { (output) throws(StoreError) in
            let end = CheckpointEndFrame(
                id: item.checkpoint.id, writtenPages: output.report.writtenPages - before.0,
                zeroedPages: output.report.zeroedPages - before.1, dataFrames: output.dataFrames - before.2)
            try output.frames.value.put(.checkpointEnd, end.encoded())
            output.report.checkpoints.append(item.checkpoint)
            output.report.references += names(of: item).map { Reference(name: $0, checkpoint: item.checkpoint.id) }
        }
    }

    private func sendRegion(_ change: RegionChange, _ index: Int, of changes: ChangeSet, from start: PageIndex) throws(StoreError) {
        // Spans that have become zero as a whole, next to each other, go as one frame.
        var zeros: Range<PageIndex>?
        func flushZeros() throws(StoreError) {
            if let pages = zeros { try work.submit(.zeros(ZerosFrame(region: index, pages: pages))) }
            zeros = nil
        }
        let counts = try changes.forEachSpan(of: change, from: start) { (span) throws(StoreError) in
            output.withLock { output in
                output.report.writtenPages += span.writtenPages
                output.report.zeroedPages += span.isZero ? PageCount(span.pageCount) : span.zeroedPages
            }
            guard span.isZero else {
                try flushZeros()
                return try work.submit(.span(span, region: index))
            }
            let end = span.firstPage + PageCount(span.pageCount)
            if let known = zeros, known.upperBound == span.firstPage {
                zeros = known.lowerBound..<end
            } else {
                try flushZeros()
                zeros = span.firstPage..<end
            }
        }
        try flushZeros()
        output.withLock { $0.report.counts += counts }
    }
}

extension CheckpointFrame {
    fileprivate init(_ item: SendItem, _ references: [String]) {
        let info = item.checkpoint
        self.init(
            id: info.id, parent: info.parent, createdNanoseconds: info.createdNanoseconds, base: item.base?.id,
            baseCreatedNanoseconds: item.base?.createdNanoseconds ?? 0, start: item.start, name: info.name,
            labels: info.labels.map { Label(key: $0.key, value: $0.value) },
            regions: info.regions.map { Region(name: $0.name, kind: $0.kind, byteLength: $0.byteLength, storedPages: $0.storedPages) },
            references: references)
    }
}
