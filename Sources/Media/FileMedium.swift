// A store in a file: read through a mapping, written by system calls.
//
// On file systems that never write in place (btrfs, ZFS, bcachefs) and on those without fallocate,
// reserved blocks promise nothing: `traits.reservesSpace` is false there, `reserve` still allocates
// where it can, and a full disk is found by the write, as an error.

import CLinux
import Glibc
import Units

/// A file on any file system.
final class FileMedium: MappedMedium {
    let storage: MappedStorage
    let traits: MediumTraits
    private let writer: DescriptorWriter
    private let lockSpace: OFDLockSpace

    var locks: any LockSpace { lockSpace }

    /// Takes over an open descriptor of a regular file. `kind` is `.file`, or `.flash` where a flash
    /// file system has no direct access.
    init(
        _ descriptor: Descriptor, name: String, kind: MediumKind, access: MediumAccess
    ) throws(MediumError) {
        let isReadOnly = access == .readOnly
        storage = try MappedStorage(
            name: name, descriptor, method: .pages(isWritable: false, pageSize: 4096, prefersHugePages: false))
        writer = try DescriptorWriter(storage, isReadOnly: isReadOnly)
        lockSpace = try OFDLockSpace(path: descriptor.reopeningPath, isReadOnly: isReadOnly, medium: name)
        let reserves = isReadOnly ? false : try Self.reservesSpace(descriptor, name)
        let below = try BlockDevice(under: descriptor, medium: name)
        traits = MediumTraits(
            kind: kind, isReadOnly: isReadOnly, isPersistent: true, isPersistentMemory: false, reservesSpace: reserves,
            directAlignment: writer.alignment, eraseUnit: kind == .flash ? below.discardUnit : .zero,
            writeMethod: writer.method)
    }

    deinit { close() }

    /// Tries the first byte's block, which every store uses.
    private static func reservesSpace(_ descriptor: Descriptor, _ name: String) throws(MediumError) -> Bool {
        if ck_is_copy_on_write(descriptor.number) { return false }
        let result = ck_allocate(descriptor.number, 0, 1)
        if result == -EOPNOTSUPP { return false }
        if result == -ENOSPC { return true }
        try checked(result, name, "reserve space", offset: .zero, length: ByteCount(1))
        return true
    }

    func write(at offset: MediumOffset, _ bytes: UnsafeRawBufferPointer) throws(MediumError) {
        try requireWritable("write")
        try unsafe writer.write(at: offset, bytes)
    }

    func reserve(at offset: MediumOffset, _ length: ByteCount) throws(MediumError) {
        try requireWritable("reserve space")
        _ = try writer.allocate(at: offset, length)
    }

    func flush() throws(MediumError) { try writer.flush() }

    func discard(at offset: MediumOffset, _ length: ByteCount) throws(MediumError) {
        try punchFile(at: offset, length)
    }

    func allocatedBytes(at offset: MediumOffset, _ length: ByteCount) throws(MediumError) -> ByteCount? {
        try fileAllocation(at: offset, length)
    }

    func resize(to size: ByteCount) throws(MediumError) { try resizeFile(to: size) }

    func close() {
        writer.close()
        lockSpace.close()
        storage.close()
    }
}
