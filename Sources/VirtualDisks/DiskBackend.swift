// What a virtual disk stands on: an image that is read and written asynchronously.
//
// Invariants:
// - Every request is completed exactly once, by whatever thread, perhaps before the call that made it has returned.
// - A write that has completed is seen by every read that begins later. Requests that overlap in time may be done in any order: who wants
//   an order waits for completions.

import CheckpointCore
import MachineMemory
import Threading
import Units

/// Told once what became of a request.
public typealias DiskCompletion = @Sendable (Result<Void, EngineError>) -> Void

/// An image: a file, a block device, or what tests put in its place. Thread-safe.
public protocol DiskBackend: Sendable {
    /// For messages: a path.
    var name: String { get }
    /// A multiple of 512; constant.
    var byteLength: ByteCount { get }
    /// Reads as many bytes as `bytes` has. What it holds after a failure is undefined.
    func read(at offset: DiskOffset, into bytes: TransferBytes, _ completion: @escaping DiskCompletion)
    /// Writes all of `bytes`. Not durable until a later `flush` has completed.
    func write(at offset: DiskOffset, from bytes: TransferBytes, _ completion: @escaping DiskCompletion)
    /// Makes every write that has completed before this call durable.
    func flush(_ completion: @escaping DiskCompletion)
}

/// Bytes that a backend transfers, and who keeps them mapped meanwhile.
@safe public struct TransferBytes: @unchecked Sendable {
    /// The bytes. Of a machine's memory they are those that devices use: writes to them do not trap.
    public let bytes: UnsafeMutableRawBufferPointer
    private let owner: any AnyObject & Sendable

    /// `owner` must keep `bytes` valid as long as it lives.
    public init(_ bytes: UnsafeMutableRawBufferPointer, owner: any AnyObject & Sendable) {
        unsafe self.bytes = bytes
        self.owner = owner
    }

    /// A part, counted from the start of these bytes.
    public func part(_ range: Range<Int>) -> TransferBytes {
        unsafe TransferBytes(UnsafeMutableRawBufferPointer(rebasing: bytes[range]), owner: owner)
    }
}

extension DiskBackend {
    /// Reads and waits for it. Not to be called where completions are made.
    func readNow(at offset: DiskOffset, into bytes: TransferBytes) throws(EngineError) {
        try Self.wait { read(at: offset, into: bytes, $0) }
    }

    /// Writes and waits for it.
    func writeNow(at offset: DiskOffset, from bytes: TransferBytes) throws(EngineError) {
        try Self.wait { write(at: offset, from: bytes, $0) }
    }

    /// Flushes and waits for it.
    func flushNow() throws(EngineError) { try Self.wait { flush($0) } }

    private static func wait(_ start: (@escaping DiskCompletion) -> Void) throws(EngineError) {
        let outcome = Lock<Result<Void, EngineError>?>(nil)
        start { result in
            outcome.withLock { $0 = result }
            outcome.wake()
        }
        try outcome.waitFor { $0 }.get()
    }
}
