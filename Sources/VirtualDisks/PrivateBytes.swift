// Memory of our own for bytes on their way.

import CheckpointCore
import Units

/// Bytes that nobody else changes, zero at first.
@safe final class PrivateBytes: @unchecked Sendable {
    let bytes: UnsafeMutableRawBufferPointer

    init(_ count: Int) {
        unsafe bytes = .allocate(byteCount: count, alignment: 4096)
        unsafe bytes.initializeMemory(as: UInt8.self, repeating: 0)
    }

    deinit { unsafe bytes.deallocate() }

    /// A part of them.
    func part(_ range: Range<Int>) -> UnsafeMutableRawBufferPointer { unsafe UnsafeMutableRawBufferPointer(rebasing: bytes[range]) }
    /// All of them, for transfers, which keep them alive.
    var transferAll: TransferBytes { unsafe TransferBytes(bytes, owner: self) }
}
