// Scans of page tables, of this process or another.
//
// Invariant: a scan answers every page that was in the state asked for during all of it.

import CLiveMemory
import Glibc

/// Why the kernel refused a scan: an errno value.
package struct PagemapScanError: Error { package var number: Int32 }

/// PAGEMAP_SCAN, Linux 6.7 and newer.
package enum PagemapScan {
    private static let capacity = 4096

    /// The addresses of pages in a state. See `scan`.
    package static func addresses(_ pagemap: Int32, _ what: ck_scan, within range: Range<UInt64>) throws(PagemapScanError) -> [Range<UInt64>] {
        try scan(pagemap, what, within: range).map { $0.start..<$0.end }
    }

    /// The pages in a state; some may come twice, and then not in order.
    ///
    /// - Parameter pagemap: an open /proc/PID/pagemap.
    /// - Throws: ENOTTY on older kernels; EPERM when a range is not under asynchronous protection, where it has to be; ENODATA when the
    ///   scan does not get on.
    package static func scan(_ pagemap: Int32, _ what: ck_scan, within range: Range<UInt64>) throws(PagemapScanError) -> [ck_scanned] {
        var result: [ck_scanned] = []
        var found = [ck_scanned](repeating: ck_scanned(), count: capacity)
        var start = range.lowerBound
        while start < range.upperBound {
            let before = start
            let count = unsafe found.withUnsafeMutableBufferPointer {
                unsafe ck_scan_pages(pagemap, what, &start, range.upperBound, $0.baseAddress!, $0.count)
            }
            guard count >= 0 else { throw PagemapScanError(number: -count) }
            for piece in found[..<Int(count)] {
                guard range.lowerBound <= piece.start, piece.start < piece.end, piece.end <= range.upperBound else {
                    throw PagemapScanError(number: ERANGE)
                }
                result.append(piece)
            }
            guard start > before else { throw PagemapScanError(number: ENODATA) }
        }
        // A huge page that is split while the kernel walks over it is walked over once more, so that its pages come again.
        return result
    }
}
