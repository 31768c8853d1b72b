// The backup's side: staging, and the image of the last checkpoint.
//
// Invariants:
// - Staged pages count when their end marker is accepted, all at once, and not before.
// - One process keeps its checkpoints here. When another has taken over, frames of the one before are refused: it can't know that it is dead.
// - The image survives every process but this one; on a medium, this one too.

import CLinux
import CheckpointCore
import Media
import Threading
import Units

/// How a backup keeps its image.
public struct BackupOptions: Sendable {
    /// Where the image outlives the backup process as well: like `RollbackOptions.medium`.
    public var medium: (any Medium)?
    /// The longest device state that an image on a medium has room for.
    public var stateCapacity = RollbackOptions().stateCapacity
    /// How many pages can be staged for one checkpoint; nil: as many as the memory has.
    public var stagingCapacity: PageCount?
    /// The longest memory that it takes.
    public var longestMemory = ByteCount.gibibytes(64)

    public init() {}
}

/// A backup for one memory. Thread-safe.
public final class BackupServer: Sendable {
    private let options: BackupOptions
    private let state: Lock<BackupState>
    private let sockets = Lock<[ObjectIdentifier: BackupSocket]?>([:])

    /// Goes on with the image that the medium holds, if any.
    /// - Throws: what opening the medium's image can throw.
    public init(_ options: BackupOptions = BackupOptions()) throws(EngineError) {
        self.options = options
        state = Lock(try BackupState(options))
    }

    /// The number of the last checkpoint.
    public var epoch: RollbackEpoch { state.withLock { $0.epoch } }

    /// Serves a connection until the other side ends it, on the calling thread. Connections can be served side by side: one that takes over
    /// must not wait for the one before it.
    ///
    /// - Throws: why it was ended here: `.refused`, `.protocolViolation`, `.corrupt`, `.connection`, `.store`, `.cancelled` after `close`.
    ///   The other side has been told; the image is that of the last accepted end marker.
    public func serve(_ socket: BackupSocket) throws(EngineError) {
        let isClosed = sockets.withLock { sockets in
            sockets?[ObjectIdentifier(socket)] = socket
            return sockets == nil
        }
        defer {
            sockets.withLock { _ = $0?.removeValue(forKey: ObjectIdentifier(socket)) }
            socket.close()
        }
        if isClosed { throw EngineError(.cancelled, "the backup was closed", place: socket.place) }
        let connection = FrameConnection(socket, milliseconds: -1)
        var number: Int?
        do throws(EngineError) {
            while let frame = try connection.receive() { try answer(frame, connection, &number) }
        } catch {
            tell(error, connection)
            throw error
        }
    }

    /// Tells the other side why the connection ends, as far as it still listens: the error is thrown here in any case.
    private func tell(_ error: EngineError, _ connection: FrameConnection) {
        try? connection.send(BackupFrame(kind: .refused, payload: [UInt8](error.description.utf8.prefix(1000))))
        try? connection.flush()
    }

    private func answer(_ frame: BackupFrame, _ connection: FrameConnection, _ number: inout Int?) throws(EngineError) {
        let place = connection.place
        guard let known = number else {
            guard frame.kind == .hello else { throw BackupFrame.violation("\(frame.kind) before hello", place) }
            let hello = try BackupHello(frame.payload, place: place)
            let (admitted, epoch, welcome) = try state.withLock { state throws(EngineError) in
                (try state.admit(hello, options, place), state.epoch, state.welcome(options))
            }
            number = admitted
            return try connection.send(BackupFrame(kind: .welcome, epoch: epoch, payload: welcome.encoded()))
        }
        switch frame.kind {
        case .pages: try state.withLock { state throws(EngineError) in try state.stage(frame, from: known, options, place) }
        case .discard: try state.withLock { state throws(EngineError) in try state.discard(from: known, place) }
        case .end:
            try state.withLock { state throws(EngineError) in try state.seal(frame, from: known, options, place) }
            // Accepted first: the machine goes on while the staged pages drain into the image.
            try connection.send(BackupFrame(kind: .accepted, epoch: frame.epoch))
            try connection.flush()
            try state.withLock { state throws(EngineError) in try state.drain() }
        case .fetch:
            let payload = try state.withLock { state throws(EngineError) in try state.read(frame.pages, for: known, place) }
            try connection.send(BackupFrame(kind: .pages, epoch: frame.epoch, pages: frame.pages, payload: payload))
        case .hello, .welcome, .accepted, .refused: throw BackupFrame.violation("\(frame.kind) in the middle", place)
        }
    }

    /// Ends all connections. The image stays on its medium.
    public func close() {
        let open = sockets.withLock { sockets in
            defer { sockets = nil }
            return sockets
        }
        guard let open else { return }
        for socket in open.values { socket.stop() }
        state.withLock { $0.close() }
    }
}
