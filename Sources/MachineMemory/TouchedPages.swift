// Which pages of a memory were ever touched: all others are zero and need neither be copied nor saved.
//
// Invariant: a page that holds something is always among the answer; one that holds zeros may be.

import CLinux
import CLiveMemory
import CheckpointCore
import Glibc
import Units

extension GuestMemory {
    /// Pages that may hold something. Costs a scan of the page tables, or of the extents of the memory's file: about a millisecond for each GiB.
    func touchedPages() throws(EngineError) -> PageRanges {
        if let descriptor { return try dataPages(descriptor) }
        // Pages of shared memory can be in its file without being in this mapping's page tables; pages in swap look like the marks of
        // pages that were protected without being there.
        guard sharing == .anonymous, try Self.swappedKibibytes() == 0 else { return PageRanges(allPages) }
        let pagemap = OwnedDescriptor(owning: try checked(unsafe ck_open("/proc/self/pagemap", 0), "open the page tables", place: name))
        let base = unsafe UInt64(UInt(bitPattern: bytes.baseAddress!))
        do throws(PagemapScanError) {
            return pages(at: try PagemapScan.addresses(pagemap.number, CK_SCAN_PRESENT, within: base..<base + byteLength.rawValue))
        } catch {
            // Kernels without this scan: everything may have been touched.
            if error.number == ENOTTY { return PageRanges(allPages) }
            throw EngineError(system: "scan the page tables", error.number, place: name)
        }
    }

    /// The pages at addresses of this process within the memory.
    func pages(at addresses: [Range<UInt64>]) -> PageRanges {
        let base = unsafe UInt64(UInt(bitPattern: bytes.baseAddress!))
        let size = UInt64(pageSize)
        return PageRanges(addresses.map { PageIndex(($0.lowerBound - base) / size)..<PageIndex(($0.upperBound - base) / size) })
    }

    private func dataPages(_ descriptor: Int32) throws(EngineError) -> PageRanges {
        var result = PageRanges()
        var start: UInt64 = 0
        while start < byteLength.rawValue {
            var stop: UInt64 = 0
            if try unsafe checked(ck_next_data(descriptor, &start, &stop, byteLength.rawValue), "look for holes", place: name) == 0 { break }
            result.append(wholeUnits(PageIndex(start / UInt64(pageSize))..<PageIndex((stop + UInt64(pageSize) - 1) / UInt64(pageSize))))
            start = stop
        }
        return result
    }

    private static func swappedKibibytes() throws(EngineError) -> UInt64 {
        try MappedKind.number("/proc/self/status", "VmSwap:") ?? 0
    }
}
