// The hash functions of the format: XXH3 with 128 bits for blocks and pages, with 64 bits for region
// keys. A thin layer; on x86-64 the library's run-time dispatch to AVX2/AVX-512 is 2.5 to 10 times as
// fast as its baseline at 4 KiB and 64 KiB.
//
// Invariant: results are the same on every machine; only the speed differs.

import CPageCodec
public import CXXHash
public import Units

/// `H128`: XXH3 with 128 bits and seed 0, for the checksums of blocks and slots. Any length, 0 too.
@inlinable public func hash128(_ bytes: UnsafeRawBufferPointer) -> Hash128 {
    #if arch(x86_64)
    let hash = unsafe XXH3_128bits_dispatch(bytes.baseAddress, bytes.count)
    #else
    let hash = unsafe XXH3_128bits(bytes.baseAddress, bytes.count)
    #endif
    return Hash128(low: hash.low64, high: hash.high64)
}

/// `H128` as a C routine: leaves the hash in the 16 bytes at its first argument, the low half first. Made for scans of mappings
/// that may fault: it may be abandoned in the middle.
public let scanHash128: @convention(c) (UnsafeMutableRawPointer?, UnsafeRawPointer?, Int, UInt32) -> UnsafeMutableRawPointer? =
    unsafe ckpagecodec_scan_hash128

/// `H128` of a span of bytes.
@inlinable public func hash128(_ bytes: RawSpan) -> Hash128 {
    unsafe bytes.withUnsafeBytes { unsafe hash128($0) }
}

/// `P128`: XXH3 with 128 bits of the 4096 bytes at `page`, under the store's secret seed.
@inlinable public func pageHash(_ page: UnsafeRawPointer, seed: UInt64) -> Hash128 {
    #if arch(x86_64)
    let hash = unsafe XXH3_128bits_withSeed_dispatch(page, pageSize, seed)
    #else
    let hash = unsafe XXH3_128bits_withSeed(page, pageSize, seed)
    #endif
    return Hash128(low: hash.low64, high: hash.high64)
}

/// `H64` of a region's name in UTF-8: the key under which a checkpoint's blocks name the region.
public func regionKey(_ name: String) -> RegionKey {
    var name = name
    return name.withUTF8 { utf8 in
        #if arch(x86_64)
        RegionKey(unsafe XXH3_64bits_dispatch(utf8.baseAddress, utf8.count))
        #else
        RegionKey(unsafe XXH3_64bits(utf8.baseAddress, utf8.count))
        #endif
    }
}
