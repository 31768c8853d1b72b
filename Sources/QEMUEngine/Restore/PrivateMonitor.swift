// A monitor of our own in the QEMU that we start: a socket in a folder that only this user can enter.
//
// Invariants:
// - The socket listens before QEMU starts, so that nobody has to ask again and again whether it is there.
// - Its name in QEMU says which checkpoint is being restored: whoever goes on with a restore can see whether it is the one.
// - The folder is removed by `remove`. If this process is killed before, it stays: through it the restore can be gone on with.

import CheckpointCore
import Glibc
import QMP
import Threading
import Units

/// A folder that only this user can enter, for sockets.
struct PrivateFolder: Sendable {
    let path: String

    /// - Throws: `.noSpace`, `.permission`, `.ioFailed`.
    init() throws(EngineError) {
        let root = unsafe (getenv("XDG_RUNTIME_DIR") ?? getenv("TMPDIR")).map { unsafe String(cString: $0) } ?? "/tmp"
        var template = Array("\(root)/ckstore-XXXXXX".utf8CString)
        guard unsafe mkdtemp(&template) != nil else { throw EngineError(system: "make a private folder", errno, place: root) }
        path = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }

    /// Removes it, which must be empty. One that can't be removed is in nobody's way.
    func remove() { unsafe rmdir(path) }
}

/// Where our monitor is, and what QEMU is told of it.
final class PrivateMonitor: Sendable {
    /// The socket's path.
    let path: String
    private let folder: PrivateFolder
    private let listener: Lock<Int32>
    private static let labelPrefix = "ckstore-restore-"

    /// Makes the folder and the socket.
    /// - Throws: `.noSpace`, `.permission`, `.ioFailed`; then nothing is left.
    init() throws(EngineError) {
        folder = try PrivateFolder()
        path = folder.path + "/qmp.sock"
        do throws(EngineError) { listener = Lock(try Self.listen(at: path)) } catch {
            folder.remove()
            throw error
        }
    }

    deinit { handOver() }

    private static func listen(at path: String) throws(EngineError) -> Int32 {
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        let bytes = Array(path.utf8)
        guard bytes.count < MemoryLayout.size(ofValue: address.sun_path) else {
            throw EngineError(
                .invalidInput, "the folder for temporary files has too long a name for a socket", remedy: "Set TMPDIR to another one.",
                place: path)
        }
        unsafe withUnsafeMutableBytes(of: &address.sun_path) { unsafe $0.copyBytes(from: bytes) }
        let number = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
        guard number >= 0 else { throw EngineError(system: "make a socket", errno) }
        let status = unsafe withUnsafePointer(to: &address) { pointer in
            unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { plain in
                unsafe bind(number, plain, socklen_t(MemoryLayout<sockaddr_un>.size))
            }
        }
        guard status == 0, Glibc.listen(number, 1) == 0 else {
            let code = errno
            close(number)
            unsafe unlink(path)
            throw EngineError(system: "listen at a socket", code, place: path)
        }
        return number
    }

    /// What QEMU gets to serve the monitor: the descriptor and its number there, and arguments.
    func inherited(as number: Int32) -> (parent: Int32, child: Int32) { (listener.withLock { $0 }, number) }

    /// QEMU has the socket: it is no longer ours.
    func handOver() {
        listener.withLock { number in
            if number >= 0 { close(number) }
            number = -1
        }
    }

    static func arguments(descriptor: Int32, checkpoint: CheckpointID) -> [String] {
        let label = labelPrefix + checkpoint.description
        return ["-chardev", "socket,id=\(label),fd=\(descriptor),server=on,wait=off", "-mon", "chardev=\(label),mode=control"]
    }

    /// The checkpoint that the machine was started for; nil when it was not started by a restore.
    static func checkpoint(of qmp: QMPClient) throws(EngineError) -> CheckpointID? {
        let labels = try qmp.execute("query-chardev").array?.compactMap { $0["label"]?.string } ?? []
        return labels.filter { $0.hasPrefix(labelPrefix) }.compactMap { CheckpointID(hex: $0.dropFirst(labelPrefix.count)) }.first
    }

    /// Removes socket and folder; clients that are connected stay so.
    func remove() {
        unsafe unlink(path)
        folder.remove()
    }
}
