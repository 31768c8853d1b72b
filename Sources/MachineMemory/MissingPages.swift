// Memory whose pages are provided when somebody touches them.
//
// Invariants:
// - Whoever touches a missing page, through whichever of the memory's mappings, by itself or in a system call, waits until it is provided.
// - A page that is there is never replaced.
// - When missing pages can't be provided any more, touching one ends in SIGBUS or waits for ever: nobody reads zeros in their place.

import CLinux
import CLiveMemory
import CheckpointCore
import Glibc
import Threading
import Units

/// Missing pages of one memory. Thread-safe.
public final class MissingPages: Sendable {
    /// Called on a thread of this object: somebody waits for a page of this unit.
    public typealias Handler = @Sendable (Range<PageIndex>) -> Void

    public let memory: GuestMemory
    private let userfault: OwnedDescriptor
    private let stopEvent: OwnedDescriptor
    private let thread = Lock<PlainThread?>(nil)
    private let handler: Handler

    /// Registers memory that nobody has touched yet.
    /// - Throws: `.permission`, `.unsupported`, `.busy`: see `WriteTrap.init`.
    public init(_ memory: GuestMemory, handler: @escaping Handler) throws(EngineError) {
        guard memory.unit.int <= pagesPerSpan * pageSize else {
            throw EngineError(.unsupported, "the memory lies in pages of \(memory.unit) bytes", remedy: "Use huge pages of 2 MiB, or transparent ones.", place: memory.name)
        }
        self.memory = memory
        self.handler = handler
        userfault = try KernelFeatures.openUserfault()
        stopEvent = OwnedDescriptor(owning: try checked(ck_open_event(), "make an event", place: memory.name))
        try checked(ck_uffd_begin_missing(userfault.number), "set up a userfaultfd", place: memory.name)
        for start in bases {
            let result = ck_uffd_register_missing(userfault.number, start, memory.byteLength.rawValue)
            if result == -EBUSY {
                throw EngineError(.busy, "another userfaultfd has the memory", remedy: "End its tracking first.", place: memory.name)
            }
            try checked(result, "register the memory for missing pages", place: memory.name)
        }
        guard let thread = PlainThread({ self.serve() }) else {
            throw EngineError(.noMemory, "can't start a thread that answers faults", place: memory.name)
        }
        self.thread.withLock { $0 = thread }
    }

    deinit { precondition(thread.withLock { $0 == nil }, "missing pages are ended by their owner") }

    /// Where the memory is mapped.
    private var bases: [UInt64] {
        let main = unsafe UInt64(UInt(bitPattern: memory.bytes.baseAddress!))
        return memory.hasDeviceMapping ? [main, unsafe UInt64(UInt(bitPattern: memory.deviceBytes.baseAddress!))] : [main]
    }

    private func place(_ pages: Range<PageIndex>, _ base: UInt64) -> (start: UInt64, length: UInt64) {
        (base + pages.lowerBound.rawValue * UInt64(pageSize), (pages.upperBound - pages.lowerBound).bytes.rawValue)
    }

    /// Provides whole units, and lets those who wait for them go on. Each once.
    ///
    /// - Throws: `.busy` when one is there already: somebody has touched the memory before, and has seen zeros.
    /// - Parameter bytes: as many as the pages have; nil: zeros, not for huge pages.
    public func provide(_ pages: Range<PageIndex>, _ bytes: UnsafeRawBufferPointer?) throws(EngineError) {
        let (start, length) = place(pages, bases[0])
        precondition(unsafe bytes.map { $0.count == Int(length) } ?? true && memory.wholeUnits(pages) == pages, "whole units, and their bytes")
        let result = unsafe ck_uffd_provide(userfault.number, start, bytes?.baseAddress, length, memory.unit.rawValue)
        if result == -EEXIST {
            throw EngineError(
                .busy, "the memory was touched before it was to be filled", remedy: "Give it new memory, which nobody has touched and mlockall has not provided.",
                place: memory.name)
        }
        try checked(result, "provide pages of memory", place: memory.name)
        for base in bases { ck_uffd_wake(userfault.number, place(pages, base).start, length) }
    }

    /// Provides zero pages, whole units.
    public func provideZeros(_ pages: Range<PageIndex>) throws(EngineError) {
        guard memory.pages == .huge else { return unsafe try provide(pages, nil) }
        // The kernel has no zero page of that size.
        let zeros = PageBuffer(pages: memory.pagesPerUnit)
        unsafe zeros.bytes.initializeMemory(as: UInt8.self, repeating: 0)
        var start = pages.lowerBound
        while start < pages.upperBound {
            unsafe try provide(start..<start + memory.pagesPerUnit, UnsafeRawBufferPointer(zeros.bytes))
            start = start + memory.pagesPerUnit
        }
    }

    /// All pages are there: nobody has to be asked any more.
    public func finish() {
        end()
        // A child that was forked meanwhile has the descriptor as well, and would keep the memory registered.
        for base in bases { ck_uffd_unregister(userfault.number, base, memory.byteLength.rawValue) }
        userfault.close()
    }

    /// What is missing never comes: whoever touches it is ended by SIGBUS; where there are two mappings, also who touches through one what has
    /// been touched through the other alone. On kernels before Linux 6.6 they wait as long as the memory is mapped.
    public func fail() {
        end()
        var isPoisoned = true
        for base in bases where ck_uffd_poison(userfault.number, base, memory.byteLength.rawValue, memory.unit.rawValue) != 0 { isPoisoned = false }
        // Closed without that, the descriptor would have the kernel provide zeros: it stays open for good.
        guard isPoisoned else { return abandon() }
        for base in bases { ck_uffd_wake(userfault.number, base, memory.byteLength.rawValue) }
        userfault.close()
    }

    private func abandon() { _ = unsafe Unmanaged.passRetained(userfault) }

    private func end() {
        let thread = self.thread.withLock { thread in
            defer { thread = nil }
            return thread
        }
        guard let thread else { return }
        ck_signal_event(stopEvent.number)
        thread.join()
    }

    private func serve() {
        var faults = [ck_fault_message](repeating: ck_fault_message(), count: 16)
        while true {
            let ready = ck_wait(userfault.number, Int32(CK_READABLE), stopEvent.number, -1)
            if ready < 0 || ready & Int32(CK_EVENT) != 0 { return }
            let count = unsafe faults.withUnsafeMutableBufferPointer {
                unsafe ck_uffd_read_faults(userfault.number, $0.baseAddress!, Int32($0.count))
            }
            guard count >= 0 else { return }
            for fault in faults[..<Int(count)] { handler(unit(at: fault.address)) }
        }
    }

    private func unit(at address: UInt64) -> Range<PageIndex> {
        let base = bases.last { $0 <= address && address - $0 < memory.byteLength.rawValue } ?? bases[0]
        let page = PageIndex((address - base) / UInt64(pageSize))
        return memory.wholeUnits(page..<page + PageCount(1))
    }
}
