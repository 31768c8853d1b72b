// The server that QEMU sends every write to while a log is kept: nbdkit with ckstore's plugin.
//
// Invariants:
// - The log's files have no name: nothing is left of them when this process and the server have ended.
// - The server ends with this process, however that ends.

import CLinux
import CheckpointCore
import Glibc
import QMP
import Units

/// A running write log of some disks.
final class WriteLogServer: Sendable {
    /// The server's process, for tests that end it.
    var process: Int32 { child.pid }
    private let child: ChildProcess
    private let data: LogFile
    private let index: LogFile
    private let disks: [ByteCount]
    /// What the clocks said when the log began.
    private let wallClockLead: Int64

    /// Starts a server; its exports are named by the disks' numbers, from 0. It answers when this returns.
    /// - Parameters:
    ///   - socket: where it shall listen, in QEMU's view.
    ///   - folder: where the log goes, in this process's view.
    init(disks: [ByteCount], socket: String, folder: String, files: MachineFiles) throws(EngineError) {
        self.disks = disks
        data = try LogFile(in: folder)
        index = try LogFile(in: folder)
        let messages = try LogFile(in: folder)
        wallClockLead = Instant.wallClockLeadNanoseconds
        let path = files.seen(socket)
        child = try ChildProcess.spawn(
            executable: "nbdkit",
            arguments: ["-f", "-U", path, try Self.pluginPath(), "data=3", "index=4"] + disks.map { "disk=\($0)" },
            inheriting: [(messages.descriptor, 1), (messages.descriptor, 2), (data.descriptor, 3), (index.descriptor, 4)],
            diesWithParent: true)
        do throws(EngineError) {
            try awaitStart(path, messages)
            try files.hand(socket)
        } catch {
            stop()
            throw error
        }
    }

    deinit { stop() }

    /// Ends the server. Harmless to repeat.
    func stop() {
        // Nobody else reaps this child, and it has this process's user: neither call can fail.
        try? child.kill()
        _ = try? child.wait(timeoutMilliseconds: nil)
    }

    private func awaitStart(_ path: String, _ messages: LogFile) throws(EngineError) {
        let deadline = Instant.now + 10_000
        while true {
            let socket = unsafe ck_connect_local(path)
            if socket >= 0 {
                ck_close(socket)
                return
            }
            if let status = try child.wait(timeoutMilliseconds: 2) {
                let text = String(decoding: try messages.bytes(limit: 4096), as: UTF8.self)
                throw EngineError(
                    .ioFailed, "nbdkit did not start (\(status)): \(text.split(separator: "\n").joined(separator: "; "))",
                    remedy: "nbdkit and the plugin must fit each other.", place: path)
            }
            if Instant.now > deadline {
                throw EngineError(.timeout, "nbdkit does not answer", remedy: "Try again on a less busy host.", place: path)
            }
        }
    }

    /// What was written until an instant. Call it when the server has ended, or nothing is being written.
    /// - Throws: `.ioFailed` with the advice to try again when the wall clock was set meanwhile; `.corrupt`.
    func writes(until instant: Int64) throws(EngineError) -> WriteLog {
        try WriteLog(
            index: try index.bytes(limit: nil), data: data, disks: disks, untilMicroseconds: instant, wallClockLead: wallClockLead)
    }

    /// Where the plugin is: as the environment says, else beside the running programme.
    private static func pluginPath() throws(EngineError) -> String {
        let name = "libckstore-nbd-log.so"
        if let path = unsafe getenv("CKSTORE_NBD_PLUGIN") { return unsafe String(cString: path) }
        let folder = unsafe withUnsafeTemporaryAllocation(of: CChar.self, capacity: 4096) { buffer in
            let length = unsafe readlink("/proc/self/exe", buffer.baseAddress!, buffer.count)
            return unsafe MachineFiles.folder(
                of: String(decoding: buffer[..<max(0, length)].map { UInt8(bitPattern: $0) }, as: UTF8.self))
        }
        let path = folder + "/" + name
        var status = ck_file_status()
        guard unsafe ck_status_at(path, &status) == 0 else {
            throw EngineError(
                .notFound, "the plugin that logs writes is not there",
                remedy: "Put \(name) beside the programme, or name it in CKSTORE_NBD_PLUGIN.", place: path)
        }
        return path
    }
}

/// A file without a name.
final class LogFile: Sendable {
    let descriptor: Int32

    init(in folder: String) throws(EngineError) {
        descriptor = unsafe ck_open(folder, UInt32(CK_TEMPORARY.rawValue))
        if descriptor < 0 { throw EngineError(system: "make a temporary file", -descriptor, place: folder) }
    }

    deinit { ck_close(descriptor) }

    /// The whole content, or its first `limit` bytes.
    func bytes(limit: Int?) throws(EngineError) -> [UInt8] {
        var status = ck_file_status()
        let error = unsafe ck_status(descriptor, &status)
        if error < 0 { throw EngineError(system: "look at the log", -error) }
        var bytes = [UInt8](repeating: 0, count: min(Int(status.size), limit ?? Int.max))
        let count = unsafe bytes.withUnsafeMutableBytes { unsafe ck_read_at(descriptor, $0.baseAddress, $0.count, 0) }
        if count < 0 { throw EngineError(system: "read the log", Int32(-count)) }
        guard count == bytes.count else { throw EngineError(.ioFailed, "the log became shorter") }
        return bytes
    }

    func read(into buffer: UnsafeMutableRawBufferPointer, at position: UInt64) throws(EngineError) {
        let count = unsafe ck_read_at(descriptor, buffer.baseAddress, buffer.count, position)
        if count < 0 { throw EngineError(system: "read the log", Int32(-count)) }
        guard count == buffer.count else { throw EngineError(.corrupt, "the log ends within a write's data") }
    }
}
