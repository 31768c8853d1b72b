// Where a backup waits for connections: a local socket.
//
// Invariant: the socket's file belongs to its creator alone (mode 0600), and goes with the listener.

import CLinux
import CheckpointCore
import Glibc
import Units

/// A local socket that listens. Thread-safe.
public final class BackupListener: Sendable {
    private let descriptor: OwnedDescriptor
    private let stopEvent: OwnedDescriptor
    private let path: String

    /// - Throws: `.ioFailed` when something is there already, `.invalidInput` for a path that is too long for a socket.
    public init(path: String) throws(EngineError) {
        self.path = path
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        let room = MemoryLayout.size(ofValue: address.sun_path)
        guard path.utf8.count < room, !path.isEmpty else {
            throw EngineError(.invalidInput, "the path is too long for a socket", remedy: "Use one of fewer than \(room) bytes.", place: path)
        }
        unsafe withUnsafeMutableBytes(of: &address.sun_path) { unsafe $0.copyBytes(from: path.utf8) }
        stopEvent = OwnedDescriptor(owning: try checked(ck_open_event(), "make an event", place: path))
        let number = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
        descriptor = OwnedDescriptor(owning: try checked(number < 0 ? -errno : number, "make a socket", place: path))
        // The mode of the descriptor is that of the file: nobody can connect before it is private.
        var result = fchmod(number, 0o600)
        if result == 0 {
            result = unsafe withUnsafePointer(to: &address) { pointer in
                unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                    unsafe bind(number, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
                }
            }
        }
        try checked(result < 0 ? -errno : 0, "listen there", place: path, remedy: "Remove what an ended backup has left there.")
        try checked(listen(number, 8) < 0 ? -errno : 0, "listen there", place: path)
    }

    /// The next connection; nil after `close`. Blocks.
    public func accept() throws(EngineError) -> BackupSocket? {
        while true {
            let ready = try checked(ck_wait(descriptor.number, Int32(CK_READABLE), stopEvent.number, -1), "wait for a connection", place: path)
            if ready & Int32(CK_EVENT) != 0 { return nil }
            let number = Glibc.accept(descriptor.number, nil, nil)
            if number < 0, errno == EINTR || errno == ECONNABORTED || errno == EAGAIN { continue }
            try checked(number < 0 ? -errno : number, "accept a connection", place: path)
            // Programs that are started meanwhile get no descriptors that they were not given: see ck_spawn.
            _ = fcntl(number, F_SETFD, FD_CLOEXEC)
            return try BackupSocket(adopting: number, place: path)
        }
    }

    /// Lets `accept` return and removes the socket's file.
    public func close() {
        ck_signal_event(stopEvent.number)
        unsafe ck_remove(path)
    }
}
