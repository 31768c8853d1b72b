// Memory of this process that checkpoints are taken of: a guest's RAM, a program's tables.
//
// Invariants:
// - `bytes` is mapped, writable, and stays where it is as long as the object lives.
// - `deviceBytes`, where there is one, is a second mapping of the same memory. Write protection of `bytes` does not know of it: writes
//   through it never trap, like the DMA of a device.
// - Nothing here touches a page: pages that were never written take no memory.

import CLinux
import CLiveMemory
import CheckpointCore
import Glibc
import Units

/// One contiguous piece of this process's memory. Thread-safe; what is written into it is its users' affair.
@safe public final class GuestMemory: @unchecked Sendable {
    /// The pages that back it.
    public enum Pages: String, Sendable, CaseIterable {
        /// 4 KiB.
        case base
        /// 4 KiB, joined into huge pages by the kernel where it can: writes are still trapped for each 4 KiB page.
        case transparentHuge
        /// Huge pages of the system's default size, taken from its pool: writes are trapped for each huge page.
        case huge
    }

    /// How it is mapped.
    public enum Sharing: String, Sendable, CaseIterable {
        /// Anonymous, of this process alone.
        case anonymous
        /// A memfd mapped as shared; has `deviceBytes`.
        case shared
    }

    /// What people know it by, and the store's region.
    public let name: String
    public let pages: Pages
    public let sharing: Sharing
    /// The smallest piece that can be protected: 4096 bytes, or a huge page.
    public let unit: ByteCount
    /// The memory, as the machine's processors and the program's threads use it.
    public let bytes: UnsafeMutableRawBufferPointer
    /// The memory as devices see it: writes never trap. The same as `bytes` where there is no second mapping.
    public let deviceBytes: UnsafeMutableRawBufferPointer
    /// The memfd behind shared memory, to be mapped elsewhere; nil for other memory.
    public var descriptor: Int32? { file?.number }
    private let file: OwnedDescriptor?
    private let isOwned: Bool

    /// Maps new memory, zero, at a multiple of the size of huge pages.
    ///
    /// - Parameter byteLength: a multiple of `unit`, at least one.
    /// - Throws: `.noMemory` when there is no room, or the pool has too few huge pages; `.unsupported` for huge pages on a system without
    ///   any; `.invalidInput` for a length that is no multiple.
    public init(
        _ name: String, byteLength: ByteCount, pages: Pages = .base, sharing: Sharing = .anonymous
    ) throws(EngineError) {
        self.name = name
        self.pages = pages
        self.sharing = sharing
        unit = pages == .huge ? try Self.hugePageSize(name) : ByteCount(pageSize)
        guard byteLength > .zero, byteLength.rawValue < 1 << 47, byteLength.rawValue % unit.rawValue == 0 else {
            throw EngineError(
                .invalidInput, "\(byteLength) bytes are no multiple of the page of \(unit) bytes", remedy: "Round the length up.", place: name)
        }
        let length = byteLength.int
        if sharing == .shared {
            let file = OwnedDescriptor(owning: try checked(unsafe ck_open_anonymous("ckstore", pages == .huge), "make shared memory", place: name))
            try checked(ck_set_size(file.number, byteLength.rawValue), "give the shared memory its size", place: name)
            self.file = file
        } else {
            file = nil
        }
        let flags = file == nil ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED
        unsafe bytes = try Self.map(name, length, flags | (pages == .huge ? MAP_HUGETLB : 0), file, pages)
        guard let file else {
            unsafe deviceBytes = bytes
            isOwned = true
            return
        }
        do throws(EngineError) { unsafe deviceBytes = try Self.map(name, length, flags, file, pages) } catch {
            unsafe munmap(bytes.baseAddress!, length)
            throw error
        }
        isOwned = true
    }

    /// Takes memory that the program has mapped already; it stays the program's and must outlive this object.
    ///
    /// - Parameter bytes: whole pages, of one mapping or of several of the same kind.
    /// - Throws: `.invalidInput` when it is not aligned or not mapped as writable. Whether it can be protected shows when it is.
    public init(_ name: String, adopting bytes: UnsafeMutableRawBufferPointer) throws(EngineError) {
        let kind = try unsafe MappedKind(of: UnsafeRawBufferPointer(bytes), name: name)
        self.name = name
        pages = kind.unit.int > pageSize ? .huge : .base
        sharing = kind.isShared ? .shared : .anonymous
        unit = kind.unit
        unsafe self.bytes = bytes
        unsafe deviceBytes = bytes
        file = nil
        isOwned = false
    }

    deinit {
        guard isOwned else { return }
        unsafe munmap(bytes.baseAddress!, bytes.count)
        if unsafe deviceBytes.baseAddress != bytes.baseAddress { unsafe munmap(deviceBytes.baseAddress!, bytes.count) }
    }

    public var byteLength: ByteCount { unsafe ByteCount(bytes.count) }
    /// How many pages of 4096 bytes.
    public var pageCount: PageCount { PageCount(covering: byteLength) }
    /// All pages.
    public var allPages: Range<PageIndex> { PageIndex(UInt64(0))..<PageIndex(pageCount.rawValue) }
    /// Pages of 4096 bytes that a unit has.
    public var pagesPerUnit: PageCount { PageCount(unit.int / pageSize) }
    /// Whether devices have a mapping of their own.
    public var hasDeviceMapping: Bool { unsafe deviceBytes.baseAddress != bytes.baseAddress }

    /// The bytes of some pages.
    public func bytes(of range: Range<PageIndex>) -> UnsafeMutableRawBufferPointer {
        unsafe UnsafeMutableRawBufferPointer(rebasing: bytes[range.lowerBound.int * pageSize..<range.upperBound.int * pageSize])
    }

    /// The smallest whole units around some pages.
    public func wholeUnits(_ range: Range<PageIndex>) -> Range<PageIndex> {
        let size = pagesPerUnit.rawValue
        return PageIndex(range.lowerBound.rawValue / size * size)..<PageIndex((range.upperBound.rawValue + size - 1) / size * size)
    }

    // MARK: Mapping

    private static func map(
        _ name: String, _ length: Int, _ flags: Int32, _ file: OwnedDescriptor?, _ pages: Pages
    ) throws(EngineError) -> UnsafeMutableRawBufferPointer {
        var base: UnsafeMutableRawPointer?
        try checked(unsafe ck_address_reserve(length, max(2 << 20, pages == .huge ? hugePageSize(name).int : 0), &base), "find room in the address space", place: name)
        let mapped = unsafe mmap(base, length, PROT_READ | PROT_WRITE, flags | MAP_FIXED, file?.number ?? -1, 0)
        guard let mapped = unsafe mapped, unsafe mapped != MAP_FAILED else {
            let number = errno
            unsafe munmap(base!, length)
            let remedy =
                pages == .huge ? "Put enough huge pages into the pool: sysctl vm.nr_hugepages." : "Give the machine less memory."
            throw EngineError(system: "map \(length) bytes", number, remedy: remedy, place: name)
        }
        if pages != .huge { unsafe madvise(mapped, length, pages == .transparentHuge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE) }
        return unsafe UnsafeMutableRawBufferPointer(start: mapped, count: length)
    }

    private static func hugePageSize(_ name: String) throws(EngineError) -> ByteCount {
        guard let size = try MappedKind.number("/proc/meminfo", "Hugepagesize:"), size > 0 else {
            throw EngineError(
                .unsupported, "this kernel has no pool of huge pages", remedy: "Use transparent huge pages or pages of 4 KiB.", place: name)
        }
        return .kibibytes(size)
    }
}
