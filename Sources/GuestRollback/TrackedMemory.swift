// A guest's memory: rolled back by a log of old content, with two kinds of read-only that never meet.
//
// Invariants:
// - The temporary mark is userfaultfd's write protection: a bit of the page table's entry. A write to such a page waits, its old content goes
//   into the log, the mark is taken away, the write goes on. Whoever writes learns nothing of it: there is no signal.
// - The real mark is the mapping's own permission (mprotect). The kernel looks at it before it looks at the bit: a write to such a page is
//   refused with a signal or EFAULT (KVM: KVM_RUN fails with EFAULT), never waits, never gets into the log. A page may have both marks, and each
//   is changed without the other.
// - A page's content goes into the log before the page can be written.
// - Which pages are really read-only belongs to the guest's state and is rolled back with it.

import CLinux
import CheckpointCore
import Glibc
import MachineMemory
import Threading
import Units

/// How a store ended.
public enum StoreOutcome: Sendable, Equatable {
    case stored
    /// This page is really read-only. Bytes of other pages before it may have been stored.
    case readOnly(PageIndex)
}

/// Memory whose writes are logged. Thread-safe, except that `beginEpoch` and `rollBack` need all writers to stand still.
final class TrackedMemory: Sendable {
    let memory: GuestMemory
    private let log: Lock<PreImageLog>
    private let readOnly = Lock(PageRanges())
    private let limit: PageCount
    private let pressure: CheckpointPressure
    private let trap: WriteTrap
    /// Who answers the trap; nobody once this is closed, so that neither keeps the other alive.
    private let handler: Lock<TrackedMemory?>
    private let progress = Lock(Progress())

    private struct Progress {
        /// Before the first epoch nothing is protected.
        var hasBegun = false
        var failure: EngineError?
        var trackingFaults: UInt64 = 0
        /// Written between the last save and the checkpoint.
        var unsaved = PageRanges()
    }

    /// Registers the memory; nothing is tracked before the first epoch.
    /// - Parameter limit: pages in the log from which on writers wait for a checkpoint.
    init(_ memory: GuestMemory, limit: PageCount, pressure: CheckpointPressure) throws(EngineError) {
        self.memory = memory
        self.limit = limit
        self.pressure = pressure
        log = Lock(PreImageLog(of: memory.pageCount, unit: memory.unit))
        try checked(ck_guard_install(), "install the handler of refused stores", place: memory.name)
        let handler = Lock<TrackedMemory?>(nil)
        trap = try WriteTrap(memory) { page, _ in handler.withLock { $0 }?.answer(page) }
        self.handler = handler
        handler.withLock { $0 = self }
    }

    /// Ends the tracking and takes the real read-only marks away. Harmless when that was done before.
    /// - Throws: when the system does not change the mapping; only marks are left then.
    func close() throws(EngineError) {
        trap.close()
        handler.withLock { $0 = nil }
        try setReadOnlyPages(PageRanges())
    }

    /// How often a writer was kept waiting for its page's old content to be logged.
    var trackingFaults: UInt64 { progress.withLock { $0.trackingFaults } }
    /// How much is in the log.
    var loggedPages: PageCount { log.withLock { $0.pageCount } }

    /// Throws when writes are not tracked any more.
    func checkIsTracking() throws(EngineError) {
        guard let failure = trap.failure ?? progress.withLock({ $0.failure }) else { return }
        throw failure
    }

    // MARK: Faults

    /// A write waits: keeps the unit's content and lets it go on.
    private func answer(_ page: PageIndex) {
        let unit = memory.wholeUnits(page..<page + PageCount(1))
        let isFull = log.withLock { log in
            // It is there already when a second writer waited for the same unit.
            if !log.contains(page) { unsafe log.append(unit.lowerBound, UnsafeRawBufferPointer(memory.bytes(of: unit))) }
            return log.pageCount > limit
        }
        progress.withLock { $0.trackingFaults += 1 }
        if isFull { pressure.demandAndWait() }
        do throws(EngineError) { try trap.release(unit) } catch {
            // The writer waits until the guest is closed: it may not go on without being told what it may not do.
            progress.withLock { $0.failure = $0.failure ?? error }
        }
    }

