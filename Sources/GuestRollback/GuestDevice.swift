// What a guest's device is to its I/O queues.
//
// Invariants:
// - A device never sees a guest's memory: its buffers are the queues' own.
// - Each call leads to exactly one completion, or to none ever when the device hangs.

import CheckpointCore
import Units

/// Memory for one transfer, outside of every guest. Its bytes stay where they are as long as it lives.
///
/// Whoever fills it has done so before he hands it on; from then on nobody changes it.
@safe public final class TransferBuffer: @unchecked Sendable {
    /// Aligned for direct I/O: 4096 bytes.
    public let bytes: UnsafeMutableRawBufferPointer

    /// Memory of unknown content.
    public init(byteLength: ByteCount) {
        unsafe bytes = .allocate(byteCount: byteLength.int, alignment: pageSize)
    }

    deinit { unsafe bytes.deallocate() }

    public var byteLength: ByteCount { unsafe ByteCount(bytes.count) }
}

/// A device of one guest, or one half of a mirror. Thread-safe.
///
/// A completion may come on any thread, also before the call has returned. An error means that the device has failed, not that the
/// request was wrong: requests are checked before they get here, and lie on the device, in whole blocks.
public protocol GuestDevice: Sendable {
    typealias Completion = @Sendable (Result<Void, EngineError>) -> Void

    /// What people know it by. Two devices of one controller have different names.
    var name: String { get }
    var byteLength: ByteCount { get }
    /// Transfers are multiples of this, at multiples of it: 512 or more.
    var blockLength: ByteCount { get }
    /// Fills the buffer.
    func read(at offset: DeviceOffset, into buffer: TransferBuffer, completion: @escaping Completion)
    /// Writes the buffer. When it completes the device has the bytes, not just this system: an error later could not be told to anybody.
    /// - Parameter id: the guest's request, for those who keep a record.
    func write(_ id: RequestID, at offset: DeviceOffset, _ buffer: TransferBuffer, completion: @escaping Completion)
    /// Completes when everything that completed before survives the loss of power.
    func flush(completion: @escaping Completion)
}
