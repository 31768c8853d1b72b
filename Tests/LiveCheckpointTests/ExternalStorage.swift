// A storage device outside of the machine's computer system: a server in a process of its own, which makes overlays and handles their faults.

import CNBD
import CheckpointCore
import Foundation
import Threading

/// A disk that a server offers, with what lies on it either written in place or kept apart in an overlay of the server's.
@safe final class ExternalDisk: @unchecked Sendable {
    static let isAvailable = ["/usr/sbin/nbdkit", "/usr/bin/nbdkit"].contains { FileManager.default.isExecutableFile(atPath: $0) }

    private let server: Process
    private let handle: OpaquePointer
    private let folder: String

    /// - Parameter isCopyOnWrite: the server makes an overlay that points to the image, and writes go there.
    init(image: String, isCopyOnWrite: Bool) throws {
        folder = NSTemporaryDirectory() + "ckstore-nbd-\(UUID())"
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: false, attributes: [.posixPermissions: 0o700])
        let socket = folder + "/socket"
        server = Process()
        server.executableURL = URL(fileURLWithPath: "/usr/bin/env")
        server.arguments = ["nbdkit", "--foreground", "--exit-with-parent", "--unix", socket] + (isCopyOnWrite ? ["--filter=cow"] : []) + ["file", image]
        try server.run()
        for _ in 0..<500 where !FileManager.default.fileExists(atPath: socket) { usleep(10_000) }
        guard let handle = unsafe nbd_create() else { throw TestFailure("no NBD client") }
        unsafe self.handle = unsafe handle
        guard unsafe nbd_connect_unix(handle, socket) == 0 else { throw TestFailure(Self.reason) }
    }

    deinit {
        unsafe nbd_shutdown(handle, 0)
        unsafe nbd_close(handle)
        // It has written everything, and may have inherited a mask that blocks what asks politely.
        kill(server.processIdentifier, SIGKILL)
        server.waitUntilExit()
        try? FileManager.default.removeItem(atPath: folder)
    }

    private static var reason: String { unsafe nbd_get_error().map { unsafe String(cString: $0) } ?? "NBD fails" }

    func read(at offset: Int, into bytes: UnsafeMutableRawBufferPointer) throws {
        guard unsafe nbd_pread(handle, bytes.baseAddress!, bytes.count, UInt64(offset), 0) == 0 else { throw TestFailure(Self.reason) }
    }

    /// Written for good when this returns, as far as the server can.
    func write(at offset: Int, _ bytes: [UInt8]) throws {
        let isWritten = unsafe bytes.withUnsafeBytes { unsafe nbd_pwrite(handle, $0.baseAddress!, $0.count, UInt64(offset), 0) == 0 }
        guard isWritten, unsafe nbd_flush(handle, 0) == 0 else { throw TestFailure(Self.reason) }
    }
}
