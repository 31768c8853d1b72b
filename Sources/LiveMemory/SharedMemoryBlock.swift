// A piece of another process's shared memory, mapped here for reading.
//
// Invariants:
// - Nothing is ever written through it, and reading allocates nothing: pages that the process has never touched are holes of the
//   file and are not read through the mapping, where a read would fill them.
// - A page that was known to hold data may become a hole again (the machine gives memory back): then a read of `bytes` may
//   allocate a zero page. It is never wrong.

import CLinux
import CLiveMemory
import CheckpointCore
import Glibc
import Synchronization
import Threading
import Units

/// Shared memory of a process: a memfd, or a file on tmpfs or hugetlbfs. Thread-safe.
@safe public final class SharedMemoryBlock: CopyablePages, @unchecked Sendable {
    public let process: TargetProcess
    /// Where the process has it, and which file it is.
    public let mapping: MemoryMapping
    /// The size of its pages: 4096, or a huge page's. Tracking and protection know no smaller unit.
    public let unit: ByteCount
    private let file: OwnedDescriptor
    private let base: UnsafeMutableRawPointer
    private let populated = Lock(PageRanges())

    /// Opens and maps what `process` has at `mapping`, one of its `sharedRegions`.
    ///
    /// - Throws: `.unsupported` when the file's pages can't be tracked (it is on a disk's file system);
    ///   `.notFound` when the process has no such mapping any more; `.permission`; `.invalidInput` when the mapping is not shared memory.
    public init(_ process: TargetProcess, _ mapping: MemoryMapping) throws(EngineError) {
        guard mapping.isShared, let identity = mapping.file else {
            throw EngineError(
                .invalidInput, "the memory at \(mapping.addresses.lowerBound) is private",
                remedy: "Give the machine shared memory: memory-backend-memfd with share=on.", place: process.place)
        }
        self.process = process
        self.mapping = mapping
        file = try Self.open(process, mapping, identity)
        let size = try checked(ck_shared_memory_page_size(file.number), "look at the memory's file", place: mapping.path)
        guard size > 0 else {
            throw EngineError(
                .unsupported, "the memory's file is on a file system whose pages can't be tracked",
                remedy: "Use memory-backend-memfd, or a file on tmpfs or hugetlbfs, with share=on.", place: mapping.path)
        }
        unit = ByteCount(UInt64(size))
        try checked(ck_guard_install(), "install the fault handler")
        let result = unsafe mmap(nil, mapping.length.int, PROT_READ, MAP_SHARED | MAP_NORESERVE, file.number, off_t(mapping.fileOffset.rawValue))
        guard let result = unsafe result, unsafe result != MAP_FAILED else {
            throw EngineError(system: "map it", errno, place: mapping.path)
        }
        unsafe base = result
    }

    deinit { unsafe munmap(base, mapping.length.int) }

    /// How many pages of 4096 bytes.
    public var pageCount: PageCount { PageCount(covering: mapping.length) }
    /// All pages.
    public var pages: Range<PageIndex> { PageIndex(0 as UInt64)..<PageIndex(pageCount.rawValue) }

    /// The memory itself. It changes while the process runs. Reading a page outside of what `populate` answered may allocate it; reading behind the end of
    /// a file that somebody has cut off ends this process, which `copy` does not.
    public var bytes: UnsafeRawBufferPointer { unsafe UnsafeRawBufferPointer(start: base, count: mapping.length.int) }

    /// Opens the mapping's file: the very inode, whatever has become of its name.
    private static func open(
        _ process: TargetProcess, _ mapping: MemoryMapping, _ identity: FileIdentity
    ) throws(EngineError) -> OwnedDescriptor {
        // By the first piece that the kernel lists, since that folder knows pieces and not what they add up to.
        guard let piece = try process.mappings().first(where: { $0.file == identity && mapping.addresses.overlaps($0.addresses) }) else {
            throw EngineError(.notFound, "the process has no such memory any more", place: process.place)
        }
        let name = piece.addresses
        let file = try process.open(
            "map_files/\(String(name.lowerBound.rawValue, radix: 16))-\(String(name.upperBound.rawValue, radix: 16))")
        var status = ck_file_status()
        try unsafe checked(ck_status(file.number, &status), "look at the memory's file", place: mapping.path)
        guard status.inode == identity.inode, status.type == CK_REGULAR else {
            throw EngineError(.notFound, "the process has other memory there by now", place: process.place)
        }
        let (end, overflow) = mapping.fileOffset.rawValue.addingReportingOverflow(mapping.length.rawValue)
        guard !overflow, end <= status.size, mapping.length.rawValue % UInt64(pageSize) == 0 else {
            throw EngineError(.mismatch, "the memory's file is shorter than its mapping", place: mapping.path)
        }
        return file
    }

