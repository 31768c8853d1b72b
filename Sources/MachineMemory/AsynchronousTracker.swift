// Which pages of this process's memory were written, noted by the kernel without keeping any writer waiting.
//
// Pages are write-protected in a way that lets writes through and only notes them in the page tables; a scan (PAGEMAP_SCAN) collects the
// notes and protects again, in one step for each page.
//
// Invariants:
// - A write through `memory.bytes` is reported by the first scan after it. Pages may be reported that were not changed.
// - Not seen: writes through other mappings, those of devices into pages prepared for them before, and memory that is given back to the system
//   (`madvise`), which becomes zero without a write.

import CLinux
import CLiveMemory
import CheckpointCore
import Glibc
import Threading
import Units

/// Tracks the writes to one memory. Thread-safe; scans follow one another.
final class AsynchronousTracker: Sendable {
    private let memory: GuestMemory
    private let userfault: OwnedDescriptor
    private let pagemap: OwnedDescriptor
    private let isClosed = Lock(false)

    /// Registers the memory; nothing is tracked before `arm`.
    /// - Throws: `.unsupported` when the kernel has no asynchronous write protection; what opening a userfaultfd throws; `.busy`.
    init(_ memory: GuestMemory) throws(EngineError) {
        self.memory = memory
        let kernel = try KernelFeatures.current()
        guard kernel.tracksAsynchronously, kernel.protectsUntouched else {
            throw EngineError(
                .unsupported, "this kernel can't note writes without keeping the writer waiting",
                remedy: "Use copy on write instead, or Linux 6.7 or newer.", place: memory.name)
        }
        userfault = try KernelFeatures.openUserfault()
        pagemap = OwnedDescriptor(owning: try checked(unsafe ck_open("/proc/self/pagemap", 0), "open the page tables", place: memory.name))
        try checked(ck_uffd_begin_own(userfault.number, kernel.forTracking), "set up a userfaultfd", place: memory.name)
        try WriteTrap.register(userfault, memory)
    }

    private var start: UInt64 { unsafe UInt64(UInt(bitPattern: memory.bytes.baseAddress!)) }

    /// Begins: the next scan reports what is written from somewhere within this call on. About 15 ms for each GiB.
    func arm() throws(EngineError) {
        precondition(!isClosed.withLock { $0 }, "memory that was closed takes no checkpoints")
        try checked(ck_uffd_protect(userfault.number, start, memory.byteLength.rawValue, true), "write-protect memory", place: memory.name)
    }

    /// The pages written since the last scan, or since `arm`; they are tracked anew. About a millisecond for each GiB.
    /// - Throws: `.busy` when somebody has ended the tracking. What the scan had found is lost then: all pages count as written.
    func scan() throws(EngineError) -> PageRanges {
        precondition(!isClosed.withLock { $0 }, "memory that was closed takes no checkpoints")
        do throws(PagemapScanError) {
            let found = try PagemapScan.addresses(pagemap.number, CK_SCAN_WRITTEN_PROTECT, within: start..<start + memory.byteLength.rawValue)
            return memory.pages(at: found)
        } catch {
            if error.number == EPERM {
                throw EngineError(
                    .busy, "the memory's writes are not tracked any more: it was mapped anew", remedy: "Register the memory again.", place: memory.name)
            }
            throw EngineError(system: "scan the page tables", error.number, place: memory.name)
        }
    }

    /// Ends the tracking. Harmless to repeat.
    func close() {
        let isFirst = isClosed.withLock { isClosed in
            defer { isClosed = true }
            return !isClosed
        }
        guard isFirst else { return }
        // A child that was forked meanwhile has the descriptor as well, and would keep the memory registered.
        ck_uffd_unregister(userfault.number, start, memory.byteLength.rawValue)
        userfault.close()
    }
}
