// The mapping of a medium, which grows while threads read through it.
//
// Invariants:
// - An address that was handed to a copy stays mapped until `release`: growth maps behind what is
//   there, and where the reserved address space is used up, the old mapping stays beside the new one.
//   Reservations at least double, so the old ones together are never larger than the newest.
// - `base` is published before `length`, and read after it: every length goes with the base that a
//   reader then sees, or with an earlier and shorter one.
// - The mapping is as writable as it was asked to be and never leaves the media layer.

import CLinux
import CPMem
import Glibc
import Synchronization
import Units

/// Maps a descriptor's content, shared, and extends the mapping as the medium grows. Thread-safe.
final class MediumMapping: Sendable {
    /// How the pages get mapped.
    enum Method: Sendable {
        /// By the kernel, in pages of `pageSize` bytes, asking for transparent huge pages or not.
        case pages(isWritable: Bool, pageSize: Int, prefersHugePages: Bool)
        /// By libpmem, always writable, whole each time.
        case persistentMemory
    }

    /// One stretch of address space.
    private struct Region {
        var base: UInt
        /// Bytes of address space.
        var reserved: Int
        /// Bytes at its start that are mapped to the medium.
        var mapped: Int
    }

    private let descriptor: Descriptor
    private let method: Method
    private let base = Atomic<UInt>(0)
    private let length = Atomic<Int>(0)
    /// The last region is the one in use. Growth alone takes this lock: never the hot path.
    private let regions = Mutex<[Region]>([])

    private static let smallestReservation = 1 << 30
    private static let hugePageSize = 2 << 20

    init(_ descriptor: Descriptor, method: Method) {
        self.descriptor = descriptor
        self.method = method
    }

    deinit { release() }

    /// How many bytes can be accessed, and where they start (nil when there are none).
    var view: (length: Int, base: UnsafeMutableRawPointer?) {
        let length = self.length.load(ordering: .acquiring)
        return unsafe (length, UnsafeMutableRawPointer(bitPattern: base.load(ordering: .acquiring)))
    }

    /// Makes as many bytes accessible as `currentSize` says, and no more. It is asked under the lock, so
    /// that of two who look, the one with the older answer can't have the last word. Returns 0 or a negative
    /// errno value, and then leaves everything as it was.
    func update(_ currentSize: () throws(MediumError) -> Int) throws(MediumError) -> Int32 {
        try regions.withLock { (regions) throws(MediumError) -> Int32 in
            let size = try currentSize()
            if size > regions.last?.mapped ?? 0 {
                let result =
                    switch method {
                    case .pages(let isWritable, let pageSize, let prefersHugePages):
                        grow(
                            &regions, to: size, isWritable: isWritable, pageSize: pageSize,
                            prefersHugePages: prefersHugePages)
                    case .persistentMemory: remapPersistentMemory(&regions, size)
                    }
                guard result == 0 else { return result }
            }
            base.store(regions.last?.base ?? 0, ordering: .releasing)
            length.store(size, ordering: .releasing)
            return 0
        }
    }

    private func grow(
        _ regions: inout [Region], to size: Int, isWritable: Bool, pageSize: Int, prefersHugePages: Bool
    ) -> Int32 {
        let (padded, overflow) = size.addingReportingOverflow(pageSize - 1)
        guard !overflow else { return -ENOMEM }
        let needed = padded / pageSize * pageSize
        var region: Region
        if let last = regions.last, last.reserved >= needed {
            region = last
        } else {
            let (result, made) = reserve(needed)
            guard let made else { return result }
            region = made
        }
        let fresh = unsafe UnsafeMutableRawPointer(bitPattern: region.base + UInt(region.mapped))
        let result = unsafe ck_address_map(
            fresh, needed - region.mapped, isWritable, descriptor.number, UInt64(region.mapped))
        guard result == 0 else {
            if region.mapped == 0 { unmap(region) }
            return result
        }
        // Best effort by nature: a kernel without them leaves small pages.
        if prefersHugePages { _ = unsafe ck_address_prefer_huge(fresh, needed - region.mapped) }
        if region.mapped > 0 { regions.removeLast() }
        region.mapped = needed
        regions.append(region)
        return 0
    }

    /// Address space for growth to come; only what is needed where the process's limits are tight.
    private func reserve(_ needed: Int) -> (Int32, Region?) {
        let (generous, overflow) = max(needed, Self.smallestReservation).multipliedReportingOverflow(by: 2)
        var result: Int32 = 0
        for size in overflow ? [needed] : [generous, needed] {
            var base: UnsafeMutableRawPointer?
            result = unsafe ck_address_reserve(size, Self.hugePageSize, &base)
            if result == 0 { return (0, Region(base: UInt(bitPattern: base), reserved: size, mapped: 0)) }
        }
        return (result, nil)
    }

    private func remapPersistentMemory(_ regions: inout [Region], _ size: Int) -> Int32 {
        guard let (base, length, _) = unsafe PersistentMemory.map(descriptor) else { return PersistentMemory.failure }
        let region = Region(base: UInt(bitPattern: base), reserved: length, mapped: length)
        // libpmem looks at the size by itself, and may have found a file that was just cut off.
        guard length >= size else {
            unmap(region)
            return -EAGAIN
        }
        regions.append(region)
        return 0
    }

    /// Unmaps everything. Copies in flight are the caller's mistake.
    func release() {
        regions.withLock { regions in
            length.store(0, ordering: .releasing)
            base.store(0, ordering: .releasing)
            for region in regions { unmap(region) }
            regions.removeAll()
        }
    }

    private func unmap(_ region: Region) {
        let start = unsafe UnsafeMutableRawPointer(bitPattern: region.base)
        switch method {
        case .pages: _ = unsafe ck_address_release(start, region.reserved)
        case .persistentMemory: _ = unsafe pmem_unmap(start, region.reserved)
        }
    }
}
