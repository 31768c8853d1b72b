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
        // Pages of shared memory can be in its file without being in this mapping's page tables.
        guard sharing == .anonymous else { return PageRanges(allPages) }
        let pagemap = OwnedDescriptor(owning: try checked(unsafe ck_open("/proc/self/pagemap", 0), "open the page tables", place: name))
        let base = unsafe UInt64(UInt(bitPattern: bytes.baseAddress!))
        let found: [ck_scanned]
        do throws(PagemapScanError) {
            // Huge pages of the pool are neither swapped nor, as a rule, moved; reading one that is not there would take it.
            found = try PagemapScan.scan(pagemap.number, pages == .huge ? CK_SCAN_PRESENT : CK_SCAN_ANYTHING, within: base..<base + byteLength.rawValue)
        } catch {
            // Kernels without this scan: everything may have been touched.
            if error.number == ENOTTY { return PageRanges(allPages) }
            throw EngineError(system: "scan the page tables", error.number, place: name)
        }
        var touched: [Range<PageIndex>] = []
        for piece in found {
            let range = PageIndex((piece.start - base) / UInt64(pageSize))..<PageIndex((piece.end - base) / UInt64(pageSize))
            if piece.categories & ck_category_present != 0 {
                touched.append(range)
            } else {
                touched += try unmarked(range, pagemap)
            }
        }
        return PageRanges(touched)
    }

    /// Of pages that are not there right now, those that are somewhere else: in swap, or on their way from one place to another. The others are
    /// marked as protected and were never there.
    private func unmarked(_ range: Range<PageIndex>, _ pagemap: OwnedDescriptor) throws(EngineError) -> [Range<PageIndex>] {
        let base = unsafe UInt64(UInt(bitPattern: bytes.baseAddress!)) / UInt64(pageSize)
        var result: [Range<PageIndex>] = []
        var entries = [UInt64](repeating: 0, count: 8192)
        var start = range.lowerBound.rawValue
        while start < range.upperBound.rawValue {
            let count = min(UInt64(entries.count), range.upperBound.rawValue - start)
            let (offset, length) = ((base + start) * 8, Int(count) * 8)
            let got = unsafe entries.withUnsafeMutableBytes { unsafe ck_read_at(pagemap.number, $0.baseAddress!, length, offset) }
            try checked(got, "read the page tables", place: name)
            guard got == length else { throw EngineError(.ioFailed, "the page tables end too early", place: name) }
            for index in 0..<Int(count) where !ck_is_marker(entries[index]) {
                result.append(PageIndex(start + UInt64(index))..<PageIndex(start + UInt64(index) + 1))
            }
            start += count
        }
        return result
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
}
