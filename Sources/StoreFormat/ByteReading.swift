// Little-endian loads from bytes that nobody vouches for.
//
// Invariant: every load is checked against the span's bounds by the span itself and traps outside
// them, so that decoders check lengths first (`require`) and throw; no Swift struct is ever laid over bytes.

package import Units

extension RawSpan {
    package func u8(_ offset: Int) -> UInt8 { unsafe unsafeLoad(fromByteOffset: offset, as: UInt8.self) }

    package func u16(_ offset: Int) -> UInt16 {
        UInt16(littleEndian: unsafe unsafeLoadUnaligned(fromByteOffset: offset, as: UInt16.self))
    }

    package func u32(_ offset: Int) -> UInt32 {
        UInt32(littleEndian: unsafe unsafeLoadUnaligned(fromByteOffset: offset, as: UInt32.self))
    }

    package func u64(_ offset: Int) -> UInt64 {
        UInt64(littleEndian: unsafe unsafeLoadUnaligned(fromByteOffset: offset, as: UInt64.self))
    }

    package func hash(_ offset: Int) -> Hash128 { Hash128(low: u64(offset), high: u64(offset + 8)) }

    /// A copy of `count` bytes from `offset`.
    package func copy(_ offset: Int, count: Int) -> [UInt8] {
        unsafe extracting(offset..<(offset + count)).withUnsafeBytes { unsafe [UInt8]($0) }
    }

    /// Throws unless the span has `count` bytes from its start.
    package func require(_ count: Int, _ subject: String) throws(FormatError) {
        if byteCount < count {
            throw FormatError(.truncated, subject: subject, reason: "\(byteCount) bytes, at least \(count) needed")
        }
    }

    /// Throws unless the span is exactly `count` bytes.
    package func requireExactly(_ count: Int, _ subject: String) throws(FormatError) {
        if byteCount < count {
            throw FormatError(.truncated, subject: subject, reason: "\(byteCount) bytes, but the fields need \(count)")
        }
        if byteCount > count {
            throw FormatError(
                .wrongLength, subject: subject, reason: "\(byteCount) bytes, but the fields add up to \(count)")
        }
    }

    /// The UTF-8 text of `count` bytes from `offset`.
    package func text(_ offset: Int, count: Int, _ subject: String) throws(FormatError) -> String {
        guard let text = String(validating: copy(offset, count: count), as: UTF8.self) else {
            throw FormatError(.badField, subject: subject, reason: "text that is not UTF-8")
        }
        return text
    }
}

/// Throws `.badField` unless `condition` holds.
package func check(_ condition: Bool, _ subject: String, _ reason: @autoclosure () -> String) throws(FormatError) {
    if !condition { throw FormatError(.badField, subject: subject, reason: reason()) }
}
