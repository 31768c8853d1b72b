// Reading one disk into a region.
//
// Invariants:
// - Every page of the region is put: read, or made zero; or it is known to be the parent's.
// - Reading goes in spans, so that the store sees as much of a span at once as there is.

import CheckpointCore
import StoreFormat
import Threading
import Units

/// Saves one disk with a few threads, each with a connection of its own.
final class DiskSaver: Sendable {
    private static let threads = 3
    private static let spanPages = UInt64(pagesPerSpan)
    /// How many pages are looked through at a time: bounds what is remembered of a fragmented disk.
    private static let windowPages = spanPages * 256
    /// Gaps that are read along rather than ask twice.
    private static let gapPages: UInt64 = 16

    private enum Work {
        case data(Range<PageIndex>)
        case zeros(Range<PageIndex>)
    }

    private struct State {
        var queue: [Work] = []
        /// Up to which page the disk has been looked through.
        var scanned: UInt64 = 0
        var bytesRead: UInt64 = 0
        var failure: EngineError?
    }

    private let disk: WritableDisk
    private let index: Int
    private let address: ImageAddress
    private let log: WriteLog?
    private let region: any RegionSink
    private let progress: (@Sendable (DiskProgress) -> Void)?
    private let pageCount: UInt64
    private let state = Lock(State())

    init(
        disk: WritableDisk, index: Int, address: ImageAddress, log: WriteLog?, region: any RegionSink,
        progress: (@Sendable (DiskProgress) -> Void)?
    ) {
        self.disk = disk
        self.index = index
        self.address = address
        self.log = log
        self.region = region
        self.progress = progress
        pageCount = PageCount(covering: disk.byteLength).rawValue
    }

    func run() throws(EngineError) -> DiskReport {
        let helpers = (1..<Self.threads).compactMap { _ in PlainThread { self.work() } }
        work()
        for helper in helpers { helper.join() }
        let end = state.withLock { $0 }
        if let failure = end.failure { throw failure }
        precondition(end.scanned == pageCount && end.queue.isEmpty, "a save without failure has seen every page")
        return DiskReport(
            disk: disk.name, bytesRead: ByteCount(end.bytesRead), isIncremental: address.bitmap != nil,
            loggedWrites: log?.writeCounts[index] ?? 0)
    }

    private func work() {
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: pagesPerSpan * pageSize, alignment: pageSize)
        defer { unsafe buffer.deallocate() }
        do throws(EngineError) {
            let reader = try ExportReader(socket: address.socket, export: address.export, bitmap: address.bitmap)
            guard reader.byteLength == disk.byteLength else {
                throw EngineError(
                    .busy, "the disk has \(reader.byteLength) bytes, it had \(disk.byteLength)",
                    remedy: "Don't resize it during a checkpoint; take the checkpoint again.", place: disk.name)
            }
            while let work = try next(reader) { unsafe try perform(work, reader, buffer) }
        } catch {
            state.withLock { $0.failure = $0.failure ?? error }
        }
    }

    /// The next thing to do; nil when all is done or somebody failed.
    private func next(_ reader: ExportReader) throws(EngineError) -> Work? {
        try state.withLock { (state) throws(EngineError) in
            guard state.failure == nil else { return nil }
            while state.queue.isEmpty, state.scanned < pageCount {
                let window = state.scanned..<min(pageCount, state.scanned + Self.windowPages)
                state.queue = try plan(window, reader).reversed()
                state.scanned = window.upperBound
                progress?(
                    DiskProgress(
                        disk: disk.name, scanned: ByteCount(min(disk.byteLength.rawValue, window.upperBound * UInt64(pageSize))),
                        total: disk.byteLength))
            }
            return state.queue.popLast()
        }
    }

    private func plan(_ window: Range<UInt64>, _ reader: ExportReader) throws(EngineError) -> [Work] {
        let size = UInt64(pageSize)
        let bytes = window.lowerBound * size..<min(window.upperBound * size, disk.byteLength.rawValue)
        let extents = try reader.extents(of: bytes)
        let data = PageRanges(coveringBytes: extents.data.map { $0.clamped(to: bytes) })
        let logged = loggedPages(window)
        let wanted: PageRanges
        if address.bitmap != nil {
            wanted = PageRanges(coveringBytes: extents.dirty.map { $0.clamped(to: bytes) }).union(logged)
        } else {
            wanted = PageRanges(PageIndex(window.lowerBound)..<PageIndex(window.upperBound))
        }
        let pieces = data.intersection(wanted).union(logged).pieces(of: PageCount(Self.spanPages), filling: PageCount(Self.gapPages))
        let zeros = wanted.subtracting(PageRanges(pieces))
        return zeros.ranges.map(Work.zeros) + pieces.map(Work.data)
    }

    private func loggedPages(_ window: Range<UInt64>) -> PageRanges {
        guard let log else { return PageRanges() }
        let spans = window.lowerBound / Self.spanPages...(window.upperBound - 1) / Self.spanPages
        var pages = PageRanges()
        for span in log.spans(disk: index, within: spans) { pages = pages.union(log.pages(disk: index, span: span)) }
        return pages
    }

    private func perform(_ work: Work, _ reader: ExportReader, _ buffer: UnsafeMutableRawBufferPointer) throws(EngineError) {
        switch work {
        case .zeros(let pages): try region.putZeros(pages)
        case .data(let pages):
            let offset = pages.lowerBound.rawValue * UInt64(pageSize)
            let count = Int(min(pages.upperBound.rawValue * UInt64(pageSize), disk.byteLength.rawValue) - offset)
            let bytes = unsafe UnsafeMutableRawBufferPointer(rebasing: buffer[..<count])
            unsafe try reader.read(into: bytes, at: offset)
            unsafe try log?.patch(bytes, at: offset, disk: index)
            unsafe try region.write(UnsafeRawBufferPointer(bytes), at: pages.lowerBound, isStable: true)
            state.withLock { $0.bytesRead += UInt64(count) }
        }
    }
}
