// Files that this process and QEMU both use: each has its own view of the file system.
//
// Invariants:
// - Paths in QEMU's view are absolute; `seen` turns one into a path that this process can use, whatever root, mounts or working
//   directory QEMU has.
// - What is made here belongs to QEMU's user and nobody else may open it.

import CLinux
import CheckpointCore
import Glibc
import Units

/// The file system as the machine's process sees it.
struct MachineFiles: Sendable {
    private let process: Int32
    /// What has to be put before QEMU's paths; empty when both see the same.
    private let root: String
    private let owner: (user: uid_t, group: gid_t)

    /// - Parameter process: QEMU's; 0 when it can't be seen from here: then both are taken to see the same files.
    init(process: Int32) {
        self.process = process
        let view = "/proc/\(process)"
        let isSame =
            Self.link("\(view)/root") ?? "/" == "/" && Self.link("\(view)/ns/mnt") == Self.link("/proc/self/ns/mnt")
        root = process == 0 || isSame ? "" : "\(view)/root"
        var status = ck_file_status()
        var group = getegid()
        var user = geteuid()
        if process != 0, unsafe ck_status_at(view, &status) == 0 {
            user = status.owner
            group = Self.group(of: process) ?? group
        }
        owner = (user, group)
    }

    /// A path of QEMU's as this process can use it.
    func seen(_ path: String) -> String { root + path }

    /// A path as QEMU was given it, made absolute.
    func absolute(_ path: String) throws(EngineError) -> String {
        if path.hasPrefix("/") { return path }
        guard process != 0, var directory = Self.link("/proc/\(process)/cwd") else {
            throw EngineError(
                .permission, "the machine's working directory can't be read", remedy: "Name a folder for overlays.", place: path)
        }
        if let top = root.isEmpty ? nil : Self.link(root), top != "/", directory.hasPrefix(top) { directory.removeFirst(top.utf8.count) }
        return directory + "/" + path
    }

    /// Makes an empty file that QEMU can write to, and its name durable.
    func create(_ path: String) throws(EngineError) {
        let descriptor = unsafe ck_open(seen(path), UInt32(CK_CREATE.rawValue | CK_READ_WRITE.rawValue))
        if descriptor < 0 { throw EngineError(system: "make the file", -descriptor, place: path) }
        defer { ck_close(descriptor) }
        if geteuid() == 0, fchown(descriptor, owner.user, owner.group) != 0 {
            let number = errno
            remove(path)
            throw EngineError(system: "give the file to QEMU's user", number, place: path)
        }
        let folder = unsafe ck_open(seen(Self.folder(of: path)), 0)
        let status = folder < 0 ? folder : ck_flush_all(folder)
        if folder >= 0 { ck_close(folder) }
        if status < 0 {
            remove(path)
            throw EngineError(system: "make the file's name durable", -status, place: path)
        }
    }

    /// Makes a folder for QEMU and this process.
    func createFolder(_ path: String) throws(EngineError) {
        guard unsafe mkdir(seen(path), 0o700) == 0 else { throw EngineError(system: "make the folder", errno, place: path) }
        if geteuid() == 0, unsafe lchown(seen(path), owner.user, owner.group) != 0 {
            let number = errno
            unsafe rmdir(seen(path))
            throw EngineError(system: "give the folder to QEMU's user", number, place: path)
        }
    }

    /// Gives a socket that this process's child has made to QEMU's user.
    func hand(_ path: String) throws(EngineError) {
        if geteuid() == 0, unsafe lchown(seen(path), owner.user, owner.group) != 0 {
            throw EngineError(system: "give the socket to QEMU's user", errno, place: path)
        }
    }

    /// Removes a file; true when it was there. Files that can't be removed are an error only to who asks for them again.
    @discardableResult func remove(_ path: String) -> Bool { unsafe ck_remove(seen(path)) == 0 }

    func exists(_ path: String) -> Bool {
        var status = ck_file_status()
        return unsafe ck_status_at(seen(path), &status) == 0
    }

    func removeFolder(_ path: String) { unsafe rmdir(seen(path)) }

    /// The bytes that QEMU's user can still write into a folder's file system.
    func freeBytes(in folder: String) throws(EngineError) -> ByteCount {
        var status = statvfs()
        guard unsafe statvfs(seen(folder), &status) == 0 else {
            throw EngineError(system: "learn how much room there is", errno, place: folder)
        }
        return ByteCount(UInt64(status.f_bavail) * UInt64(status.f_frsize))
    }

    /// True when QEMU, or anybody in its network namespace, listens at a local socket of this path.
    func isListening(at path: String) -> Bool {
        let view = process == 0 ? "self" : "\(process)"
        guard let table = Self.text("/proc/\(view)/net/unix") else { return exists(path) }
        // Number, references, protocol, flags (__SO_ACCEPTCON: listens), type, state, inode, path.
        return table.split(separator: "\n").contains { line in
            let fields = line.split(separator: " ", maxSplits: 7)
            return fields.count == 8 && fields[7] == path && (UInt32(fields[3], radix: 16) ?? 0) & 0x10000 != 0
        }
    }

    static func folder(of path: String) -> String {
        guard let slash = path.lastIndex(of: "/"), slash != path.startIndex else { return "/" }
        return String(path[..<slash])
    }

    private static func link(_ path: String) -> String? {
        unsafe withUnsafeTemporaryAllocation(of: CChar.self, capacity: 4096) { buffer in
            let length = unsafe readlink(path, buffer.baseAddress!, buffer.count)
            guard length > 0, length < 4096 else { return nil }
            return unsafe String(decoding: buffer[..<length].map { UInt8(bitPattern: $0) }, as: UTF8.self)
        }
    }

    private static func group(of process: Int32) -> gid_t? {
        // "Gid:", then the real, effective, saved and file system's group.
        let line = text("/proc/\(process)/status")?.split(separator: "\n").first { $0.hasPrefix("Gid:") }
        return line?.split(whereSeparator: { $0 == "\t" || $0 == " " }).dropFirst(2).first.flatMap { gid_t($0) }
    }

    /// A file of the proc file system, which has no length beforehand.
    private static func text(_ path: String) -> String? {
        let descriptor = unsafe ck_open(path, 0)
        guard descriptor >= 0 else { return nil }
        defer { ck_close(descriptor) }
        var bytes: [UInt8] = []
        var chunk = [UInt8](repeating: 0, count: 65536)
        while true {
            let count = unsafe read(descriptor, &chunk, chunk.count)
            if count <= 0 { return count == 0 ? String(decoding: bytes, as: UTF8.self) : nil }
            bytes += chunk[..<count]
        }
    }
}
