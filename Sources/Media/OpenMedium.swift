// The ways in: from a locator to a medium.
//
// Invariants:
// - Creating destroys nothing in silence: content, foreign signatures and users of the medium are
//   refusals unless forced, and users even then.
// - A create that fails leaves no new file behind.

import CLinux
import Glibc
import SystemPackage
import Units

/// Opens the medium that `locator` names. Blocks on I/O. Throws `.notFound`, `.permission`,
/// `.invalidLocator` where the locator's kind does not fit what is there, and what else the system says.
public func openMedium(_ locator: Locator, access: MediumAccess) throws(MediumError) -> any Medium {
    let name = locator.description
    try requireFittingType(locator)
    let flags = access == .readOnly ? ck_open_flags.readOnly : CK_READ_WRITE
    let descriptor = Descriptor(owning: try checked(locator.open(flags), name, "open it"))
    return try locator.medium(over: descriptor, access: access)
}

/// Creates a medium of `size` bytes, open for writing, and durable as far as the medium itself goes.
/// Files and memory read as zeros then, a device as whatever is on it. Without `size` a device has its own,
/// and files and memory have none until they are resized; flash needs one.
///
/// Throws `.exists` for a file or shared memory with content and `.foreignContent` for a device with
/// a known signature, unless `force` is given; `.busy` for a device or store that somebody uses.
/// With `force`, what was there is lost. A device's content that has no known signature (another
/// store's, say) is not seen here: that is for the caller to look at.
public func createMedium(
    _ locator: Locator, size: ByteCount? = nil, force: Bool = false
) throws(MediumError) -> any Medium {
    switch locator.kind {
    case .raw: return try RawMedium.create(locator, size: size, force: force)
    case .file, .ram: return try createFile(locator, size: size ?? .zero, force: force)
    case .flash:
        guard let size, size > .zero else {
            throw MediumError(
                .unsupported, medium: locator.description, operation: "create it",
                reason: "flash can't be mapped without a size", remedy: "Give a size.")
        }
        return try createFile(locator, size: size, force: force)
    }
}

/// Removes the file or shared memory that `locator` names; whoever has it open keeps it until closing.
/// Throws `.notFound`, and `.unsupported` for devices.
public func removeMedium(_ locator: Locator) throws(MediumError) {
    guard locator.kind != .raw else {
        throw MediumError(
            .unsupported, medium: locator.description, operation: "remove it", reason: "a device can't be removed")
    }
    try checked(locator.remove(), locator.description, "remove it")
}

private func createFile(_ locator: Locator, size: ByteCount, force: Bool) throws(MediumError) -> any Medium {
    let name = locator.description
    guard size.rawValue <= UInt64(Int64.max) else {
        throw .system(EFBIG, medium: name, operation: "create it", length: size)
    }
    var number = locator.open(CK_READ_WRITE | CK_CREATE)
    let isNew = number != -EEXIST
    if !isNew {
        try requireFittingType(locator)
        number = locator.open(CK_READ_WRITE)
    }
    let descriptor = Descriptor(owning: try checked(number, name, "create it"))
    do {
        if !isNew { try clear(descriptor, locator, force: force) }
        try checked(ck_set_size(descriptor.number, size.rawValue), name, "create it", length: size)
        if locator.kind != .ram {
            try checked(ck_flush_all(descriptor.number), name, "flush it")
            try flushDirectory(of: locator)
        }
        return try locator.medium(over: descriptor, access: .readWrite)
    } catch {
        if isNew { _ = locator.remove() }
        throw error
    }
}

/// Empties a file that was there before.
private func clear(_ descriptor: Descriptor, _ locator: Locator, force: Bool) throws(MediumError) {
    let name = locator.description
    let size = ByteCount(try descriptor.status(medium: name).size)
    guard size > .zero else { return }
    guard force else {
        throw MediumError(
            .exists, medium: name, operation: "create it", errno: EEXIST, reason: "it is there and holds \(size) bytes",
            remedy: "Choose another name, or force it if the content is no longer needed.")
    }
    try requireUnlocked(path: descriptor.reopeningPath, name)
    try checked(ck_set_size(descriptor.number, 0), name, "empty it")
}

/// Throws `.busy` when some other handle holds any lock on the inode.
func requireUnlocked(path: String, _ name: String) throws(MediumError) {
    let locks = try OFDLockSpace(path: path, isReadOnly: false, medium: name)
    defer { locks.close() }
    let everything = LockRange(start: 0, count: OFDLockSpace.base)
    guard try !locks.isFree(everything, for: .exclusive) else { return }
    let holders = locks.holders(of: everything).map(\.description).joined(separator: ", ")
    throw MediumError(
        .busy, medium: name, operation: "create it", reason: "\(holders) uses the store on it",
        remedy: "Close the store there first.")
}

/// Makes the file's name durable.
private func flushDirectory(of locator: Locator) throws(MediumError) {
    let directory = FilePath(locator.target).removingLastComponent()
    let path = directory.isEmpty ? "." : directory.string
    let descriptor = try Descriptor(
        path: path, flags: .readOnly, medium: locator.description, operation: "open its directory")
    defer { descriptor.close() }
    try checked(ck_flush_all(descriptor.number), locator.description, "flush its directory")
}

/// Throws when what is there is of another kind than the locator says. Looks before opening: to open
/// a pipe or a tape has effects of its own.
private func requireFittingType(_ locator: Locator) throws(MediumError) {
    guard locator.kind != .ram else { return }
    let name = locator.description
    var status = ck_file_status()
    try checked(unsafe ck_status_at(locator.target, &status), name, "open it")
    switch (status.type, locator.kind == .raw) {
    case (CK_BLOCK, true), (CK_REGULAR, false): return
    case (CK_BLOCK, false):
        throw MediumError(
            .invalidLocator, medium: name, operation: "open it", reason: "it is a block device",
            remedy: "Use raw:\(locator.target).")
    case (CK_REGULAR, true):
        throw MediumError(
            .invalidLocator, medium: name, operation: "open it", reason: "it is a file and no block device",
            remedy: "Use file:\(locator.target).")
    default:
        throw MediumError(
            .invalidLocator, medium: name, operation: "open it",
            reason: status.type == CK_DIRECTORY ? "it is a directory" : "it is neither a file nor a block device",
            remedy: locator.kind == .raw ? "Name a block device." : "Name a file.")
    }
}

extension Locator {
    /// Opens what it names. Returns a descriptor or a negative errno value.
    func open(_ flags: ck_open_flags) -> Int32 {
        kind == .ram
            ? unsafe ck_open_shared_memory(RAMMedium.systemName(target), flags.rawValue)
            : unsafe ck_open(target, flags.rawValue)
    }

    fileprivate func remove() -> Int32 {
        kind == .ram ? unsafe ck_remove_shared_memory(RAMMedium.systemName(target)) : unsafe ck_remove(target)
    }

    /// The medium of this kind over an open descriptor.
    func medium(over descriptor: Descriptor, access: MediumAccess) throws(MediumError) -> any Medium {
        switch kind {
        case .raw: try RawMedium(descriptor, name: description, access: access)
        case .file: try FileMedium(descriptor, name: description, kind: .file, access: access)
        case .ram:
            try RAMMedium(
                descriptor, name: description, access: access,
                pages: TransparentHugePages.sharedMemory ? .transparentHuge : .small)
        case .flash: try FlashMedium.open(descriptor, name: description, access: access)
        }
    }
}