    // MARK: Epochs

    /// Makes the memory as it is the checkpoint: protects what was written since the last one, then forgets its old content.
    ///
    /// - Returns: the pages that were written.
    /// - Throws: when the system refuses to protect memory; the last checkpoint is still whole then.
    func beginEpoch() throws(EngineError) -> PageCount {
        try checkIsTracking()
        let written = try protectWritten()
        progress.withLock { progress in
            progress.hasBegun = true
            progress.unsaved = progress.unsaved.union(written)
        }
        return written.count
    }

    /// Protects what is in the log, or everything in the beginning, and empties it.
    private func protectWritten() throws(EngineError) -> PageRanges {
        let isFirst = progress.withLock { !$0.hasBegun }
        let written = isFirst ? PageRanges(memory.allPages) : log.withLock { $0.ranges }
        for range in written.ranges { try trap.protect(range) }
        log.withLock { $0.removeAll() }
        return written
    }

    /// Puts the memory back as it was at the checkpoint, and the real read-only marks.
    ///
    /// - Parameter readOnlyPages: those of the checkpoint; nil: they stay as they are.
    /// - Returns: the pages that were put back.
    /// - Throws: when the system refuses; the checkpoint is still whole then, and this can be tried again.
    func rollBack(readOnlyPages: PageRanges?) throws(EngineError) -> PageCount {
        try checkIsTracking()
        let marks = readOnlyPages ?? readOnly.withLock { $0 }
        // What is read-only now may have been written before it was.
        try setReadOnlyPages(PageRanges())
        // The lock is not held while pages are written: should one of the log still be protected, the trap answers, and needs it.
        for (index, page) in log.withLock({ $0.pages }).enumerated() {
            let content = unsafe log.withLock { unsafe $0.content(index) }
            unsafe memory.bytes(of: memory.wholeUnits(page..<page + PageCount(1))).copyMemory(from: content)
        }
        try setReadOnlyPages(marks)
        return try protectWritten().count
    }

    /// Pages whose content at the checkpoint may differ from that at the last save.
    var unsavedPages: PageRanges { progress.withLock { $0.unsaved } }
    /// The checkpoint has been saved.
    func forgetUnsavedPages() { progress.withLock { $0.unsaved = PageRanges() } }

    /// Copies whole units as they were at the checkpoint, whatever has been written since.
    /// - Parameter target: exactly as large as the pages.
    func copyCheckpointed(_ pages: Range<PageIndex>, into target: UnsafeMutableRawBufferPointer) {
        let unit = memory.pagesPerUnit
        // A page is logged under the lock before it can be written: what is not in the log stays as it is while the lock is held.
        log.withLock { log in
            var page = pages.lowerBound
            while page < pages.upperBound {
                let offset = (page - pages.lowerBound).bytes.int
                let content = unsafe log.content(of: page) ?? UnsafeRawBufferPointer(memory.bytes(of: page..<page + unit))
                unsafe UnsafeMutableRawBufferPointer(rebasing: target[offset..<offset + content.count]).copyMemory(from: content)
                page = page + unit
            }
        }
    }

    // MARK: Real read-only pages

    /// The pages that are really read-only.
    var readOnlyPages: PageRanges { readOnly.withLock { $0 } }

    /// Makes pages really read-only or writable.
    /// - Throws: `.invalidInput` for pages that the memory has not, or parts of huge pages; `.noMemory` when the system has no room for
    ///   more pieces of the mapping.
    func setReadOnly(_ pages: Range<PageIndex>, _ isReadOnly: Bool) throws(EngineError) {
        guard pages.upperBound <= memory.allPages.upperBound, memory.wholeUnits(pages) == pages else {
            throw EngineError(
                .invalidInput, "pages \(pages.lowerBound) to \(pages.upperBound) are no whole pages of the memory",
                remedy: "Name pages of the memory, whole ones where they are huge.", place: memory.name)
        }
        try readOnly.withLock { (current) throws(EngineError) in
            try setPermission(pages, isReadOnly: isReadOnly)
            current = isReadOnly ? current.union(PageRanges(pages)) : current.subtracting(PageRanges(pages))
        }
    }

