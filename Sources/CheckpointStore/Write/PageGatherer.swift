// Single pages in any order, gathered by span so that they compress and index together.
//
// Invariant: at most `capacity` spans are held; the one touched longest ago is saved to make room.

import Glibc
import StoreFormat
import Threading
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
        /// Spans on their way to the store: later puts to them wait, so that the older page never comes after the newer.
        var saving: Set<SpanIndex> = []
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
        let evicted = state.waitFor { state -> Eviction? in
            guard !state.saving.contains(span) else { return nil }
            var evicted: SpanIndex?
            if state.spans[span] == nil {
                if state.spans.count >= Self.capacity {
                    evicted = state.spans.min { $0.value.lastUse < $1.value.lastUse }?.key
                }
                state.spans[span] = Pending(state.free.popLast() ?? AlignedBuffer(count: pagesPerSpan * pageSize))
            }
            guard let pending = state.spans[span] else { preconditionFailure("the span was just made") }
            state.clock += 1
            pending.lastUse = state.clock
            if let source = bytes.baseAddress { unsafe memcpy(pending.buffer.base + number * pageSize, source, pageSize) }
            pending.pages.insert(number)
            if pending.pages.count == pagesPerSpan, evicted == nil { evicted = span }
            return Eviction(evicted.flatMap { Self.take($0, &state) })
        }
        if let taken = evicted.taken { try save(taken.span, taken.pending) }
    }

    /// What a put takes out to be saved, if anything.
    private struct Eviction {
        let taken: (span: SpanIndex, pending: Pending)?
        init(_ taken: (span: SpanIndex, pending: Pending)?) { self.taken = taken }
    }

    private static func take(_ span: SpanIndex, _ state: inout State) -> (span: SpanIndex, pending: Pending)? {
        guard let pending = state.spans.removeValue(forKey: span) else { return nil }
        state.saving.insert(span)
        return (span, pending)
    }

    /// Saves everything that is still held, and waits for what other threads are saving.
    func finish() throws(StoreError) {
        // In their order, so that the same calls write the same bytes.
        while let next = state.withLock({ state in state.spans.keys.min().flatMap { Handed(Self.take($0, &state)) } }),
            let taken = next.value
        {
            try save(taken.span, taken.pending)
        }
        state.waitFor { state in state.saving.isEmpty ? () : nil }
    }

    private func save(_ span: SpanIndex, _ pending: Pending) throws(StoreError) {
        defer {
            state.withLock { state in
                state.saving.remove(span)
                state.free.append(pending.buffer)
            }
            state.wake()
        }
        try writer.withLane { lane throws(StoreError) in
            let input = unsafe SpanInput(
                span: span, base: UnsafeRawPointer(pending.buffer.base), given: pending.pages, zeros: PageSet(), isStable: true)
            try writer.saveSpan(region, input, lane)
        }
        writer.options.progress?(PageCount(pending.pages.count))
    }
}
