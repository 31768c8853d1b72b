// What the page tables of another process say about a block of its memory.

import CLiveMemory
import CheckpointCore
import Glibc
import Units

/// Scans of one block. Thread-safe.
final class PageTableScan: Sendable {
    private let block: SharedMemoryBlock
    private let pagemap: OwnedDescriptor
    private static let capacity = 4096

    init(_ block: SharedMemoryBlock) throws(EngineError) {
        self.block = block
        pagemap = try block.process.open("pagemap")
    }

    /// The pages of `range` in that state. Throws `.busy` when a part of the range is not under asynchronous protection and should be.
    func pages(_ what: ck_scan, within range: Range<PageIndex>) throws(EngineError) -> PageRanges {
        var result = PageRanges()
        let addresses = block.addresses(of: range)
        var found = [ck_scanned](repeating: ck_scanned(), count: Self.capacity)
        var start = addresses.lowerBound.rawValue
        while start < addresses.upperBound.rawValue {
            let before = start
            let count = unsafe found.withUnsafeMutableBufferPointer {
                unsafe ck_scan_pages(pagemap.number, what, &start, addresses.upperBound.rawValue, $0.baseAddress!, $0.count)
            }
            if count < 0 { throw error(-count) }
            for scanned in found[..<Int(count)] {
                guard let first = block.page(at: TargetAddress(scanned.start)), let last = block.page(at: TargetAddress(scanned.end - 1)) else {
                    throw EngineError(.protocolViolation, "the kernel names pages outside of the scanned range", place: block.process.place)
                }
                result.append(first..<last + PageCount(1 as UInt64))
            }
            guard start > before else {
                throw EngineError(.protocolViolation, "the kernel's scan does not advance", place: block.process.place)
            }
        }
        return result
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
