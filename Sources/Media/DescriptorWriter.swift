// Writing to files and devices by system calls: a full disk is an error there, and never a signal.
//
// Invariants:
// - Direct writes (past the page cache) are made only where address, offset and length are aligned;
//   everything else goes through the page cache. The kernel keeps the two coherent, and with the
//   mapping: it drops the cached pages of a range before and after a direct write to it; when it
//   can't, it writes through the cache or makes the next flush fail.
// - A flush that has failed is reported and never repeated: the kernel forgets after reporting.

import CLinux
import Glibc
import Synchronization
import Units

/// Writes, flushes and reserves through descriptors of one inode. Thread-safe.
final class DescriptorWriter: Sendable {
    private let storage: MappedStorage
    /// The second descriptor, or nil where direct I/O is not to be had.
    private let direct: Descriptor?
    /// Cleared when the system refuses an aligned direct write after all.
    private let directWorks: Atomic<Bool>
    /// The unit of direct writes in bytes; a power of two.
    let alignment: Int

    /// Below this many bytes the page cache wins: a direct write waits for the device each time. From here
    /// on both are as fast on an idle machine, and the direct one leaves the processors to others.
    static let smallestDirectWrite = 256 << 10
    static let smallestAlignment = 4096

    init(_ storage: MappedStorage, isReadOnly: Bool) throws(MediumError) {
        self.storage = storage
        let number = storage.descriptor.number
        var alignment = Self.smallestAlignment
        alignment = max(alignment, Int(ck_direct_alignment(number)))
        if try storage.descriptor.status(medium: storage.name).type == CK_BLOCK {
            var sector: UInt32 = 0
            try checked(unsafe ck_device_sector_size(number, &sector), storage.name, "ask for its sector size")
            alignment = max(alignment, Int(sector))
        }
        self.alignment = alignment
        direct = isReadOnly ? nil : try Self.openDirect(storage)
        directWorks = Atomic(direct != nil)
    }

    private static func openDirect(_ storage: MappedStorage) throws(MediumError) -> Descriptor? {
        let number = unsafe ck_open(storage.descriptor.reopeningPath, (CK_READ_WRITE | CK_DIRECT).rawValue)
        if number == -EINVAL || number == -EOPNOTSUPP { return nil }
        return Descriptor(owning: try checked(number, storage.name, "open it for direct writes"))
    }

    /// "direct" or "buffered".
    var method: String { direct == nil ? "buffered" : "direct" }

    /// See `Medium.write`.
    func write(at offset: MediumOffset, _ bytes: UnsafeRawBufferPointer) throws(MediumError) {
        guard let source = bytes.baseAddress, bytes.count > 0 else { return }
        // As it is now: a write behind the end of a truncated file would make it longer, with a hole.
        try storage.checkCurrentRange(at: offset, ByteCount(bytes.count), "write")
        var done = 0
        while done < bytes.count {
            let place = MediumOffset(offset.rawValue + UInt64(done))
            let step = unsafe nextStep(place, source + done, bytes.count - done)
            let written = unsafe ck_write_at(step.descriptor.number, source + done, step.count, place.rawValue)
            if written == -EINVAL, step.descriptor === direct {
                // Refused although aligned by all that the system tells: not this way, then.
                directWorks.store(false, ordering: .relaxed)
                continue
            }
            done += Int(try checked(written, storage.name, "write", offset: place, length: ByteCount(step.count)))
            if written == 0 { throw .system(EIO, medium: storage.name, operation: "write", offset: place) }
        }
    }

    /// How the next piece is written: its aligned part directly when that is long enough.
    private func nextStep(
        _ place: MediumOffset, _ address: UnsafeRawPointer, _ count: Int
    ) -> (descriptor: Descriptor, count: Int) {
        let mask = alignment - 1
        guard let direct, directWorks.load(ordering: .relaxed), place.rawValue & UInt64(mask) == 0,
            Int(bitPattern: address) & mask == 0, count & ~mask >= Self.smallestDirectWrite
        else { return (storage.descriptor, count) }
        return (direct, count & ~mask)
    }

    /// See `Medium.flush`. On a device this reaches its cache too.
    func flush() throws(MediumError) {
        let result = ck_flush_data(storage.descriptor.number)
        guard result != 0 else { return }
        throw .flushFailed(-result, medium: storage.name)
    }

    /// Allocates the range's blocks. Returns false where the file system can't.
    func allocate(at offset: MediumOffset, _ length: ByteCount) throws(MediumError) -> Bool {
        try storage.checkRange(at: offset, length, "reserve space")
        let result = ck_allocate(storage.descriptor.number, offset.rawValue, length.rawValue)
        if result == -EOPNOTSUPP { return false }
        try checked(result, storage.name, "reserve space", offset: offset, length: length)
        return true
    }

    func close() { direct?.close() }
}

extension MediumError {
    static func flushFailed(_ number: Int32, medium: String) -> MediumError {
        var error = MediumError.system(number, medium: medium, operation: "flush")
        error.code = .flushFailed
        error.remedy = "What was written since the last flush may be lost. Close it, see the kernel log, open it again."
        return error
    }
}
