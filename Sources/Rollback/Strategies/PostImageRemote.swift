// Strategy 2: buffer and shadow are in a backup process [system D].
//
// A first write is noted; a checkpoint sends what was written, then the end marker. The backup's acceptance of that is the commit. What was
// sent without an end marker is discarded. When the connection breaks between marker and answer, only the backup knows which checkpoint
// stands: the next connection says it.
//
// It is the only strategy whose checkpoint survives the loss of this process without a medium: another one takes it over (`TakenOverImage`).
//
// Invariant: an epoch notes no more pages than the backup can stage.

import CheckpointCore
import MachineMemory
import PageCodec
import Threading
import Units

/// Post-image checkpoints in a backup process.
final class PostImageRemote: RollbackStrategy {
    private struct Standing {
        var epoch: RollbackEpoch
        var device: [UInt8]
    }

    private struct State {
        var notedPages = PageCount.zero
        var capacity = PageCount.zero
        var connection: FrameConnection?
        var committed = Standing(epoch: .none, device: [])
        /// Marked, and not known to be accepted.
        var pending: Standing?
    }

    private let parts: RollbackParts
    private let state = Lock(State())
    private var memory: GuestMemory { parts.memory }

    init(_ parts: RollbackParts, _ device: [UInt8]) throws(EngineError) {
        self.parts = parts
        let (connection, welcome) = try connect()
        do throws(EngineError) {
            guard welcome.capacity >= memory.pageCount || parts.options.forceCheckpoint != nil else {
                throw EngineError(
                    .invalidInput, "the backup can stage \(welcome.capacity) of \(memory.pageCount) pages, and nobody would take a checkpoint then",
                    remedy: "Give it more room, or a function that takes a checkpoint.", place: memory.name)
            }
            try sendAll(connection, isZero: welcome.isZero)
            try mark(connection, device) {}
        } catch {
            close()
            throw error
        }
    }

    func firstWrite(_ unit: Range<PageIndex>) -> FirstWrite {
        state.withLock { state in
            guard state.notedPages + memory.pagesPerUnit <= state.capacity else { return .noRoom }
            state.notedPages += memory.pagesPerUnit
            return .noted
        }
    }

    func checkpoint(_ device: [UInt8], _ writes: FirstWrites) throws(EngineError) {
        try parts.rules.step(.begun)
        let written = writes.written
        try writes.protect(written)
        try parts.rules.step(.protected)
        parts.counters.add { $0.pagesCopiedAtCheckpoint = .zero }
        try connected { connection throws(EngineError) in
            try connection.send(BackupFrame(kind: .discard))
            try written.forEachPiece(memory.pagesPerUnit) { piece throws(EngineError) in
                try send(piece, connection)
                parts.counters.add { $0.pagesCopiedAtCheckpoint += piece.upperBound - piece.lowerBound }
                try parts.rules.step(.copied)
            }
            try mark(connection, device) { writes.commit { state.withLock { $0.notedPages = .zero } } }
        }
    }

    func rollback(_ writes: FirstWrites) throws(EngineError) -> [UInt8] {
        parts.counters.add { $0.pagesRestored = .zero }
        try connected { connection throws(EngineError) in
            try connection.send(BackupFrame(kind: .discard))
            let written = writes.written
            let fetch = try PageFetch(written, connection)
            try unsafe writes.restore(written) { piece, target throws(EngineError) in
                try unsafe fetch.next(piece, into: target)
                parts.counters.add { $0.pagesRestored += piece.upperBound - piece.lowerBound }
                try parts.rules.step(.restored)
            }
        }
        writes.commit { state.withLock { $0.notedPages = .zero } }
        return state.withLock { $0.committed.device }
    }

    func settle() {}

    func describe(_ statistics: inout RollbackStatistics) { statistics.bitmapBytes = PageBitmap.byteLength(of: memory.pageCount) }

    func close() { disconnect() }

    /// Runs `body` with a connection; one that was in use when something failed is given up, since nobody knows what the backup has got.
    private func connected(_ body: (FrameConnection) throws(EngineError) -> Void) throws(EngineError) {
        do throws(EngineError) {
            if let connection = state.withLock({ $0.connection }) { return try body(connection) }
            try body(try connect().0)
        } catch {
            disconnect()
            throw error
        }
    }

    private func disconnect() {
        let connection = state.withLock { state in
            defer { state.connection = nil }
            return state.connection
        }
        connection?.close()
    }

    /// Connects, and settles which checkpoint stands.
    private func connect() throws(EngineError) -> (FrameConnection, BackupWelcome) {
        let connection = FrameConnection(try parts.options.connect!(), milliseconds: parts.options.answerMilliseconds)
        let hello = BackupHello(.primary, parts.options.identity, byteLength: memory.byteLength, name: memory.name)
        let (epoch, welcome) = try connection.introduce(hello)
        try state.withLock { state throws(EngineError) in
            if let pending = state.pending, pending.epoch == epoch { state.committed = pending }
            guard state.committed.epoch == epoch || state.committed.epoch == .none else {
                throw EngineError(
                    .mismatch, "the backup has checkpoint \(epoch) and not \(state.committed.epoch)",
                    remedy: "It is not the backup that was connected before.", place: connection.place)
            }
            state.committed.epoch = epoch
            state.pending = nil
            state.capacity = welcome.capacity
            state.connection = connection
        }
        return (connection, welcome)
    }

    private func sendAll(_ connection: FrameConnection, isZero: Bool) throws(EngineError) {
        try PageRanges(memory.allPages).forEachPiece(PageCount(UInt64(1))) { piece throws(EngineError) in
            let isEmpty = unsafe PageCodec.isZero(memory.content(of: piece))
            if isEmpty, isZero { return }
            if isEmpty { return try connection.send(BackupFrame(kind: .pages, pages: piece)) }
            try send(piece, connection)
        }
    }

    private func send(_ pages: Range<PageIndex>, _ connection: FrameConnection) throws(EngineError) {
        try PageRanges(pages).forEachPiece(PageCount(UInt64(1)), limit: BackupFrame.pagesPerFrame) { piece throws(EngineError) in
            try unsafe connection.send(BackupFrame(kind: .pages, pages: piece), memory.content(of: piece))
        }
    }

    /// Sends the end marker and waits until it is accepted; then `commit` makes the checkpoint stand here.
    private func mark(_ connection: FrameConnection, _ device: [UInt8], _ commit: () -> Void) throws(EngineError) {
        let next = state.withLock { state in
            let next = Standing(epoch: state.committed.epoch.next, device: device)
            state.pending = next
            return next
        }
        try connection.send(BackupFrame(kind: .end, epoch: next.epoch, payload: device))
        try parts.rules.step(.marked)
        guard try connection.receive(.accepted).epoch == next.epoch else {
            throw BackupFrame.violation("another checkpoint was accepted", connection.place)
        }
        state.withLock { state in
            state.committed = next
            state.pending = nil
        }
        commit()
        try parts.rules.step(.committed)
    }
}
