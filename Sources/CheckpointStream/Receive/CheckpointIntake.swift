// One checkpoint on its way into a store.
//
// Invariants:
// - Everything in front of `position` has been handed to the writer, and nothing behind it.
// - Steps make what has come durable as a part of its own; each is built over the one before it, which goes then.
// - What is committed in the end is what one step alone would have committed: the same record, the same pages.

import CheckpointStore
import StoreFormat
import Units

/// Takes the frames of one checkpoint. Confined to the receiving thread.
final class CheckpointIntake {
    /// The name that the checkpoint gets.
    let name: String
    private let store: CheckpointStore
    private let frame: CheckpointFrame
    private let start: StartFrame
    private let work: IntakeWork
    private let options: ReceiveOptions
    private var writer: CheckpointWriter
    private var regions: [RegionWriter] = []
    /// Up to where each region of the base has spans: what is behind that is zero already.
    private let zeroLimits: [PageIndex]
    /// Whether the writer goes on from a part, and which that is.
    private var continued: PartialCheckpoint?
    private var position: StreamPosition
    private var bytesSinceStep = 0
    private var totals: CheckpointEndFrame
    private var isComplete = false
    private var isEnded = false
    /// Why a part that another one has made superfluous is still there.
    private(set) var obstacle: StoreError?

    init(
        _ store: CheckpointStore, _ frame: CheckpointFrame, _ start: StartFrame, _ fit: StreamFit, _ work: IntakeWork,
        _ options: ReceiveOptions
    ) throws(StoreError) {
        name = fit.name
        guard !fit.isPresent else {
            throw StoreError(
                .duplicate, "checkpoint \(frame.id) is there already", remedy: "Nothing needs to be done; --skip-present passes it by.",
                medium: store.medium.name, checkpoint: frame.name)
        }
        (self.store, self.frame, self.start, self.work, self.options) = (store, frame, start, work, options)
        zeroLimits = frame.regions.map { region in
            let before = fit.base?.regions.first { Names.equal($0.name, region.name) }
            return Self.endOfSpans(PageIndex(before?.pageCount.rawValue ?? 0))
        }
        continued = fit.part
        position = frame.start
        totals = CheckpointEndFrame(id: frame.id, writtenPages: .zero, zeroedPages: .zero, dataFrames: 0)
        writer = try store.begin(name, over: fit.over, options: WriterOptions(parallelism: options.parallelism))
        try addRegions()
    }

    private func addRegions() throws(StoreError) {
        regions = []
        for region in frame.regions {
            regions.append(try writer.addRegion(region.name, kind: region.kind, byteLength: region.byteLength))
        }
    }

    // MARK: frames

    /// Takes a frame with pages.
    func put(_ payload: FramePayload) throws(StoreError) {
        guard !isComplete else { throw .damagedStream("pages behind the end of a checkpoint") }
        totals.dataFrames += 1
        bytesSinceStep += payload.range.count
        if payload.kind == .span { try putSpan(payload) } else { try putZeros(payload) }
        if bytesSinceStep >= options.stepBytes.int { try step() }
    }

    private func putSpan(_ payload: FramePayload) throws(StoreError) {
        let (region, first) = try payload.decoded { bytes throws(FormatError) in try SpanFrame.place(bytes) }
        let (written, zeroed) = try payload.decoded { bytes throws(FormatError) in try SpanFrame.counts(bytes) }
        try advance(region, first..<first + PageCount(pagesPerSpan))
        totals.writtenPages += written
        totals.zeroedPages += zeroed
        try work.submit(payload, to: regions[region], pageCount: frame.regions[region].pageCount)
    }

    private func putZeros(_ payload: FramePayload) throws(StoreError) {
        let zeros = try payload.decoded { bytes throws(FormatError) in try ZerosFrame.decode(bytes) }
        try advance(zeros.region, zeros.pages)
        // Without a limit by what is here, a few bytes could cost the work of the longest region that there can be.
        guard zeros.pages.upperBound.rawValue <= frame.regions[zeros.region].pageCount.rawValue,
            zeros.pages.upperBound <= zeroLimits[zeros.region]
        else { throw .damagedStream("zeros behind the end of region \(frame.regions[zeros.region].name)") }
        totals.zeroedPages += zeros.pages.upperBound - zeros.pages.lowerBound
        let cancellation = options.cancellation
        let end = try regions[zeros.region].putZeros(zeros.pages) { cancellation?.isCancelled ?? false }
        guard end == zeros.pages.upperBound else {
            position = StreamPosition(region: zeros.region, page: end)
            throw StoreError(.cancelled, "the stream was cancelled")
        }
    }

