// One migration stream on its way into a checkpoint.
//
// Invariants:
// - `blocks` and `deviceState` are complete when the parser has said that the stream is.
// - A page that did not come is zero in the checkpoint, whatever the parent has there; one that comes twice is refused, since the
//   snapshot of an instant has one of each.

import CheckpointCore
import MigrationStream
import StoreFormat
import Threading
import Units

/// Puts a stream's pages into a checkpoint's regions and keeps its device state.
struct StreamIntake: StreamHandler {
    private let sink: any CheckpointSink
    private let workers: Int
    private let prepareThread: @Sendable () -> Void
    /// Names of blocks whose pages are not in the stream but come another way.
    private let externalBlocks: Set<String>
    private let progress: @Sendable (PageCount) -> Void
    private var collector: SpanCollector?
    private var pages: UInt64 = 0
    private var came: [[Bool]] = []
    private var regions: [any RegionSink] = []

    private(set) var machineType = ""
    private(set) var blocks: [StreamRAMBlock] = []
    private(set) var deviceState: [UInt8] = []

    var pageCount: PageCount { PageCount(pages) }

    /// - Parameter progress: told the pages taken in so far, about once for each span.
    init(
        sink: any CheckpointSink, workers: Int, externalBlocks: Set<String> = [],
        prepareThread: @escaping @Sendable () -> Void = {}, progress: @escaping @Sendable (PageCount) -> Void
    ) {
        self.sink = sink
        self.workers = workers
        self.externalBlocks = externalBlocks
        self.prepareThread = prepareThread
        self.progress = progress
    }

    /// Hands over the last pages. Call when the stream has been drained.
    mutating func finish() throws(EngineError) {
        try collector?.finish()
        for (index, block) in blocks.enumerated() where !externalBlocks.contains(block.name) {
            var page = 0
            while let start = came[index][page...].firstIndex(of: false) {
                page = came[index][start...].firstIndex(of: true) ?? came[index].count
                try regions[index].putZeros(PageIndex(start)..<PageIndex(page))
            }
        }
        progress(pageCount)
    }

    mutating func configuration(machineType: String, capabilities: [String]) throws(EngineError) {
        self.machineType = machineType
    }

    mutating func ramBlocks(_ blocks: [StreamRAMBlock]) throws(EngineError) {
        self.blocks = blocks
        var targets: [SpanCollector.Block] = []
        for block in blocks {
            let region = try sink.addRegion(MachineRecord.memoryRegion(block.name), kind: .memory, byteLength: block.byteLength)
            regions.append(region)
            came.append([Bool](repeating: false, count: PageCount(covering: block.byteLength).int))
            targets.append(SpanCollector.Block(region: region, pageCount: PageCount(covering: block.byteLength)))
        }
        collector = try SpanCollector(blocks: targets, workers: workers, prepareThread: prepareThread)
    }

    mutating func page(block: Int, _ page: PageIndex, _ bytes: UnsafeRawBufferPointer) throws(EngineError) {
        try unsafe put(block, page, bytes)
    }

    mutating func zeroPage(block: Int, _ page: PageIndex) throws(EngineError) { try unsafe put(block, page, nil) }

    mutating func deviceState(_ bytes: UnsafeRawBufferPointer) throws(EngineError) {
        unsafe deviceState.append(contentsOf: unsafe bytes)
    }

    private mutating func put(_ block: Int, _ page: PageIndex, _ bytes: UnsafeRawBufferPointer?) throws(EngineError) {
        guard !externalBlocks.contains(blocks[block].name) else {
            throw EngineError(
                .protocolViolation, "QEMU sent pages of a block that it shares and was told to leave out", place: blocks[block].name)
        }
        guard !came[block][page.int] else {
            throw EngineError(.protocolViolation, "QEMU sent page \(page) twice", place: blocks[block].name)
        }
        came[block][page.int] = true
        try unsafe collector?.put(block: block, page: page, bytes)
        pages += 1
        if pages % UInt64(pagesPerSpan) == 0 { progress(PageCount(pages)) }
    }
}
