// A store on a block device without a file system.
//
// Invariants:
// - Locks are taken on the node that the system made for the device, whatever name it was opened by.
// - A device with a known signature, or in use, is not created on.

import CLinux
import Glibc
import Units

/// A whole disk, a partition or a volume.
final class RawMedium: MappedMedium {
    let storage: MappedStorage
    let traits: MediumTraits
    private let writer: DescriptorWriter
    private let lockSpace: OFDLockSpace

    var locks: any LockSpace { lockSpace }

    /// Takes the device over after looking what is on it. See `createMedium`.
    static func create(_ locator: Locator, size: ByteCount?, force: Bool) throws(MediumError) -> any Medium {
        let name = locator.description
        let claim = try claimDevice(locator)
        defer { claim.close() }
        if let size { try requireSize(size, claim, name) }
        try requireUnlocked(path: lockPath(of: claim, name), name)
        let found = try DeviceSignatures.find(on: claim, medium: name, wiping: force)
        guard found.isEmpty || force else {
            throw MediumError(
                .foreignContent, medium: name, operation: "create a store on it",
                reason: "it carries \(found.joined(separator: ", "))",
                remedy: "Choose another device, or force it if that content is no longer needed.")
        }
        return try openMedium(locator, access: .readWrite)
    }

    /// Opens the device such that nobody else can mount or claim it meanwhile.
    private static func claimDevice(_ locator: Locator) throws(MediumError) -> Descriptor {
        let name = locator.description
        // Says clearly what is wrong when it is no block device.
        let plain = try openMedium(locator, access: .readOnly)
        plain.close()
        let number = locator.open(CK_READ_WRITE | CK_CLAIM)
        guard number == -EBUSY else { return Descriptor(owning: try checked(number, name, "claim it")) }
        let looking = try Descriptor(path: locator.target, flags: .readOnly, medium: name, operation: "open it")
        let mountPoint = try BlockDevice(under: looking, medium: name).mountPoint
        throw MediumError(
            .busy, medium: name, operation: "create a store on it", errno: EBUSY,
            reason: mountPoint.map { "it is mounted at \($0)" } ?? "the system or another process uses it",
            remedy: "Unmount it, or take it out of the volume or swap that it belongs to.")
    }

    private static func requireSize(_ size: ByteCount, _ device: Descriptor, _ name: String) throws(MediumError) {
        var actual: UInt64 = 0
        try checked(unsafe ck_device_size(device.number, &actual), name, "look at its size")
        if size.rawValue == actual { return }
        throw MediumError(
            size.rawValue > actual ? .noSpace : .unsupported, medium: name, operation: "create a store on it",
            length: size, reason: "\(size) bytes were asked for and the device has \(actual)",
            remedy: "Leave the size out to use the whole device.")
    }

    /// The path of the inode that carries the locks.
    private static func lockPath(of descriptor: Descriptor, _ name: String) throws(MediumError) -> String {
        try BlockDevice(under: descriptor, medium: name).canonicalNode ?? descriptor.reopeningPath
    }

    init(_ descriptor: Descriptor, name: String, access: MediumAccess) throws(MediumError) {
        let isReadOnly = access == .readOnly
        storage = try MappedStorage(
            name: name, descriptor, method: .pages(isWritable: false, pageSize: 4096, prefersHugePages: false))
        writer = try DescriptorWriter(storage, isReadOnly: isReadOnly)
        lockSpace = try OFDLockSpace(
            path: Self.lockPath(of: descriptor, name), isReadOnly: isReadOnly, medium: name)
        traits = MediumTraits(
            kind: .raw, isReadOnly: isReadOnly, isPersistent: true, isPersistentMemory: false, reservesSpace: true,
            directAlignment: writer.alignment, eraseUnit: try BlockDevice(under: descriptor, medium: name).discardUnit,
            writeMethod: writer.method)
    }

    deinit { close() }

    func write(at offset: MediumOffset, _ bytes: UnsafeRawBufferPointer) throws(MediumError) {
        try requireWritable("write")
        try unsafe writer.write(at: offset, bytes)
    }

    /// A device's blocks are there already. (A thinly provisioned one can still run out: its writes fail then.)
    func reserve(at offset: MediumOffset, _ length: ByteCount) throws(MediumError) {
        try requireWritable("reserve space")
        try storage.checkRange(at: offset, length, "reserve space")
    }

    func flush() throws(MediumError) { try writer.flush() }

    func discard(at offset: MediumOffset, _ length: ByteCount) throws(MediumError) {
        try requireWritable("discard")
        try storage.checkRange(at: offset, length, "discard")
        guard let units = wholeUnits(at: offset, length) else { return }
        let result = ck_device_discard(storage.descriptor.number, units.offset.rawValue, units.length.rawValue)
        if result == -EOPNOTSUPP { return }
        try checked(result, name, "discard", offset: units.offset, length: units.length)
    }

    func resize(to size: ByteCount) throws(MediumError) {
        throw MediumError(
            .unsupported, medium: name, operation: "resize it", length: size, reason: "a device has a fixed size",
            remedy: "Resize the partition or volume, then open it again.")
    }

    func close() {
        writer.close()
        lockSpace.close()
        storage.close()
    }
}
