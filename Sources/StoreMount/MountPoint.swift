// Where a store is mounted: what is wrong with a place, before and after.
//
// Invariant: a failure says what the place is and what would make it good.

import CStoreMount
import CheckpointStore
import Glibc

/// A directory that can be mounted on.
struct MountPoint: Sendable {
    /// Absolute, without symbolic links: it stays right when the process goes elsewhere.
    let path: String

    /// Checks that `path` is an empty directory with nothing mounted on it, and that this process may mount at all.
    /// - Throws: `.notFound`, `.invalidInput`, `.busy`, `.permission`, `.ioFailed`.
    init(_ path: String) throws(StoreError) {
        switch unsafe ck_is_mount_point(path) {
        // The kernel may still know attributes of a mount that has died; it can't open it.
        case 1 where !Self.hasDied(path):
            throw StoreError(
                .busy, "something is mounted on \(path) already", remedy: "Unmount it (`umount \(path)`), or choose another directory.")
        case 0: break
        case 1, -ENOTCONN, -ECONNABORTED:
            throw StoreError(
                .busy, "\(path) is a mount whose process has ended",
                remedy: "Take it off with `fusermount3 -u \(path)` (or `umount \(path)`), then try again.")
        case let status: throw Self.error("mount on \(path)", -status)
        }
        guard let absolute = unsafe realpath(path, nil) else { throw Self.error("mount on \(path)", errno) }
        defer { unsafe free(absolute) }
        self.path = unsafe String(cString: absolute)
        try Self.requireEmptyFolder(self.path)
        try Self.requireDevice()
    }

    private static func hasDied(_ path: String) -> Bool {
        guard let folder = unsafe opendir(path) else { return errno == ENOTCONN || errno == ECONNABORTED }
        unsafe closedir(folder)
        return false
    }

    private static func requireEmptyFolder(_ path: String) throws(StoreError) {
        guard let folder = unsafe opendir(path) else {
            throw errno == ENOTDIR
                ? StoreError(.invalidInput, "\(path) is not a directory", remedy: "Make an empty one (mkdir) and mount on that.")
                : error("look into \(path)", errno)
        }
        defer { unsafe closedir(folder) }
        while let entry = unsafe readdir(folder) {
            let name = unsafe withUnsafePointer(to: &entry.pointee.d_name) {
                unsafe $0.withMemoryRebound(to: CChar.self, capacity: 256) { unsafe String(cString: $0) }
            }
            guard name == "." || name == ".." else {
                throw StoreError(
                    .invalidInput, "\(path) is not empty: a mount would hide what is in it",
                    remedy: "Make an empty directory and mount on that.")
            }
        }
    }

    private static func requireDevice() throws(StoreError) {
        let device = "/dev/fuse"
        if unsafe access(device, R_OK | W_OK) == 0 { return }
        if errno == ENOENT {
            throw StoreError(
                .ioFailed, "there is no \(device)",
                remedy: "Load the kernel's part with `modprobe fuse`; a container needs `--device \(device)`.")
        }
        throw StoreError(
            .permission, "this process may not use \(device)",
            remedy: "Run as root, or have the administrator give you access; a container needs `--device \(device) --cap-add SYS_ADMIN`.")
    }

    /// The error of a mount that failed. `message`: what libfuse said.
    func failure(_ number: Int32, _ message: String) -> StoreError {
        let text = message.isEmpty ? unsafe String(cString: strerror(number)) : message
        return StoreError(
            number == EPERM || number == EACCES ? .permission : .ioFailed, "can't mount on \(path): \(text)",
            remedy: geteuid() == 0
                ? "A container needs `--device /dev/fuse --cap-add SYS_ADMIN`."
                : "Install the package fuse3 (users mount through its fusermount3), mount on a directory of your own, or run as root. "
                    + "--allow-other needs user_allow_other in /etc/fuse.conf.")
    }

    /// Takes the mount off, unless it is off already; another one that is there by now stays. See `ck_unmount`.
    /// - Throws: `.busy` while somebody uses it and it is not to be detached; `.permission`, `.ioFailed`.
    func unmount(_ mounted: ck_mount_identity, detach: Bool) throws(StoreError) {
        var mounted = mounted
        switch unsafe ck_unmount(path, &mounted, detach) {
        // Not mounted any more: somebody else was faster.
        case 0, -EINVAL, -ENOENT: return
        case -EBUSY:
            throw StoreError(.busy, "\(path) is in use", remedy: "Close the files in it; `fuser -vm \(path)` shows who has some open.")
        case let status: throw Self.error("unmount \(path)", -status)
        }
    }

    private static func error(_ what: String, _ number: Int32) -> StoreError {
        let code: StoreError.Code =
            switch number {
            case ENOENT: .notFound
            case ENOTDIR, ENAMETOOLONG, ELOOP: .invalidInput
            case EACCES, EPERM: .permission
            default: .ioFailed
            }
        return StoreError(code, "can't \(what): \(unsafe String(cString: strerror(number)))", remedy: "Check the path.")
    }
}
