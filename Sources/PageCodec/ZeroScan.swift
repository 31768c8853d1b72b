// Finding pages that need not be stored: those that are all zero.

public import CPageCodec

/// Whether all of `bytes` are zero; true for none. At memory speed, and stops at the first byte that
/// is not (in chunks). Any alignment.
@inlinable public func isZero(_ bytes: UnsafeRawBufferPointer) -> Bool {
    guard let start = bytes.baseAddress else { return true }
    return unsafe ckpagecodec_is_zero(start, bytes.count)
}
