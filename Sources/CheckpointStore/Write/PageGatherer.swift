// Single pages in any order, gathered by span so that they compress and index together.
//
// Invariants:
// - At most `capacity` pages are held. When there is no room, the spans that were touched longest ago are saved, in their order, on
//   several threads: until half of it is free.
// - A span is saved by one batch at a time; later puts to it wait, so that the older page never comes after the newer.

import Glibc
import StoreFormat
import Threading
import Units

/// Gathers the pages of one region. Thread-safe.
final class PageGatherer: Sendable {
    /// The pages of one span that are held.
    private struct Pending {
        var pages = PageSet()
        /// Where each of `pages` is held.
        var places = [UInt16](repeating: 0, count: pagesPerSpan)
        var lastUse: UInt64 = 0
    }
    /// One page of memory: a number below `capacity`.
    private typealias Place = UInt16
    private struct Batch {
        var spans: [(span: SpanIndex, pending: Pending)]
    }
    private struct State {
        var spans: [SpanIndex: Pending] = [:]
        /// Spans on their way to the store.
        var saving: Set<SpanIndex> = []
        /// Memory of `chunkPages` pages each, made as it is needed.
        var chunks: [AlignedBuffer] = []
        var free: [Place] = []
        var clock: UInt64 = 0

        mutating func take() -> Place? {
            if free.isEmpty, chunks.count * chunkPages < capacity {
                let first = chunks.count * chunkPages
                chunks.append(AlignedBuffer(count: chunkPages * pageSize))
                free = (first..<first + chunkPages).reversed().map(Place.init)
            }
            return free.popLast()
        }
    }

    /// Pages held at once: 16 MiB.
    private static let capacity = 4096
    private static let chunkPages = 256
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
        while let batch = state.waitFor({ state in unsafe Self.hold(span, number, bytes, &state) }) { try save(batch) }
    }

    /// Copies the page into a place of its own. Answers with what must be saved before there is one; `.some(nil)` when it is held; nil
    /// where another thread is making room, or is saving the span.
    private static func hold(
        _ span: SpanIndex, _ number: Int, _ bytes: UnsafeRawBufferPointer, _ state: inout State
    ) -> Batch?? {
        guard !state.saving.contains(span) else { return nil }
        let held = state.spans[span].flatMap { $0.pages.contains(number) ? $0.places[number] : nil }
        guard let place = held ?? state.take() else { return state.spans.isEmpty ? nil : .some(takeOldest(&state)) }
        if let source = bytes.baseAddress { unsafe memcpy(address(of: place, state.chunks), source, pageSize) }
        state.clock += 1
        let clock = state.clock
        func note(_ pending: inout Pending) {
            pending.pages.insert(number)
            pending.places[number] = place
            pending.lastUse = clock
        }
        note(&state.spans[span, default: Pending()])
        return .some(nil)
    }

    private static func address(of place: Place, _ chunks: [AlignedBuffer]) -> UnsafeMutableRawPointer {
        unsafe chunks[Int(place) / chunkPages].base + Int(place) % chunkPages * pageSize
    }

    /// Takes out the spans that were touched longest ago, with half of all places.
    private static func takeOldest(_ state: inout State) -> Batch {
        var taken: [SpanIndex] = []
        var count = 0
        for (span, pending) in state.spans.sorted(by: { $0.value.lastUse < $1.value.lastUse }) where count < capacity / 2 {
            taken.append(span)
            count += pending.pages.count
        }
        return take(taken, &state)
    }

    /// In their order, so that the same calls write the same bytes.
    private static func take(_ spans: [SpanIndex], _ state: inout State) -> Batch {
        state.saving.formUnion(spans)
        return Batch(spans: spans.sorted().compactMap { span in state.spans.removeValue(forKey: span).map { (span, $0) } })
    }

    /// Saves everything that is still held, and waits for what other threads are saving.
    func finish() throws(StoreError) {
        try save(state.withLock { state in Self.take(Array(state.spans.keys), &state) })
        state.waitFor { state in state.saving.isEmpty ? () : nil }
    }

    /// Saves spans on several threads. What can't be saved any more after an error is let go.
    private func save(_ batch: Batch) throws(StoreError) {
        guard !batch.spans.isEmpty else { return }
        let rest = Lock(batch.spans[...])
        defer { for (span, pending) in rest.withLock({ $0 }) { release(span, pending) } }
        try inParallel(workers: min(writer.options.parallelism, batch.spans.count)) { [self] (_: Int) throws(StoreError) in
            try writer.withLane { lane throws(StoreError) in
                while let (span, pending) = rest.withLock({ $0.popFirst() }) {
                    defer { release(span, pending) }
                    try save(span, pending, lane)
                }
            }
        }
    }

    private func save(_ span: SpanIndex, _ pending: Pending, _ lane: Lane) throws(StoreError) {
        let chunks = state.withLock(\.chunks)
        pending.pages.forEach { page in
            unsafe memcpy(lane.copy.base + page * pageSize, Self.address(of: pending.places[page], chunks), pageSize)
        }
        let input = unsafe SpanInput(
            span: span, base: UnsafeRawPointer(lane.copy.base), given: pending.pages, zeros: PageSet(), isStable: true)
        try writer.saveSpan(region, input, lane)
        writer.options.progress?(PageCount(pending.pages.count))
    }

    /// The places can be used again, and the span be put to.
    private func release(_ span: SpanIndex, _ pending: Pending) {
        state.withLock { state in
            state.saving.remove(span)
            pending.pages.forEach { state.free.append(pending.places[$0]) }
        }
        state.wake()
    }
}
