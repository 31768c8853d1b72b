// Disks as the reference machine uses them: asynchronous, their data going straight into and out of guest memory.
//
// Invariants:
// - Requests whose ranges on the disk overlap have the results that they would have had one after the other, in the order in which
//   they were submitted.
// - Each request is completed exactly once; data that was read is in the buffer by then.

import CheckpointCore
import MachineMemory
import Units

/// A piece of guest memory that a disk reads from or writes into.
public struct DMABuffer: Sendable {
    public let memory: GuestMemory
    /// In `memory`.
    public let offset: ByteCount
    public let byteCount: ByteCount

    public init(memory: GuestMemory, offset: ByteCount, byteCount: ByteCount) {
        precondition(byteCount <= memory.byteLength && offset <= memory.byteLength - byteCount, "within the memory")
        self.memory = memory
        self.offset = offset
        self.byteCount = byteCount
    }

    /// The bytes as devices see them: writes never trap. Valid as long as `memory` lives.
    public var bytes: UnsafeMutableRawBufferPointer {
        unsafe UnsafeMutableRawBufferPointer(rebasing: memory.deviceBytes[offset.int..<(offset + byteCount).int])
    }
}

/// What a disk is asked for.
public enum DMAOperation: UInt32, Sendable {
    case read = 1
    case write = 2
    /// What was written before is durable when it completes.
    case flush = 3
}

/// A disk of the reference machine.
public protocol DMADisk: Sendable {
    /// A multiple of 512.
    var byteLength: ByteCount { get }

    /// Starts a request and returns. `completion` is called on any thread, also before this returns, exactly once.
    ///
    /// - Parameters:
    ///   - offset: a multiple of 512, 0 for a flush.
    ///   - buffer: nil for a flush; otherwise a multiple of 512 bytes, all within the disk.
    func submit(
        _ operation: DMAOperation, at offset: ByteCount, _ buffer: DMABuffer?,
        completion: @escaping @Sendable (Result<Void, EngineError>) -> Void)
}

/// The unit in which guests address disks.
let sectorSize = ByteCount(512)
