// Unpacking frames and storing their pages, on several threads.
//
// Invariant: memory is bounded by the number of threads: whoever brings the next frame waits.

import CheckpointStore
import StoreFormat
import Threading
import Units

/// The threads and buffers of a receiver. Its calls are made by one thread.
final class IntakeWork: Sendable {
    /// A frame and the region that it is for.
    private struct Piece: Sendable {
        var payload: FramePayload
        var region: RegionWriter
        var pageCount: PageCount
    }

    private let work: OrderedWork<Piece, Void>
    private let buffers: Lock<[AlignedBuffer]>

    init(workers: Int) {
        let buffers = Lock<[AlignedBuffer]>([])
        let decoders = Lock<[Handed<SpanFrameDecoder>]>([])
        self.buffers = buffers
        work = OrderedWork(workers: workers) { (piece) throws(StoreError) in
            let decoder = decoders.withLock { $0.popLast() } ?? Handed(SpanFrameDecoder())
            defer {
                decoders.withLock { $0.append(decoder) }
                buffers.withLock { $0.append(piece.payload.buffer) }
            }
            let content = try decoding { () throws(FormatError) in unsafe try decoder.value.decode(piece.payload.bytes) }
            let last = max(content.given.last.map { Int($0) + 1 } ?? 0, content.zeros.last?.upperBound ?? 0)
            guard content.firstPage + PageCount(last) <= PageIndex(piece.pageCount.rawValue) else {
                throw .damagedStream("pages behind the end of region \(piece.region.name)")
            }
            unsafe try piece.region.write(
                span: UnsafeRawBufferPointer(decoder.value.pages.bytes), at: content.firstPage, given: content.given, zeros: content.zeros)
        } deliver: { _ in }
    }

    /// A buffer for a span frame.
    func takeBuffer() -> AlignedBuffer { buffers.withLock { $0.popLast() } ?? AlignedBuffer(count: FrameKind.span.longestPayload) }

    func giveBack(_ buffer: AlignedBuffer) { buffers.withLock { $0.append(buffer) } }

    /// Has a span frame stored, now or soon; takes its buffer back then.
    func submit(_ payload: FramePayload, to region: RegionWriter, pageCount: PageCount) throws(StoreError) {
        try work.submit(Piece(payload: payload, region: region, pageCount: pageCount))
    }

    /// Waits until everything is stored.
    func drain() throws(StoreError) { try work.drain() }

    func end() { work.end() }
}
