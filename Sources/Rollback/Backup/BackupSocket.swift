// The connection between a machine's process and its backup: a stream socket that does not leave this host.
//
// Frames are checked and not encrypted, so only local sockets and TCP over the loopback address are taken; whoever wants the backup in another
// computer has it at the end of a tunnel (ssh, TLS) that ends in one of these.
//
// Invariant: nothing waits without a limit or a way to be stopped.

import CLinux
import CheckpointCore
import Glibc
import Threading
import Units

/// A connected socket. Thread-safe as far as one thread uses it at a time, and others close it.
public final class BackupSocket: Sendable {
    private let descriptor: OwnedDescriptor
    private let stopEvent: OwnedDescriptor
    let place: String

    /// Takes over a connected stream socket: local, or TCP over loopback.
    /// - Throws: `.unsupported` for any other.
    public init(adopting descriptor: Int32, place: String = "backup") throws(EngineError) {
        self.descriptor = OwnedDescriptor(owning: descriptor)
        self.place = place
        stopEvent = OwnedDescriptor(owning: try checked(ck_open_event(), "make an event", place: place))
        guard Self.staysHere(descriptor) else {
            throw EngineError(
                .unsupported, "the connection to the backup leaves this host, and its frames are not encrypted",
                remedy: "Use a local socket, or a tunnel that ends in one.", place: place)
        }
    }

    /// Connects to a backup that listens on a local socket.
    /// - Throws: `.notFound`, `.ioFailed`: nobody listens.
    public static func connect(path: String) throws(EngineError) -> BackupSocket {
        let number = try checked(
            unsafe ck_connect_local(path), "connect to the backup", place: path, remedy: "Start the backup process, which listens there.")
        return try BackupSocket(adopting: number, place: path)
    }

    /// Two connected ends, for a backup in this process.
    public static func pair() throws(EngineError) -> (BackupSocket, BackupSocket) {
        var ends: (Int32, Int32) = (0, 0)
        let result = unsafe withUnsafeMutableBytes(of: &ends) { bytes in
            unsafe socketpair(
                AF_UNIX, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0, bytes.assumingMemoryBound(to: Int32.self).baseAddress!)
        }
        try checked(result < 0 ? -errno : 0, "make a pair of sockets")
        return (try BackupSocket(adopting: ends.0), try BackupSocket(adopting: ends.1))
    }

    /// Ends what another thread waits for here; nothing works any more.
    public func stop() { ck_signal_event(stopEvent.number) }

    private static func staysHere(_ descriptor: Int32) -> Bool {
        var address = sockaddr_storage()
        var length = socklen_t(MemoryLayout<sockaddr_storage>.size)
        let result = unsafe withUnsafeMutablePointer(to: &address) { pointer in
            unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { unsafe getpeername(descriptor, $0, &length) }
        }
        guard result == 0 else { return false }
        switch Int32(address.ss_family) {
        case AF_UNIX: return true
        case AF_INET:
            return unsafe withUnsafeBytes(of: &address) { unsafe $0[MemoryLayout<sockaddr_in>.offset(of: \.sin_addr)!] == 127 }
        case AF_INET6:
            return unsafe withUnsafeBytes(of: &address) { bytes in
                let start = MemoryLayout<sockaddr_in6>.offset(of: \.sin6_addr)!
                return unsafe bytes[start..<start + 15].allSatisfy { $0 == 0 } && bytes[start + 15] == 1
            }
        default: return false
        }
    }

    /// Sends everything. Throws `.connection` when the other side has gone, `.timeout`, `.cancelled` after `stop`.
    func send(_ bytes: AlignedBytes, milliseconds: Int) throws(EngineError) {
        var sent = 0
        while sent < bytes.count {
            let result = unsafe bytes.withBytes(sent..<bytes.count) { unsafe ck_send(descriptor.number, $0.baseAddress, $0.count, -1) }
            if result == -Int(EAGAIN) {
                try wait(CK_WRITABLE, milliseconds)
                continue
            }
            guard result >= 0 else { throw broken(Int32(-result)) }
            sent += result
        }
    }

    /// Receives what is there into the bytes from `start` on, at least one. Returns how many; 0: the other side has ended.
    func receive(_ bytes: AlignedBytes, from start: Int, milliseconds: Int) throws(EngineError) -> Int {
        while true {
            let result = unsafe bytes.withMutableBytes(start..<bytes.count) { unsafe ck_receive(descriptor.number, $0.baseAddress, $0.count) }
            if result == -Int(EAGAIN) {
                try wait(CK_READABLE, milliseconds)
                continue
            }
            guard result >= 0 else { throw broken(Int32(-result)) }
            return result
        }
    }

    private func wait(_ what: Int, _ milliseconds: Int) throws(EngineError) {
        let ready = try checked(
            ck_wait(descriptor.number, Int32(what), stopEvent.number, Int32(clamping: milliseconds)), "wait for the backup", place: place)
        if ready & Int32(CK_EVENT) != 0 { throw EngineError(.cancelled, "the connection was closed here", place: place) }
        if ready == 0 {
            throw EngineError(
                .timeout, "no answer in \(milliseconds) ms", remedy: "See whether the other process is alive.", place: place)
        }
    }

    private func broken(_ number: Int32) -> EngineError {
        EngineError(.connection, "the connection broke: \(unsafe String(cString: strerror(number)))", place: place)
    }

    /// Closes it.
    public func close() { descriptor.close() }
}