    /// Frames come in the order of regions and pages.
    private func advance(_ region: Int, _ pages: Range<PageIndex>) throws(StoreError) {
        guard region < regions.count, StreamPosition(region: region, page: pages.lowerBound) >= position else {
            throw .damagedStream("pages out of order")
        }
        position = StreamPosition(region: region, page: Self.endOfSpans(pages.upperBound))
    }

    /// The end of the span that ends at or behind `page`.
    private static func endOfSpans(_ page: PageIndex) -> PageIndex {
        SpanIndex((page.rawValue + UInt64(pagesPerSpan) - 1) / UInt64(pagesPerSpan)).firstPage
    }

    /// Takes the frame that says that everything has come.
    func complete(_ end: CheckpointEndFrame) throws(StoreError) {
        guard !isComplete, end == totals else { throw .damagedStream("the checkpoint's totals are not what came") }
        isComplete = true
        position = StreamPosition(region: regions.count, page: PageIndex(UInt64(0)))
    }

    // MARK: ending

    /// What a checkpoint is when it is there.
    struct Finished {
        var info: CheckpointInfo
        var totals: CheckpointEndFrame
        /// What became of the names that came with it.
        var references: [ReferenceAdoption]
        /// Why parts of it are still there.
        var obstacle: StoreError?
    }

    /// Makes the complete checkpoint visible, and the names that came with it, at once.
    func finish() throws(StoreError) -> Finished {
        guard isComplete else { throw .damagedStream("a checkpoint without its end") }
        try work.drain()
        let identity = CheckpointIdentity(
            id: frame.id, name: name, parent: frame.parent, createdNanoseconds: frame.createdNanoseconds, labels: frame.labels,
            continuesBase: continued != nil, storedPages: frame.regions.map(\.storedPages))
        isEnded = true
        let known = start.relatives
        let (info, references) = try writer.commit(as: identity, adopting: options.setsReferences ? frame.references : []) {
            known.contains($0)
        }
        var finished = Finished(info: info, totals: totals, references: references)
        do throws(StoreError) { try store.deleteParts { $0 == frame.id } } catch { finished.obstacle = error }
        return finished
    }

    /// Makes durable what has come, and goes on over it.
    private func step() throws(StoreError) {
        bytesSinceStep = 0
        // A stream that starts again does not put an end to what came further before.
        guard let identity = partIdentity(), try position > part()?.position ?? .start else { return }
        try commitPart(as: identity)
        guard let part = continued else { return }
        writer = try store.begin(name, over: part.info.id, options: WriterOptions(parallelism: options.parallelism))
        isEnded = false
        try addRegions()
    }

    /// What is kept of it is called so; nil where its labels leave a record no room, as one with many regions has little.
    private func partIdentity() -> CheckpointIdentity? {
        let identity = CheckpointIdentity(
            id: .random(), name: PartialCheckpoint.newName(for: frame.id), parent: frame.base, createdNanoseconds: wallClockNanoseconds(),
            labels: PartialCheckpoint.labels(frame, name: name, start: start, position: position), continuesBase: continued != nil)
        let length = CheckpointRecord.encodedLength(
            name: identity.name, labels: identity.labels, regionNames: frame.regions.map(\.name))
        return length <= CheckpointRecord.maximumLength ? identity : nil
    }

    private func commitPart(as identity: CheckpointIdentity) throws(StoreError) {
        try work.drain()
        isEnded = true
        let info = try writer.commit(as: identity)
        continued = PartialCheckpoint(info)
        // What came is durable: what can't be deleted now goes with the next step, or in the end.
        obstacle = nil
        do throws(StoreError) { try store.deleteParts(but: info.id) { $0 == frame.id } } catch { obstacle = error }
    }

    /// Keeps what has come of a stream that was cut, unless something that goes as far is there.
    func keep() throws(StoreError) {
        guard !isEnded else { return }
        let known = try part()?.position ?? .start
        guard let identity = partIdentity(), position > known else { return abort() }
        do throws(StoreError) { try commitPart(as: identity) } catch {
            abort()
            throw error
        }
    }

    /// What is kept of this checkpoint.
    func part() throws(StoreError) -> PartialCheckpoint? { try store.snapshot().partialCheckpoints().first { $0.checkpoint == frame.id } }

    /// Gives up what is not durable.
    func abort() {
        isEnded = true
        writer.abort()
    }
}
