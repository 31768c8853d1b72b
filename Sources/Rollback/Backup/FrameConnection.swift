// Frames in both directions, each with its number.
//
// Frames are gathered before they are sent, and received as many as there are: what a frame costs is the waking of the other side.
//
// Invariants:
// - Whoever is going to wait for a frame has sent all of its own.
// - After an error the connection is of no more use: nobody knows what the other side has got.

import CheckpointCore
import Threading
import Units

/// One side of a connection. Used by one thread at a time.
final class FrameConnection: Sendable {
    private struct State {
        var sentCount: UInt64 = 0
        var receivedCount: UInt64 = 0
        /// Frames that are still to be sent, and their length.
        var outgoing: [AlignedBytes] = []
        var outgoingBytes = 0
        /// What of `incoming` has been received and not used.
        var unused = 0..<0
    }

    private let socket: BackupSocket
    private let state = Lock(State())
    private let incoming = AlignedBytes(count: gathered)
    private let milliseconds: Int
    var place: String { socket.place }

    /// How much is gathered.
    private static let gathered = 256 << 10

    /// - Parameter milliseconds: the longest wait; negative: as long as it takes.
    init(_ socket: BackupSocket, milliseconds: Int) {
        self.socket = socket
        self.milliseconds = milliseconds
    }

    func send(_ frame: BackupFrame) throws(EngineError) {
        let payload = AlignedBytes(copying: frame.payload)
        try unsafe payload.withBytes { bytes throws(EngineError) in try unsafe send(frame, bytes) }
    }

    /// Sends a frame with these bytes instead of its own payload, now or later.
    func send(_ frame: BackupFrame, _ payload: UnsafeRawBufferPointer) throws(EngineError) {
        let isMuch = state.withLock { state in
            let bytes = unsafe BackupFrame.encode(frame, sequence: state.sentCount, payload)
            state.sentCount += 1
            state.outgoing.append(bytes)
            state.outgoingBytes += bytes.count
            return state.outgoingBytes >= Self.gathered
        }
        if isMuch { try flush() }
    }

    /// Sends what has been gathered.
    func flush() throws(EngineError) {
        let (frames, count) = state.withLock { state in
            defer {
                state.outgoing = []
                state.outgoingBytes = 0
            }
            return (state.outgoing, state.outgoingBytes)
        }
        guard count > 0 else { return }
        let bytes = AlignedBytes(count: count)
        var place = 0
        for frame in frames {
            unsafe frame.withBytes { unsafe bytes.put($0, at: place) }
            place += frame.count
        }
        try socket.send(bytes, milliseconds: milliseconds)
    }

    /// The next frame; nil when the other side has ended.
    /// - Throws: `.refused` with the other side's reason; `.corrupt`, `.protocolViolation`; `.connection`, `.timeout`, `.cancelled`.
    func receive() throws(EngineError) -> BackupFrame? {
        let header = AlignedBytes(count: BackupFrame.headerBytes)
        guard try fill(header) else { return nil }
        let payload = AlignedBytes(count: try BackupFrame.payloadLength(header, place: place))
        guard try fill(payload) else { throw brokenFrame }
        let number = state.withLock { state in
            defer { state.receivedCount += 1 }
            return state.receivedCount
        }
        let frame = try BackupFrame.decode(header, payload, sequence: number, place: place)
        guard frame.kind != .refused else {
            throw EngineError(.refused, String(decoding: frame.payload, as: UTF8.self), remedy: "See the other process.", place: place)
        }
        return frame
    }

    /// The next frame, which has to be of this kind.
    func receive(_ kind: FrameKind) throws(EngineError) -> BackupFrame {
        guard let frame = try receive() else { throw EngineError(.connection, "the other side has ended", place: place) }
        guard frame.kind == kind else { throw BackupFrame.violation("an answer of kind \(frame.kind) instead of \(kind)", place) }
        return frame
    }

    func close() { socket.close() }

    /// Fills the bytes with what comes next. False when the other side has ended before the first of them.
    private func fill(_ bytes: AlignedBytes) throws(EngineError) -> Bool {
        var filled = 0
        while filled < bytes.count {
            let unused = state.withLock { $0.unused }
            if unused.isEmpty {
                try flush()
                let got = try socket.receive(incoming, from: 0, milliseconds: milliseconds)
                if got == 0, filled == 0 { return false }
                if got == 0 { throw brokenFrame }
                state.withLock { $0.unused = 0..<got }
                continue
            }
            let part = unused.prefix(bytes.count - filled)
            unsafe incoming.withBytes(part) { unsafe bytes.put($0, at: filled) }
            filled += part.count
            state.withLock { $0.unused = part.upperBound..<unused.upperBound }
        }
        return true
    }

    private var brokenFrame: EngineError {
        EngineError(.connection, "the other side has ended in the middle of a frame", place: place)
    }
}
