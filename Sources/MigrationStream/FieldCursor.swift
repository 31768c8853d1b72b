// Reading and appending the big-endian fields of the stream.
//
// Invariant: a cursor never reads outside its window: what is not there yet is nil, and the caller goes back to where
// its element started.

import Units

/// Walks over a window of bytes that outlives it.
@safe struct FieldCursor {
    private let window: UnsafeRawBufferPointer
    /// The next byte to be read, counted from the window's start.
    var position = 0

    init(_ window: UnsafeRawBufferPointer) { unsafe self.window = unsafe window }

    var remaining: Int { unsafe window.count - position }

    mutating func u8() -> UInt8? {
        guard remaining >= 1 else { return nil }
        defer { position += 1 }
        return unsafe window[position]
    }

    mutating func u16() -> UInt16? {
        guard remaining >= 2 else { return nil }
        defer { position += 2 }
        return unsafe UInt16(bigEndian: window.loadUnaligned(fromByteOffset: position, as: UInt16.self))
    }

    mutating func u32() -> UInt32? {
        guard remaining >= 4 else { return nil }
        defer { position += 4 }
        return unsafe UInt32(bigEndian: window.loadUnaligned(fromByteOffset: position, as: UInt32.self))
    }

    @inline(__always) mutating func u64() -> UInt64? {
        guard remaining >= 8 else { return nil }
        defer { position += 8 }
        return unsafe UInt64(bigEndian: window.loadUnaligned(fromByteOffset: position, as: UInt64.self))
    }

    /// The next `count` bytes, which live as long as the window.
    @inline(__always) mutating func take(_ count: Int) -> UnsafeRawBufferPointer? {
        guard remaining >= count else { return nil }
        defer { position += count }
        return unsafe UnsafeRawBufferPointer(rebasing: window[position..<(position + count)])
    }

    /// A byte with a length, and as many bytes.
    mutating func countedBytes() -> UnsafeRawBufferPointer? {
        guard let count = u8() else { return nil }
        return unsafe take(Int(count))
    }
}

extension Array<UInt8> {
    /// Appends an integer, the most significant byte first.
    mutating func appendBigEndian(_ value: some FixedWidthInteger) {
        unsafe Swift.withUnsafeBytes(of: value.bigEndian) { unsafe append(contentsOf: $0) }
    }

    /// Appends a length byte and the text; one of more than 255 bytes is a programmer's mistake.
    mutating func appendCounted(_ text: String) {
        precondition(text.utf8.count <= StreamLayout.maximumNameBytes, "a name of more than 255 bytes")
        append(UInt8(text.utf8.count))
        append(contentsOf: text.utf8)
    }
}
