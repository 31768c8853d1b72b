// What the four kinds of media share: reading, the size, and the range checks.

import CLinux
import Glibc
import Units

/// How a medium is opened.
public enum MediumAccess: Sendable { case readOnly, readWrite }

/// A medium over a mapped storage.
protocol MappedMedium: Medium {
    var storage: MappedStorage { get }
}

extension MappedMedium {
    public var name: String { storage.name }
    public var size: ByteCount { storage.size }

    @discardableResult
    public func refreshSize() throws(MediumError) -> ByteCount { try storage.refreshSize() }

    public func read(at offset: MediumOffset, into buffer: UnsafeMutableRawBufferPointer) throws(MediumError) {
        try unsafe storage.read(at: offset, into: buffer)
    }

    public func scan(
        at offset: MediumOffset, _ length: ByteCount, into result: UnsafeMutableRawPointer, _ routine: MediumScan
    ) throws(MediumError) {
        if unsafe storage.scan(at: offset, length.int, into: result, routine) { return }
        // Behind the known end, or a fault: the copying way finds out what is wrong, if anything is.
        let copy = UnsafeMutableRawBufferPointer.allocate(byteCount: length.int, alignment: 64)
        defer { unsafe copy.deallocate() }
        try unsafe storage.read(at: offset, into: copy)
        _ = unsafe routine(result, UnsafeRawPointer(copy.baseAddress), copy.count, 0)
    }

    /// Throws `.readOnly` on a handle for reading.
    func requireWritable(_ operation: String) throws(MediumError) {
        guard traits.isReadOnly else { return }
        throw MediumError(
            .readOnly, medium: name, operation: operation, reason: "it is open for reading only",
            remedy: "Open it for writing.")
    }

    /// Changes a file's size.
    func resizeFile(to size: ByteCount) throws(MediumError) {
        try requireWritable("resize it")
        guard size.rawValue <= UInt64(Int64.max) else {
            throw .system(EFBIG, medium: name, operation: "resize it", length: size)
        }
        let before = try storage.refreshSize()
        try checked(ck_set_size(storage.descriptor.number, size.rawValue), name, "resize it", length: size)
        do { try storage.refreshSize() } catch {
            // It can't be mapped at that size: nobody could read what is there now.
            if size > before { _ = ck_set_size(storage.descriptor.number, before.rawValue) }
            throw error
        }
    }

    /// The part of a range that consists of whole units of `traits.directAlignment`, or nil.
    func wholeUnits(at offset: MediumOffset, _ length: ByteCount) -> (offset: MediumOffset, length: ByteCount)? {
        let unit = UInt64(traits.directAlignment)
        let first = ByteCount(offset.rawValue).roundedUp(to: unit).rawValue
        let end = (offset.rawValue + length.rawValue) / unit * unit
        return end > first ? (MediumOffset(first), ByteCount(end - first)) : nil
    }

    /// Frees the blocks of a range of a file, where its file system can.
    func punchFile(at offset: MediumOffset, _ length: ByteCount) throws(MediumError) {
        try requireWritable("discard")
        try storage.checkRange(at: offset, length, "discard")
        guard let units = wholeUnits(at: offset, length) else { return }
        let result = ck_punch(storage.descriptor.number, units.offset.rawValue, units.length.rawValue)
        if result != -EOPNOTSUPP {
            try checked(result, name, "discard", offset: units.offset, length: units.length)
        }
    }

    /// How many bytes of a range of a file are no holes; nil where its file system does not say.
    func fileAllocation(at offset: MediumOffset, _ length: ByteCount) throws(MediumError) -> ByteCount? {
        try storage.checkRange(at: offset, length, "ask what takes space")
        var bytes: UInt64 = 0
        let result = unsafe ck_allocated(storage.descriptor.number, offset.rawValue, length.rawValue, &bytes)
        if result == -EINVAL || result == -EOPNOTSUPP { return nil }
        try checked(result, name, "ask what takes space", offset: offset, length: length)
        return ByteCount(bytes)
    }
}
