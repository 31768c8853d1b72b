// Strategy 1: a shadow, and a buffer between memory and shadow [system D].
//
// A first write is noted, which reserves room for its page in the buffer. A checkpoint fills the buffer with the content of these pages and
// seals it, which is its commit; then it drains into the shadow, in order, while writers run. A rollback takes what has not drained yet
// from the buffer itself and all else from the shadow: the same as finishing the drain first.
//
// Invariants:
// - An epoch notes no more pages than the buffer holds.
// - A buffer that is not sealed does not count; one that is sealed is filled again only when it has drained.

import CheckpointCore
import MachineMemory
import Threading
import Units

/// Post-image checkpoints with a buffer.
final class PostImageLocal: RollbackStrategy {
    private struct State {
        var notedPages = PageCount.zero
        var sealed: Sealed?
        var device: [UInt8]
    }

    private let parts: RollbackParts
    private let shadow: any Shadow
    private let buffer: GuestMemory
    private let state: Lock<State>
    private let draining: BackgroundWork

    init(_ parts: RollbackParts, _ device: [UInt8]) throws(EngineError) {
        self.parts = parts
        let buffer = try GuestMemory("\(parts.memory.name) (buffer)", byteLength: parts.capacity.bytes)
        let shadow = try parts.makeShadow(device)
        let state = Lock(State(device: device))
        self.buffer = buffer
        self.shadow = shadow
        self.state = state
        do throws(EngineError) {
            draining = try BackgroundWork { () throws(EngineError) in try Self.drain(state, buffer, shadow, parts) }
        } catch {
            shadow.close()
            throw error
        }
    }

    func firstWrite(_ unit: Range<PageIndex>) -> FirstWrite {
        state.withLock { state in
            guard state.notedPages + parts.memory.pagesPerUnit <= parts.capacity else { return .noRoom }
            state.notedPages += parts.memory.pagesPerUnit
            return .noted
        }
    }

    func checkpoint(_ device: [UInt8], _ writes: FirstWrites) throws(EngineError) {
        try draining.finish()
        try parts.rules.step(.begun)
        parts.counters.add { $0.pagesCopiedAtCheckpoint = .zero }
        let content = Sealed(pages: writes.written, device: device)
        try forEachPiece(content) { piece, place throws(EngineError) in
            unsafe buffer.bytes(of: place).copyMemory(from: parts.memory.content(of: piece))
            parts.counters.add { $0.pagesCopiedAtCheckpoint += piece.upperBound - piece.lowerBound }
            try parts.rules.step(.copied)
        }
        parts.counters.add { $0.usedBufferBytes = max($0.usedBufferBytes, content.pages.count.bytes) }
        try writes.protect(content.pages)
        try parts.rules.step(.protected)
        writes.commit { state.withLock { $0 = State(sealed: content, device: device) } }
        draining.ask()
        try parts.rules.step(.committed)
    }

    func rollback(_ writes: FirstWrites) throws(EngineError) -> [UInt8] {
        parts.counters.add { $0.pagesRestored = .zero }
        let (sealed, device) = state.withLock { ($0.sealed, $0.device) }
        try unsafe writes.restore(writes.written) { piece, target throws(EngineError) in
            try unsafe read(piece, sealed, into: target)
            parts.counters.add { $0.pagesRestored += piece.upperBound - piece.lowerBound }
            try parts.rules.step(.restored)
        }
        writes.commit { state.withLock { $0.notedPages = .zero } }
        return device
    }

    func settle() throws(EngineError) { try draining.finish() }

    func describe(_ statistics: inout RollbackStatistics) {
        statistics.shadowBytes = shadow.residentBytes
        statistics.bufferBytes = buffer.byteLength
        statistics.bitmapBytes = PageBitmap.byteLength(of: parts.memory.pageCount)
    }

    func close() {
        draining.close()
        shadow.close()
    }

    /// The buffer stays as it is until the next checkpoint, which comes at another time than this: so what has drained meanwhile may still
    /// be read there.
    private func read(_ pages: Range<PageIndex>, _ sealed: Sealed?, into target: UnsafeMutableRawBufferPointer) throws(EngineError) {
        guard let sealed else { return try unsafe shadow.read(pages, into: target) }
        try sealed.pages.split(pages) { part, isBuffered throws(EngineError) in
            let place = (part.lowerBound - pages.lowerBound).bytes.int..<(part.upperBound - pages.lowerBound).bytes.int
            let bytes = unsafe UnsafeMutableRawBufferPointer(rebasing: target[place])
            if isBuffered {
                unsafe bytes.copyMemory(from: buffer.content(of: sealed.place(of: part)))
            } else {
                try unsafe shadow.read(part, into: bytes)
            }
        }
    }

    private static func drain(
        _ state: Lock<State>, _ buffer: GuestMemory, _ shadow: any Shadow, _ parts: RollbackParts
    ) throws(EngineError) {
        guard let sealed = state.withLock({ $0.sealed }) else { return }
        try sealed.pages.forEachPiece(parts.memory.pagesPerUnit) { piece throws(EngineError) in
            try unsafe shadow.put(piece, buffer.content(of: sealed.place(of: piece)))
            parts.counters.add { $0.pagesCopiedInBackground += piece.upperBound - piece.lowerBound }
            try parts.rules.step(.drained)
        }
        try shadow.commit(sealed.device)
        state.withLock { $0.sealed = nil }
    }

    private func forEachPiece(
        _ content: Sealed, _ body: (Range<PageIndex>, Range<PageIndex>) throws(EngineError) -> Void
    ) throws(EngineError) {
        try content.pages.forEachPiece(parts.memory.pagesPerUnit) { piece throws(EngineError) in try body(piece, content.place(of: piece)) }
    }
}

/// What the buffer holds: ranges of memory, one behind the other.
private struct Sealed {
    let pages: PageRanges
    /// Where in the buffer each range of `pages` begins.
    private let places: [PageIndex]
    let device: [UInt8]

    init(pages: PageRanges, device: [UInt8]) {
        self.pages = pages
        self.device = device
        var next = PageIndex(UInt64(0))
        places = pages.ranges.map { range in
            defer { next = next + (range.upperBound - range.lowerBound) }
            return next
        }
    }

    /// Where in the buffer a part of one of the ranges is.
    func place(of part: Range<PageIndex>) -> Range<PageIndex> {
        let index = pages.firstIndex(endingBehind: part.lowerBound)
        let first = places[index] + (part.lowerBound - pages.ranges[index].lowerBound)
        return first..<first + (part.upperBound - part.lowerBound)
    }
}
