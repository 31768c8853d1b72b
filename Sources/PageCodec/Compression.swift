// LZ4 blocks: how a page run is made smaller.
//
// Invariant: a compressed block is always smaller than what it holds; what would not get smaller is
// stored raw. Decompression never writes outside its destination, whatever the input. What a malformed
// block decodes to is undefined (LZ4 lets a match of distance 0 repeat what stood in the destination), so
// that only blocks whose checksum was verified are worth decoding.

import CLZ4

/// Compresses page runs. Owns LZ4's working state (16 KiB), so that no call allocates.
/// One thread at a time.
@safe public struct RunCompressor: ~Copyable, @unchecked Sendable {
    private let state: UnsafeMutableRawPointer

    public init() {
        unsafe state = .allocate(byteCount: Int(LZ4_sizeofState()), alignment: 16)
    }

    deinit { unsafe state.deallocate() }

    /// Compresses `src` into the start of `dst` as one LZ4 block.
    ///
    /// - Returns: the length of the block; nil when it would not be smaller than `src` or does not fit
    ///   `dst`, whose contents are then undefined.
    public mutating func compress(_ src: UnsafeRawBufferPointer, into dst: UnsafeMutableRawBufferPointer) -> Int? {
        let capacity = min(dst.count, src.count - 1)
        guard capacity > 0, let from = src.baseAddress, let to = dst.baseAddress else { return nil }
        precondition(src.count <= Int(LZ4_MAX_INPUT_SIZE), "an LZ4 block holds less than 2 GiB")
        let length = unsafe LZ4_compress_fast_extState(
            state, from.assumingMemoryBound(to: CChar.self), to.assumingMemoryBound(to: CChar.self),
            CInt(src.count), CInt(capacity), 1)
        return length > 0 ? Int(length) : nil
    }
}

/// Decompresses one LZ4 block that must fill `dst` exactly.
///
/// - Returns: false when `src` is not a block that decodes to exactly `dst.count` bytes; the contents
///   of `dst` are then undefined.
public func decompress(_ src: UnsafeRawBufferPointer, into dst: UnsafeMutableRawBufferPointer) -> Bool {
    guard let from = src.baseAddress, let to = dst.baseAddress, src.count > 0, dst.count > 0,
        let sourceLength = CInt(exactly: src.count), let length = CInt(exactly: dst.count)
    else { return false }
    return unsafe LZ4_decompress_safe(
        from.assumingMemoryBound(to: CChar.self), to.assumingMemoryBound(to: CChar.self), sourceLength, length)
        == length
}

/// Decompresses the first `dst.count` bytes of an LZ4 block that decodes to `totalLength` bytes, which
/// is cheaper than decoding all of it.
///
/// What follows the prefix is not looked at: a block that is malformed behind it is not noticed.
/// - Returns: false when `src` does not yield `dst.count` bytes; the contents of `dst` are then undefined.
public func decompressPrefix(
    _ src: UnsafeRawBufferPointer, into dst: UnsafeMutableRawBufferPointer, totalLength: Int
) -> Bool {
    precondition(dst.count <= totalLength, "a prefix is no longer than the whole")
    if dst.count == totalLength { return unsafe decompress(src, into: dst) }
    guard let from = src.baseAddress, let to = dst.baseAddress, src.count > 0, dst.count > 0,
        let sourceLength = CInt(exactly: src.count), let length = CInt(exactly: dst.count)
    else { return false }
    return unsafe LZ4_decompress_safe_partial(
        from.assumingMemoryBound(to: CChar.self), to.assumingMemoryBound(to: CChar.self), sourceLength, length, length)
        == length
}
