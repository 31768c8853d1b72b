// What every medium has: a descriptor, a mapping to read through, and a size that may change behind
// its back.
//
// Invariants:
// - A read copies out of the mapping under guard; on the hot path it takes no lock and makes no
//   system call.
// - What a fault means is decided by asking the system: the size first, then a plain read.

import CLinux
import Glibc
import Synchronization
import Units

/// The storage below a medium. Thread-safe.
final class MappedStorage: Sendable {
    let name: String
    let descriptor: Descriptor
    let mapping: MediumMapping
    private let isBlockDevice: Bool
    private let isClosed = Atomic(false)

    /// Maps `descriptor` whole. Throws when the system refuses.
    init(name: String, _ descriptor: Descriptor, method: MediumMapping.Method) throws(MediumError) {
        try checked(ck_guard_install(), name, "install the fault handler")
        self.name = name
        self.descriptor = descriptor
        isBlockDevice = try descriptor.status(medium: name).type == CK_BLOCK
        mapping = MediumMapping(descriptor, method: method)
        try refreshSize()
    }

    /// The size when last looked at.
    var size: ByteCount { unsafe ByteCount(mapping.view.length) }

    /// Looks at the size again and maps what has come.
    @discardableResult
    func refreshSize() throws(MediumError) -> ByteCount {
        if try systemSize() == size { return size }
        let result = try mapping.update { () throws(MediumError) in
            let size = try systemSize()
            guard let count = Int(exactly: size.rawValue) else {
                throw .system(EOVERFLOW, medium: name, operation: "map it", length: size)
            }
            return count
        }
        try checked(result, name, "map it")
        return size
    }

    private func systemSize() throws(MediumError) -> ByteCount {
        precondition(!isClosed.load(ordering: .relaxed), "a medium was used after it was closed")
        guard isBlockDevice else { return ByteCount(try descriptor.status(medium: name).size) }
        var size: UInt64 = 0
        try checked(unsafe ck_device_size(descriptor.number, &size), name, "look at its size")
        return ByteCount(size)
    }

    /// Copies out of the mapping. See `Medium.read`.
    func read(at offset: MediumOffset, into buffer: UnsafeMutableRawBufferPointer) throws(MediumError) {
        guard let destination = buffer.baseAddress, buffer.count > 0 else { return }
        var view = unsafe mapping.view
        if unsafe !Self.holds(view.length, offset, buffer.count) {
            try checkRange(at: offset, ByteCount(buffer.count), "read")
            unsafe view = mapping.view
        }
        guard let base = unsafe view.base, unsafe Self.holds(view.length, offset, buffer.count) else {
            throw outOfRange(offset, ByteCount(buffer.count), "read")
        }
        var fault = ck_fault()
        guard unsafe ck_guarded_load(destination, base + offset.int, buffer.count, &fault) == 0 else {
            try unsafe readPlainly(at: offset, into: buffer)
            return
        }
        // A file that was cut off inside a page doesn't fault there: the rest of that page reads as
        // zeros, up to the end of this read. So a last byte of zero is worth a look at the size.
        if unsafe buffer[buffer.count - 1] == 0, !isBlockDevice {
            let size = try systemSize()
            if ByteCount(offset.rawValue) + ByteCount(buffer.count) > size {
                try refreshSize()
                throw outOfRange(offset, ByteCount(buffer.count), "read")
            }
        }
    }

    /// Runs `routine` over a range of the mapping. False when the range is not mapped or faults; see `Medium.scan`.
    func scan(
        at offset: MediumOffset, _ length: Int, into result: UnsafeMutableRawPointer, _ routine: MediumScan
    ) -> Bool {
        let view = unsafe mapping.view
        guard let base = unsafe view.base, unsafe Self.holds(view.length, offset, length) else { return false }
        var fault = ck_fault()
        return unsafe ck_guarded_scan(result, base + offset.int, length, routine, &fault) == 0
    }

    /// The mapping has faulted: finds out why by reading in the ordinary way, which names the error.
    /// Where that succeeds the device has recovered, and what it read is as good as any read.
    private func readPlainly(at offset: MediumOffset, into buffer: UnsafeMutableRawBufferPointer) throws(MediumError) {
        let length = ByteCount(buffer.count)
        try checkCurrentRange(at: offset, length, "read")
        let page = 4096
        var done = 0
        while done < buffer.count {
            // In pages, so that the error names the place.
            let place = MediumOffset(offset.rawValue + UInt64(done))
            let count = min(page - place.int % page, buffer.count - done)
            let part = unsafe UnsafeMutableRawBufferPointer(rebasing: buffer[done..<done + count])
            let got = try checked(
                unsafe ck_read_at(descriptor.number, part.baseAddress, count, place.rawValue), name, "read",
                offset: place, length: ByteCount(count))
            guard got == count else { throw outOfRange(offset, length, "read") }
            done += count
        }
    }

    /// Throws `.outOfRange` when the range lies behind the end, even after another look at the size.
    func checkRange(at offset: MediumOffset, _ length: ByteCount, _ operation: String) throws(MediumError) {
        guard let end = offset.checkedAdd(length) else { throw outOfRange(offset, length, operation) }
        if end.rawValue <= size.rawValue { return }
        guard end.rawValue <= (try refreshSize()).rawValue else { throw outOfRange(offset, length, operation) }
    }

    /// Throws `.outOfRange` when the range lies behind the end as it is now, known or not.
    func checkCurrentRange(at offset: MediumOffset, _ length: ByteCount, _ operation: String) throws(MediumError) {
        try refreshSize()
        try checkRange(at: offset, length, operation)
    }

    private static func holds(_ size: Int, _ offset: MediumOffset, _ count: Int) -> Bool {
        count <= size && offset.rawValue <= UInt64(size - count)
    }

    private func outOfRange(_ offset: MediumOffset, _ length: ByteCount, _ operation: String) -> MediumError {
        MediumError(
            .outOfRange, medium: name, operation: operation, offset: offset, length: length,
            reason: "the medium ends at offset \(size)",
            remedy: "If it used to be longer, it has been truncated: restore it from a copy.")
    }

    /// Releases mapping and descriptor.
    func close() {
        guard !isClosed.exchange(true, ordering: .acquiringAndReleasing) else { return }
        mapping.release()
        descriptor.close()
    }
}
