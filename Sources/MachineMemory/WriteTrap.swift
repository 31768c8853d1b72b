// Writes to this process's memory, caught before they happen.
//
// Invariants:
// - While a page is protected, no write to it through the trapped mapping happens: the writer waits, whether it writes by itself or in
//   a system call, until the page is released. Writes of devices into pages prepared for them, and through other mappings, are not seen.
// - Every waiting writer is made known to the handler; who is still waiting when the trap is closed goes on.
// - When the process ends, the kernel ends everything.

import CLinux
import CLiveMemory
import CheckpointCore
import Glibc
import Threading
import Units

/// Catches writes to one piece of memory.
///
/// Thread-safe. Pages are named in whole units of the memory (`GuestMemory.unit`).
public final class WriteTrap: Sendable {
    /// Called on a thread of the trap for each write that waits: with the first page of its unit. It has to see to it that
    /// the page is released, now or later, by whatever thread: the writer waits until then. It may be called again for the same page while it
    /// waits, and once more when it has been released already; then it releases it again. It must not write to protected pages itself.
    public typealias Handler = @Sendable (_ page: PageIndex, _ trap: WriteTrap) -> Void

    public let memory: GuestMemory
    private let userfault: OwnedDescriptor
    private let stopEvent: OwnedDescriptor
    private let handler: Handler
    private let state = Lock(State())

    private struct State {
        var threads: [PlainThread] = []
        var isClosed = false
        var failure: EngineError?
    }

    /// Registers the memory; nothing is protected yet.
    ///
    /// - Parameters:
    ///   - threadCount: threads that call `handler`.
    /// - Throws: `.permission` when this user may not use userfaultfd; `.unsupported` when the kernel has none, or it can't protect memory
    ///   of this kind; `.busy` when another userfaultfd has the memory.
    public init(_ memory: GuestMemory, threadCount: Int = 1, handler: @escaping Handler) throws(EngineError) {
        precondition(threadCount >= 1, "somebody has to answer")
        self.memory = memory
        self.handler = handler
        let kernel = try KernelFeatures.current()
        try kernel.checkProtects(memory)
        userfault = try KernelFeatures.openUserfault()
        stopEvent = OwnedDescriptor(owning: try checked(ck_open_event(), "make an event", place: memory.name))
        try checked(ck_uffd_begin_own(userfault.number, kernel.forProtection), "set up a userfaultfd", place: memory.name)
        if !kernel.protectsUntouched { try Self.populate(memory) }
        try Self.register(userfault, memory)
        for _ in 0..<threadCount {
            guard let thread = PlainThread({ self.serve() }) else {
                close()
                throw EngineError(.noMemory, "can't start a thread that answers write faults", place: memory.name)
            }
            state.withLock { $0.threads.append(thread) }
        }
    }

    deinit { precondition(state.withLock { $0.isClosed || $0.threads.isEmpty }, "a write trap is closed by its owner") }

    /// Protects pages: their next writes wait. What is protected already stays so. About 15 ms for each GiB of 4 KiB pages.
    ///
    /// - Throws: `.ioFailed` when the system refuses; some of the pages may be protected then.
    public func protect(_ pages: Range<PageIndex>) throws(EngineError) {
        try change(pages, isProtected: true)
    }

    /// Lets pages be written again, and whoever waits for that go on.
    ///
    /// - Throws: `.ioFailed` when the system refuses, for instance because something else has been mapped in the place of a page. Some of the
    ///   pages may be released then; whoever waits tries again.
    public func release(_ pages: Range<PageIndex>) throws(EngineError) {
        do throws(EngineError) { try change(pages, isProtected: false) } catch {
            // The system wakes nobody when it can't release all: those whose pages were released would wait for ever.
            let (start, length) = address(of: pages)
            ck_uffd_wake(userfault.number, start, length)
            throw error
        }
    }

    /// Lets whoever waits at a page go on when closing has begun: should that fail, the end of the trap does the same.
    func releaseWhileClosing(_ page: PageIndex) {
        let (start, length) = address(of: memory.wholeUnits(page..<page + PageCount(1)))
        ck_uffd_protect(userfault.number, start, length, false)
    }

    /// Why faults are not answered any more, if so: nothing is protected then.
    public var failure: EngineError? { state.withLock { $0.failure } }

    /// Ends the threads and all protection; whoever waits goes on. Harmless when that was done before. Not to be called by the handler.
    public func close() {
        let threads: [PlainThread]? = state.withLock { state in
            if state.isClosed { return nil }
            state.isClosed = true
            defer { state.threads = [] }
            return state.threads
        }
        guard let threads else { return }
        ck_signal_event(stopEvent.number)
        for thread in threads { thread.join() }
        // Nobody answers any more: from here on nobody may have to wait. Closing the descriptor does the same, but does not say when.
        unprotectEverything()
        userfault.close()
    }

