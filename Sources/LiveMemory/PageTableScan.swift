// What the page tables of another process say about a block of its memory.

import CLiveMemory
import CheckpointCore
import Glibc
import MachineMemory
import Units

/// Scans of one block. Thread-safe.
final class PageTableScan: Sendable {
    private let block: SharedMemoryBlock
    private let pagemap: OwnedDescriptor

    init(_ block: SharedMemoryBlock) throws(EngineError) {
        self.block = block
        pagemap = try block.process.open("pagemap")
    }

    /// The pages of `range` in that state. Throws `.busy` when a part of the range is not under asynchronous protection and should be.
    func pages(_ what: ck_scan, within range: Range<PageIndex>) throws(EngineError) -> PageRanges {
        let addresses = block.addresses(of: range)
        do throws(PagemapScanError) {
            let found = try PagemapScan.addresses(
                pagemap.number, what, within: addresses.lowerBound.rawValue..<addresses.upperBound.rawValue)
            let first = block.mapping.addresses.lowerBound
            return PageRanges(
                found.map {
                    PageIndex((TargetAddress($0.lowerBound) - first).rawValue / UInt64(pageSize))
                        ..< PageIndex((TargetAddress($0.upperBound) - first).rawValue / UInt64(pageSize))
                })
        } catch { throw self.error(error.number) }
    }

    private func error(_ number: Int32) -> EngineError {
        let place = block.process.place
        switch number {
        case EPERM:
            return EngineError(
                .busy, "the memory's writes are not tracked any more: somebody has ended it", remedy: "Take a full checkpoint.", place: place)
        case ENOTTY:
            return EngineError(.unsupported, "the kernel can't scan page tables", remedy: "This needs Linux 6.7 or newer.", place: place)
        case ESRCH: return EngineError(.exited, "the process has ended", place: place)
        default: return EngineError(system: "scan the process's page tables", number, place: place)
        }
    }
}
