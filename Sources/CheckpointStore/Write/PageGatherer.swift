// Single pages in any order, gathered by span so that they compress and index together.
//
// Invariant: at most `capacity` spans are held; the one touched longest ago is saved to make room.

import Glibc
import StoreFormat
import Units

/// Gathers the pages of one region. Thread-safe.
final class PageGatherer: Sendable {
    private final class Pending {
        let buffer: AlignedBuffer
        var pages = PageSet()
        var lastUse: UInt64 = 0
        init(_ buffer: AlignedBuffer) { self.buffer = buffer }
    }
    private struct State {
        var spans: [SpanIndex: Pending] = [:]
        var free: [AlignedBuffer] = []
        var clock: UInt64 = 0
    }

    /// Spans held at once: 16 MiB of pages.
    private static let capacity = 8
    private unowned let writer: CheckpointWriter
    private let region: RegionState
    private let state = Lock(State())

    init(writer: CheckpointWriter, region: RegionState) {
        self.writer = writer
        self.region = region
    }

    /// Takes a copy of one page.
    func put(_ page: PageIndex, _ bytes: UnsafeRawBufferPointer) throws(StoreError) {
        let span = SpanIndex(of: page)
        let number = Int((page - span.firstPage).rawValue)
        let evicted: (SpanIndex, Handed<Pending>)? = state.withLock { state in
            var evicted: (SpanIndex, Pending)?
            if state.spans[span] == nil {
                if state.spans.count >= Self.capacity, let oldest = state.spans.min(by: { $0.value.lastUse < $1.value.lastUse }) {
                    state.spans[oldest.key] = nil
                    evicted = (oldest.key, oldest.value)
                }
                state.spans[span] = Pending(state.free.popLast() ?? AlignedBuffer(count: pagesPerSpan * pageSize))
            }
            guard let pending = state.spans[span] else { preconditionFailure("the span was just made") }
            state.clock += 1
            pending.lastUse = state.clock
            if let source = bytes.baseAddress { unsafe memcpy(pending.buffer.base + number * pageSize, source, pageSize) }
            pending.pages.insert(number)
            if pending.pages.count == pagesPerSpan, evicted == nil {
                state.spans[span] = nil
                evicted = (span, pending)
            }
            return evicted.map { ($0.0, Handed($0.1)) }
        }
        if let (span, pending) = evicted { try save(span, pending.value) }
    }

    /// Saves everything that is still held.
    func finish() throws(StoreError) {
        // In their order, so that the same calls write the same bytes.
        while let span = state.withLock({ $0.spans.keys.min() }) {
            let pending = state.withLock { $0.spans.removeValue(forKey: span).map(Handed.init) }
            if let pending { try save(span, pending.value) }
        }
    }

    private func save(_ span: SpanIndex, _ pending: Pending) throws(StoreError) {
        try writer.withLane { lane throws(StoreError) in
            let input = unsafe SpanInput(
                span: span, base: UnsafeRawPointer(pending.buffer.base), given: pending.pages, zeros: PageSet(), isStable: true)
            try writer.saveSpan(region, input, lane)
        }
        state.withLock { $0.free.append(pending.buffer) }
        writer.options.progress?(PageCount(pending.pages.count))
    }
}