    /// The pages that may hold something; all others are zero at this moment. Of huge pages: those that the process has in its page tables, so that
    /// others may hold something, too.
    public func presentPages() throws(EngineError) -> PageRanges {
        if unit.int != pageSize { return try pagesInTables() }
        var result = PageRanges()
        let limit = mapping.fileOffset + mapping.length
        var start = mapping.fileOffset.rawValue
        while start < limit.rawValue {
            var stop: UInt64 = 0
            let found = try unsafe checked(ck_next_data(file.number, &start, &stop, limit.rawValue), "look for holes", place: mapping.path)
            if found == 0 { break }
            result.append(page(atOffset: start)..<page(atOffset: stop))
            start = stop
        }
        return result
    }

    /// Whether what `presentPages` leaves out is known to be zero.
    public var absentPagesAreZero: Bool { unit.int == pageSize }

    private func page(atOffset offset: UInt64) -> PageIndex {
        PageIndex((offset - mapping.fileOffset.rawValue) / UInt64(pageSize))
    }

    private func pagesInTables() throws(EngineError) -> PageRanges {
        let scan = try PageTableScan(self)
        return try scan.pages(CK_SCAN_PRESENT, within: pages)
    }

    /// Provides this process's page tables for all present pages, so that copying them later doesn't fault. Costs some 200 ms for each GiB the first
    /// time, little again. Answers the present pages.
    @discardableResult
    public func populate() throws(EngineError) -> PageRanges {
        let present = try presentPages()
        let known = populated.withLock { $0 }
        for range in present.subtracting(known).ranges {
            let start = unsafe base + Int(range.lowerBound.rawValue) * pageSize
            try unsafe checked(
                ck_populate(start, (range.upperBound - range.lowerBound).bytes.int, false), "provide the memory for reading",
                place: mapping.path)
        }
        populated.withLock { $0 = present }
        return present
    }

    /// Copies pages, as they are at this moment. Pages that are not populated are read without allocating them.
    ///
    /// `destination` has exactly as many bytes as the pages. Throws `.ioFailed` when the memory can't be read (the file was cut off, a page is
    /// damaged); `destination` is undefined then.
    public func copy(_ pages: Range<PageIndex>, into destination: UnsafeMutableRawBufferPointer) throws(EngineError) {
        precondition(destination.count == (pages.upperBound - pages.lowerBound).bytes.int && pages.upperBound <= self.pages.upperBound)
        let known = populated.withLock { $0 }
        try known.split(pages) { (piece, isPopulated) throws(EngineError) in
            let start = (piece.lowerBound - pages.lowerBound).bytes.int
            let count = (piece.upperBound - piece.lowerBound).bytes.int
            let part = unsafe UnsafeMutableRawBufferPointer(rebasing: destination[start..<start + count])
            if isPopulated, unsafe load(piece.lowerBound, part) { return }
            try unsafe read(piece.lowerBound, part)
        }
    }

    /// Copies through the mapping; false after a fault.
    private func load(_ page: PageIndex, _ destination: UnsafeMutableRawBufferPointer) -> Bool {
        var fault = ck_fault()
        return unsafe ck_guarded_load(
            destination.baseAddress!, base + Int(page.rawValue) * pageSize, destination.count, &fault) == 0
    }

    /// Copies through the file, which leaves holes alone and names errors.
    private func read(_ page: PageIndex, _ destination: UnsafeMutableRawBufferPointer) throws(EngineError) {
        let got = try unsafe checked(
            ck_read_at(
                file.number, destination.baseAddress!, destination.count,
                mapping.fileOffset.rawValue + page.rawValue * UInt64(pageSize)), "read the memory", place: mapping.path)
        guard got == destination.count else { throw EngineError(.ioFailed, "the memory's file has been cut off", place: mapping.path) }
    }

    /// Where the process has these pages.
    func addresses(of pages: Range<PageIndex>) -> Range<TargetAddress> {
        mapping.addresses.lowerBound + (pages.lowerBound - PageIndex(0 as UInt64)).bytes
            ..< mapping.addresses.lowerBound + (pages.upperBound - PageIndex(0 as UInt64)).bytes
    }

    /// Which page is at an address of the process; nil when it is not of this block.
    func page(at address: TargetAddress) -> PageIndex? {
        guard mapping.addresses.contains(address) else { return nil }
        return PageIndex((address - mapping.addresses.lowerBound).rawValue / UInt64(pageSize))
    }
}