    private func setReadOnlyPages(_ wanted: PageRanges) throws(EngineError) {
        try readOnly.withLock { (current) throws(EngineError) in
            for range in current.subtracting(wanted).ranges {
                try setPermission(range, isReadOnly: false)
                current = current.subtracting(PageRanges(range))
            }
            for range in wanted.subtracting(current).ranges {
                try setPermission(range, isReadOnly: true)
                current = current.union(PageRanges(range))
            }
        }
    }

    private func setPermission(_ pages: Range<PageIndex>, isReadOnly: Bool) throws(EngineError) {
        guard !pages.isEmpty else { return }
        let bytes = unsafe memory.bytes(of: pages)
        guard unsafe mprotect(bytes.baseAddress!, bytes.count, isReadOnly ? PROT_READ : PROT_READ | PROT_WRITE) != 0 else { return }
        throw EngineError(
            system: "change what may be done with pages", errno, remedy: "Raise the sysctl vm.max_map_count: each piece needs a mapping.",
            place: memory.name)
    }

    // MARK: Stores and loads

    /// Stores bytes. Waits when a page has to be logged first.
    /// - Parameter mapping: which of the memory's mappings takes them; only the one that processors use is tracked.
    /// - Throws: `.invalidInput` when the memory ends before the bytes do; `.ioFailed` when the memory itself fails.
    func store(
        _ bytes: UnsafeRawBufferPointer, at address: GuestAddress, through mapping: MemoryMapping = unsafe \.bytes
    ) throws(EngineError) -> StoreOutcome {
        let target = unsafe try place(address, ByteCount(bytes.count), mapping)
        guard unsafe !bytes.isEmpty else { return .stored }
        var fault = ck_fault()
        let result = unsafe ck_guarded_store(target.baseAddress!, bytes.baseAddress!, bytes.count, Self.copy, 0, &fault)
        guard result != 0 else { return .stored }
        let offset = unsafe UInt64(fault.address) - UInt64(UInt(bitPattern: memory[keyPath: mapping].baseAddress!))
        guard fault.signal == SIGSEGV else {
            throw EngineError(
                .ioFailed, "the memory at \(offset) failed (signal \(fault.signal))",
                remedy: "Look for the memory's own failure: a file that was cut, a page that is broken.", place: memory.name)
        }
        return .readOnly(GuestAddress(offset).page)
    }

    /// Copies bytes out of the memory.
    /// - Throws: `.invalidInput` when the memory ends before the buffer does.
    func load(_ buffer: UnsafeMutableRawBufferPointer, from address: GuestAddress) throws(EngineError) {
        unsafe buffer.copyMemory(from: UnsafeRawBufferPointer(try place(address, ByteCount(buffer.count), \.bytes)))
    }

    private func place(
        _ address: GuestAddress, _ count: ByteCount, _ mapping: MemoryMapping
    ) throws(EngineError) -> UnsafeMutableRawBufferPointer {
        guard address.rawValue <= memory.byteLength.rawValue, count.rawValue <= memory.byteLength.rawValue - address.rawValue else {
            throw EngineError(
                .invalidInput, "\(count) bytes at \(address) are not in the memory of \(memory.byteLength) bytes",
                remedy: "Check the guest's addresses.", place: memory.name)
        }
        return unsafe UnsafeMutableRawBufferPointer(rebasing: memory[keyPath: mapping][address.int..<address.int + count.int])
    }

    private static let copy: ck_copy_routine = { to, from, count, _ in unsafe memcpy(to!, from!, count) }
}
