// Page-aligned memory for copies.
//
// Invariant: all of it is there from the start, so that nothing faults when it is first used.

import Glibc
import Units

/// Page-aligned memory of our own.
@safe package final class PageBuffer: @unchecked Sendable {
    package let bytes: UnsafeMutableRawBufferPointer

    /// Room for so many pages, all of them there: nothing faults when it is first used.
    package init(pages: PageCount) {
        let count = max(1, pages.bytes.int)
        unsafe bytes = .allocate(byteCount: count, alignment: pageSize)
        unsafe memset(bytes.baseAddress!, 1, count)
    }

    deinit { unsafe bytes.deallocate() }

    /// `count` pages from page `first` of the buffer on.
    package func pages(from first: Int, _ count: Int) -> UnsafeMutableRawBufferPointer {
        unsafe UnsafeMutableRawBufferPointer(rebasing: bytes[first * pageSize..<(first + count) * pageSize])
    }
}
