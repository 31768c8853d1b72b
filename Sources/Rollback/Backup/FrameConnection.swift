// Frames in both directions, each with its number.
//
// Invariant: after an error the connection is of no more use: nobody knows what the other side has got.

import CheckpointCore
import Threading
import Units

/// One side of a connection. Used by one thread at a time.
final class FrameConnection: Sendable {
    private struct Sequence {
        var sent: UInt64 = 0
        var received: UInt64 = 0
    }

    private let socket: BackupSocket
    private let sequence = Lock(Sequence())
    private let milliseconds: Int
    var place: String { socket.place }

    /// - Parameter milliseconds: the longest wait; negative: as long as it takes.
    init(_ socket: BackupSocket, milliseconds: Int) {
        self.socket = socket
        self.milliseconds = milliseconds
    }

    func send(_ frame: BackupFrame) throws(EngineError) {
        let payload = AlignedBytes(copying: frame.payload)
        try unsafe payload.withBytes { bytes throws(EngineError) in try unsafe send(frame, bytes) }
    }

    /// Sends a frame with these bytes instead of its own payload.
    func send(_ frame: BackupFrame, _ payload: UnsafeRawBufferPointer) throws(EngineError) {
        let number = sequence.withLock { sequence in
            defer { sequence.sent += 1 }
            return sequence.sent
        }
        try unsafe socket.send(BackupFrame.encode(frame, sequence: number, payload), milliseconds: milliseconds)
    }

    /// The next frame; nil when the other side has ended.
    /// - Throws: `.refused` with the other side's reason; `.corrupt`, `.protocolViolation`; `.connection`, `.timeout`, `.cancelled`.
    func receive() throws(EngineError) -> BackupFrame? {
        let header = AlignedBytes(count: BackupFrame.headerBytes)
        guard try socket.receive(header, count: BackupFrame.headerBytes, milliseconds: milliseconds) else { return nil }
        let length = try BackupFrame.payloadLength(header, place: place)
        let payload = AlignedBytes(count: length)
        let isWhole = try socket.receive(payload, count: length, milliseconds: milliseconds)
        guard isWhole else {
            throw EngineError(.connection, "the other side has ended in the middle of a frame", place: place)
        }
        let number = sequence.withLock { sequence in
            defer { sequence.received += 1 }
            return sequence.received
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
}
