// Bytes at a page's border, with fields at fixed places: what records, tables and frames are made in.
//
// Invariant: fields are little-endian; a place outside the bytes is a programmer's mistake.

import PageCodec
import Units

/// Memory of a fixed length that starts at a multiple of 4096, zero at first. Shared by reference: its owner sees to it that uses don't overlap.
@safe final class AlignedBytes: @unchecked Sendable {
    private let all: UnsafeMutableRawBufferPointer
    let count: Int

    init(count: Int) {
        self.count = count
        unsafe all = .allocate(byteCount: count, alignment: pageSize)
        unsafe all.initializeMemory(as: UInt8.self, repeating: 0)
    }

    /// A copy of `bytes`.
    convenience init(copying bytes: [UInt8]) {
        self.init(count: bytes.count)
        put(bytes, at: 0)
    }

    deinit { unsafe all.deallocate() }

    func put(_ value: UInt64, at offset: Int) { unsafe all.storeBytes(of: value.littleEndian, toByteOffset: offset, as: UInt64.self) }
    func put(_ value: UInt32, at offset: Int) { unsafe all.storeBytes(of: value.littleEndian, toByteOffset: offset, as: UInt32.self) }
    func put(_ value: UInt16, at offset: Int) { unsafe all.storeBytes(of: value.littleEndian, toByteOffset: offset, as: UInt16.self) }
    func put(_ value: Hash128, at offset: Int) {
        put(value.low, at: offset)
        put(value.high, at: offset + 8)
    }
    func put(_ bytes: [UInt8], at offset: Int) { unsafe bytes.withUnsafeBytes { unsafe put($0, at: offset) } }
    func put(_ bytes: UnsafeRawBufferPointer, at offset: Int) {
        unsafe UnsafeMutableRawBufferPointer(rebasing: all[offset..<offset + bytes.count]).copyMemory(from: bytes)
    }
    func put(_ value: UInt8, at offset: Int) { unsafe all[offset] = value }

    func u8(_ offset: Int) -> UInt8 { unsafe all[offset] }
    func u64(_ offset: Int) -> UInt64 { UInt64(littleEndian: unsafe all.loadUnaligned(fromByteOffset: offset, as: UInt64.self)) }
    func u32(_ offset: Int) -> UInt32 { UInt32(littleEndian: unsafe all.loadUnaligned(fromByteOffset: offset, as: UInt32.self)) }
    func u16(_ offset: Int) -> UInt16 { UInt16(littleEndian: unsafe all.loadUnaligned(fromByteOffset: offset, as: UInt16.self)) }
    func hash(_ offset: Int) -> Hash128 { Hash128(low: u64(offset), high: u64(offset + 8)) }

    /// A part of the bytes, or all of them. They live at least as long as `body` runs.
    func withBytes<R, E: Error>(_ range: Range<Int>? = nil, _ body: (UnsafeRawBufferPointer) throws(E) -> R) throws(E) -> R {
        try unsafe withMutableBytes(range) { bytes throws(E) in try unsafe body(UnsafeRawBufferPointer(bytes)) }
    }
    func withMutableBytes<R, E: Error>(
        _ range: Range<Int>? = nil, _ body: (UnsafeMutableRawBufferPointer) throws(E) -> R
    ) throws(E) -> R {
        defer { withExtendedLifetime(self) {} }
        return try unsafe body(UnsafeMutableRawBufferPointer(rebasing: all[range ?? 0..<count]))
    }
    var isZero: Bool { unsafe withBytes { unsafe PageCodec.isZero($0) } }
    /// The hash of a part, or of all.
    func hash(of range: Range<Int>? = nil) -> Hash128 { unsafe withBytes(range) { unsafe hash128($0) } }
    /// A copy of a part.
    func copy(_ range: Range<Int>) -> [UInt8] { unsafe withBytes(range) { unsafe [UInt8]($0) } }
}
