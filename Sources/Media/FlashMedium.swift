// A store on persistent memory: stores through the mapping that are persistent without the kernel.
// On flash without direct access it is a file, with the flash's erase unit among its traits.

import CLinux
import CPMem
import Units

/// A file on a file system with direct access (DAX).
final class FlashMedium: MappedMedium {
    let storage: MappedStorage
    let traits: MediumTraits
    private let writer: MemoryWriter
    private let lockSpace: OFDLockSpace

    var locks: any LockSpace { lockSpace }

    /// Asks libpmem whether the file is persistent memory, and picks the medium that fits. A handle
    /// for reading needs no answer: it reads through an ordinary mapping, which is direct by itself.
    static func open(
        _ descriptor: Descriptor, name: String, access: MediumAccess
    ) throws(MediumError) -> any Medium {
        if access == .readWrite, let mapped = unsafe PersistentMemory.map(descriptor) {
            _ = unsafe pmem_unmap(mapped.base, mapped.length)
            if unsafe mapped.isPersistent { return try FlashMedium(descriptor, name: name) }
        }
        return try FileMedium(descriptor, name: name, kind: .flash, access: access)
    }

    private init(_ descriptor: Descriptor, name: String) throws(MediumError) {
        storage = try MappedStorage(name: name, descriptor, method: .persistentMemory)
        writer = MemoryWriter(storage: storage, flags: MemoryWriter.persistent)
        lockSpace = try OFDLockSpace(path: descriptor.reopeningPath, isReadOnly: false, medium: name)
        traits = MediumTraits(
            kind: .flash, isReadOnly: false, isPersistent: true, isPersistentMemory: true, reservesSpace: true,
            directAlignment: 4096, eraseUnit: .zero, writeMethod: "pmem")
    }

    deinit { close() }

    func write(at offset: MediumOffset, _ bytes: UnsafeRawBufferPointer) throws(MediumError) {
        try unsafe writer.write(at: offset, bytes)
    }

    func reserve(at offset: MediumOffset, _ length: ByteCount) throws(MediumError) {
        try writer.reserve(at: offset, length)
    }

    /// Every write has drained its own stores (see `MemoryWriter`), and the mapping is synchronous, so that
    /// block allocations are durable before the stores that need them.
    func flush() throws(MediumError) { pmem_drain() }

    func discard(at offset: MediumOffset, _ length: ByteCount) throws(MediumError) {
        try punchFile(at: offset, length)
    }

    func allocatedBytes(at offset: MediumOffset, _ length: ByteCount) throws(MediumError) -> ByteCount? {
        try fileAllocation(at: offset, length)
    }

    /// Durable on return, since no later flush reaches the kernel.
    func resize(to size: ByteCount) throws(MediumError) {
        try resizeFile(to: size)
        try checked(ck_flush_all(storage.descriptor.number), name, "flush its size")
    }

    func close() {
        lockSpace.close()
        storage.close()
    }
}
