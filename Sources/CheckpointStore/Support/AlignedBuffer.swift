// Private memory for I/O, aligned so that direct writes can take it as it is.

import Glibc
import Units

/// A fixed piece of private memory at a page boundary. Its content starts undefined but initialised.
@safe package final class AlignedBuffer: @unchecked Sendable {
    package let bytes: UnsafeMutableRawBufferPointer

    /// Allocates `count` bytes, a positive number.
    package init(count: Int) {
        precondition(count > 0)
        unsafe bytes = .allocate(byteCount: count, alignment: pageSize)
    }

    deinit { unsafe bytes.deallocate() }

    var count: Int { unsafe bytes.count }
    package var base: UnsafeMutableRawPointer { unsafe bytes.baseAddress! }

    /// Sets [from, to) to zero.
    func clear(_ range: Range<Int>) {
        guard !range.isEmpty else { return }
        unsafe memset(base + range.lowerBound, 0, range.count)
    }
}

/// `value` rounded up to a multiple of `unit`.
@inline(__always) func roundUp(_ value: Int, to unit: Int) -> Int { (value + unit - 1) / unit * unit }
