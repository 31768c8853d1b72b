// The checkpoint of a process that has gone, taken over from its backup.
//
// Invariant: from the take-over on the backup refuses the process that was there before.

import CheckpointCore
import MachineMemory
import Threading
import Units

/// The image and state in a backup, for the process that goes on with them. Used by one thread at a time.
public final class TakenOverImage: Sendable {
    /// Who has taken over: for `RollbackOptions.identity` of the strategy that goes on with this backup.
    public let identity: BackupIdentity
    /// The number of the checkpoint.
    public let epoch: RollbackEpoch
    /// The device state that it was taken with.
    public let state: [UInt8]
    /// The memory's length.
    public let byteLength: ByteCount
    private let connection: FrameConnection

    /// Takes over from whoever has kept checkpoints in the backup. What that process has sent without an end marker is discarded. The
    /// caller has made sure that the process is to be succeeded: it gets no more checkpoints there.
    ///
    /// - Throws: `.refused` when there is no checkpoint; `.connection`, `.timeout`.
    public static func takeOver(
        _ socket: BackupSocket, identity: BackupIdentity = .random(), answerMilliseconds: Int = 30_000
    ) throws(EngineError) -> TakenOverImage {
        let connection = FrameConnection(socket, milliseconds: answerMilliseconds)
        let (epoch, welcome) = try connection.introduce(BackupHello(.successor, identity, byteLength: .zero, name: ""))
        return TakenOverImage(connection, identity, epoch, welcome)
    }

    private init(_ connection: FrameConnection, _ identity: BackupIdentity, _ epoch: RollbackEpoch, _ welcome: BackupWelcome) {
        self.connection = connection
        self.identity = identity
        self.epoch = epoch
        state = welcome.state
        byteLength = welcome.byteLength
    }

    /// Fills memory, which nobody uses, with the checkpoint.
    /// - Throws: `.mismatch` when its length is another; `.connection`, `.timeout`, `.refused`, `.corrupt`.
    public func restore(into memory: GuestMemory) throws(EngineError) {
        guard memory.byteLength == byteLength else {
            throw EngineError(
                .mismatch, "the backup has \(byteLength) bytes of memory and this memory \(memory.byteLength)",
                remedy: "Map memory of that length.", place: memory.name)
        }
        let fetch = try PageFetch(PageRanges(memory.allPages), connection)
        try PageRanges(memory.allPages).forEachPiece(PageCount(UInt64(1))) { piece throws(EngineError) in
            try unsafe fetch.next(piece, into: memory.bytes(of: piece))
        }
    }

    /// Ends the connection; the backup stays this identity's.
    public func close() { connection.close() }
}

extension FrameConnection {
    /// Says who is here and returns what the backup has.
    func introduce(_ hello: BackupHello) throws(EngineError) -> (RollbackEpoch, BackupWelcome) {
        try send(BackupFrame(kind: .hello, payload: hello.encoded()))
        let answer = try receive(.welcome)
        return (answer.epoch, try BackupWelcome(answer.payload, place: place))
    }
}
