// A store in memory: shared memory by name, or anonymous memory of this process.
//
// Invariant: named memory lies in the system's shared memory under a prefix of ours, so that stores
// can be found and nothing else is taken for one.

import CLinux
import CPMem
import Glibc
import Units

/// Shared memory. Its content is gone with the machine's next start.
public final class RAMMedium: MappedMedium {
    /// The pages that the memory is made of.
    enum Pages: String, Sendable {
        case small = "memory"
        case transparentHuge = "memory, transparent huge pages"
        case huge = "memory, huge pages"
    }

    let storage: MappedStorage
    /// What it is like; `writeMethod` says which pages it got.
    public let traits: MediumTraits
    private let writer: MemoryWriter
    private let lockSpace: OFDLockSpace

    /// The locks of this handle.
    public var locks: any LockSpace { lockSpace }

    /// Memory of this process alone, gone when it is closed, of `size` bytes. With `hugePages` it asks
    /// for huge pages from the system's pool, where they are too few for transparent ones, and where
    /// there are none for small ones: `traits.writeMethod` says which came of it. The size is rounded up to
    /// whole pages of the kind. Throws `.systemLimit` when the system has no memory for it.
    public static func anonymous(size: ByteCount, hugePages: Bool = false) throws(MediumError) -> RAMMedium {
        if hugePages, let medium = try? anonymous(size: size, pages: .huge) { return medium }
        let transparent = hugePages && TransparentHugePages.anonymousMemory
        return try anonymous(size: size, pages: transparent ? .transparentHuge : .small)
    }

    private static func anonymous(size: ByteCount, pages: Pages) throws(MediumError) -> RAMMedium {
        let name = "anonymous memory"
        let number = unsafe ck_open_anonymous("ckstore", pages == .huge)
        let descriptor = Descriptor(owning: try checked(number, name, "create it"))
        let unit = UInt64(try descriptor.status(medium: name).block_size)
        guard size.rawValue <= UInt64(Int64.max) - unit else {
            throw .system(EFBIG, medium: name, operation: "create it", length: size)
        }
        let rounded = size.roundedUp(to: unit)
        try checked(ck_set_size(descriptor.number, rounded.rawValue), name, "create it", length: rounded)
        return try RAMMedium(descriptor, name: name, access: .readWrite, pages: pages)
    }

    /// The names of the shared memories that `ram:` locators can open now, sorted.
    public static func names() -> [String] {
        ProcessFiles.entries("/dev/shm").filter { $0.hasPrefix(prefix) }.map { String($0.dropFirst(prefix.count)) }
            .sorted()
    }

    private static let prefix = "ckstore."

    /// The system's name for the shared memory `name`.
    static func systemName(_ name: String) -> String { "/\(prefix)\(name)" }

    init(_ descriptor: Descriptor, name: String, access: MediumAccess, pages: Pages) throws(MediumError) {
        let isReadOnly = access == .readOnly
        // A huge page can only be mapped, freed and reserved whole; its file system calls it a block.
        let unit = max(4096, Int(try descriptor.status(medium: name).block_size))
        storage = try MappedStorage(
            name: name, descriptor,
            method: .pages(
                isWritable: !isReadOnly, pageSize: unit, prefersHugePages: pages == .transparentHuge))
        writer = MemoryWriter(storage: storage, flags: MemoryWriter.volatile)
        lockSpace = try OFDLockSpace(path: descriptor.reopeningPath, isReadOnly: isReadOnly, medium: name)
        traits = MediumTraits(
            kind: .ram, isReadOnly: isReadOnly, isPersistent: false, isPersistentMemory: false,
            reservesSpace: !isReadOnly, directAlignment: unit, eraseUnit: .zero, writeMethod: pages.rawValue)
    }

    deinit { close() }

    /// Copies into the memory. Throws `.noSpace` where the system has no page for it.
    public func write(at offset: MediumOffset, _ bytes: UnsafeRawBufferPointer) throws(MediumError) {
        try requireWritable("write")
        try unsafe writer.write(at: offset, bytes)
    }

    /// Takes the range's pages from the system.
    public func reserve(at offset: MediumOffset, _ length: ByteCount) throws(MediumError) {
        try requireWritable("reserve space")
        try writer.reserve(at: offset, length)
    }

    /// A fence: memory has nothing that could be made durable.
    public func flush() throws(MediumError) { pmem_drain() }

    /// Gives the range's pages back to the system.
    public func discard(at offset: MediumOffset, _ length: ByteCount) throws(MediumError) {
        try punchFile(at: offset, length)
    }

    /// The pages that the system has given for the range; unknown for huge ones from its pool.
    public func allocatedBytes(at offset: MediumOffset, _ length: ByteCount) throws(MediumError) -> ByteCount? {
        traits.writeMethod == Pages.huge.rawValue ? nil : try fileAllocation(at: offset, length)
    }

    /// Changes the size; huge pages can only be added and taken whole.
    public func resize(to size: ByteCount) throws(MediumError) { try resizeFile(to: size) }

    /// Releases mapping, descriptors and locks. The named memory stays.
    public func close() {
        lockSpace.close()
        storage.close()
    }
}