    private func change(_ pages: Range<PageIndex>, isProtected: Bool) throws(EngineError) {
        guard !pages.isEmpty else { return }
        precondition(pages.upperBound <= memory.allPages.upperBound && memory.wholeUnits(pages) == pages, "whole units of the memory")
        let (start, length) = address(of: pages)
        try checked(
            ck_uffd_protect(userfault.number, start, length, isProtected), isProtected ? "write-protect memory" : "end the write protection of memory",
            place: memory.name)
    }

    private func address(of pages: Range<PageIndex>) -> (start: UInt64, length: UInt64) {
        let base = unsafe UInt64(UInt(bitPattern: memory.bytes.baseAddress!))
        return (base + (pages.lowerBound - PageIndex(UInt64(0))).bytes.rawValue, (pages.upperBound - pages.lowerBound).bytes.rawValue)
    }

    /// Registers all of a memory for write protection.
    static func register(_ userfault: OwnedDescriptor, _ memory: GuestMemory) throws(EngineError) {
        let start = unsafe UInt64(UInt(bitPattern: memory.bytes.baseAddress!))
        switch ck_uffd_register(userfault.number, start, memory.byteLength.rawValue) {
        case -EBUSY:
            throw EngineError(
                .busy, "another userfaultfd has the memory", remedy: "End the other tracking of this memory first.", place: memory.name)
        case -EINVAL, -EPERM, -ENOENT:
            throw EngineError(
                .unsupported, "memory of this kind can't be write-protected",
                remedy: "Use anonymous memory, a memfd, or a file on tmpfs or hugetlbfs; files on disks can't be protected.", place: memory.name)
        case let result: try checked(result, "register the memory for write protection", place: memory.name)
        }
    }

    /// Older kernels protect only what is there: untouched pages get the page of zeros, private ones at no cost in memory.
    private static func populate(_ memory: GuestMemory) throws(EngineError) {
        try checked(unsafe ck_populate(memory.bytes.baseAddress!, memory.bytes.count, false), "provide the memory's pages", place: memory.name)
    }

    // MARK: Serving

    private func serve() {
        ck_prefer_this_thread()
        var follower = ProcessorFollower()
        while true {
            do throws(EngineError) {
                let ready = try checked(
                    ck_wait(userfault.number, Int32(CK_READABLE), stopEvent.number, -1), "wait for write faults", place: memory.name)
                if ready & Int32(CK_EVENT) != 0 { return }
                try answer(&follower)
            } catch {
                state.withLock { $0.failure = $0.failure ?? error }
                return unprotectEverything()
            }
        }
    }

    private func answer(_ follower: inout ProcessorFollower) throws(EngineError) {
        var faults = InlineArray<16, ck_fault_message>(repeating: ck_fault_message())
        var span = faults.mutableSpan
        let count = unsafe span.withUnsafeMutableBufferPointer {
            unsafe ck_uffd_read_faults(userfault.number, $0.baseAddress!, Int32($0.count))
        }
        try checked(count, "read write faults", place: memory.name)
        let base = unsafe UInt64(UInt(bitPattern: memory.bytes.baseAddress!))
        for index in 0..<Int(count) {
            let offset = (faults[index].address - base) / memory.unit.rawValue * memory.unit.rawValue
            handler(PageIndex(offset / UInt64(pageSize)), self)
        }
        if count > 0 { follower.follow(faults[Int(count) - 1].thread) }
    }

    private func unprotectEverything() {
        let (start, length) = address(of: memory.allPages)
        ck_uffd_unregister(userfault.number, start, length)
        ck_uffd_wake(userfault.number, start, length)
    }
}

/// Keeps a thread that answers faults on the processor of the thread that has them: waking a thread of another processor and being
/// woken by it costs several times what the fault does, above all on virtual machines.
private struct ProcessorFollower {
    private var thread: UInt32 = 0
    private var processor: Int32 = -1
    private var faults = 0
    /// How many faults pass between two looks at where a thread runs: a look costs as much as a fault. More while it stays where it is.
    private var interval = shortest

    private static let shortest = 4
    private static let longest = 64

    mutating func follow(_ faulting: UInt32) {
        faults += 1
        // A thread that has just one fault is not worth a look.
        defer { thread = faulting }
        guard faulting == thread, faults >= interval else { return }
        faults = 0
        let current = ck_thread_processor(faulting)
        guard current != processor else {
            interval = min(interval * 2, Self.longest)
            return
        }
        interval = Self.shortest
        processor = ck_run_on_processor(current) == 0 ? current : -1
    }
}
