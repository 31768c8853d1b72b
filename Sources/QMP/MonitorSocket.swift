// The socket below a monitor connection: lines in, commands out, and the process at its other end.
//
// Invariants:
// - Nothing here changes the open socket (its mode, or shutting it down): other processes may share it.
// - A command of up to 32 KiB (what the kernel takes as one piece) goes out whole or not at all, whenever its sender dies.
// - No line longer than `lineLimit` is ever gathered.

import CLinux
import CheckpointCore
import Glibc
import Threading

/// A connected local socket. Sending and receiving may go on at once, each on one thread at a time.
final class MonitorSocket: Sendable {
    /// Longest line accepted, in bytes.
    static let lineLimit = 16 << 20

    let descriptor: Int32
    /// What is connected to, for errors.
    let place: String
    /// The process at the other end; 0 when it can't be seen from here.
    let processID: Int32
    /// A handle on that process; negative when there is none.
    private let process: Int32
    /// Readable once `interrupt` was called.
    private let event: Int32
    private let isClosed = Lock(false)

    /// Takes over `descriptor`, a connected local stream socket; closes it when this throws.
    init(owning descriptor: Int32, place: String?) throws(EngineError) {
        let peer = ck_peer_process(descriptor)
        let event = ck_open_event()
        guard peer >= 0, event >= 0 else {
            if event >= 0 { ck_close(event) }
            ck_close(descriptor)
            throw peer < 0
                ? EngineError(.invalidInput, "descriptor \(descriptor) is no local socket: \(errorText(-peer))")
                : EngineError(system: "make an event descriptor", -event)
        }
        self.descriptor = descriptor
        self.place = place ?? "monitor of process \(peer)"
        processID = peer
        process = peer > 0 ? ck_pidfd_open(peer) : -1
        self.event = event
    }

    deinit {
        close()
        ck_close(event)
        if process >= 0 { ck_close(process) }
    }

    /// Closes the socket, which nobody may use at this moment nor later.
    func close() {
        isClosed.withLock { isClosed in
            if !isClosed { ck_close(descriptor) }
            isClosed = true
        }
    }

    /// Makes every wait here end at once, from now on.
    func interrupt() {
        let status = ck_signal_event(event)
        precondition(status == 0, "an event descriptor takes a signal")
    }

    /// Connects to the socket at `path`, waiting while its queue is full.
    static func connect(path: String, _ deadline: Deadline) throws(EngineError) -> MonitorSocket {
        while true {
            let descriptor = unsafe ck_connect_local(path)
            if descriptor >= 0 { return try MonitorSocket(owning: descriptor, place: path) }
            switch -descriptor {
            case EAGAIN:
                if deadline.remaining == 0 { throw MonitorSocket.occupied(path) }
                usleep(10_000)
            case ENOENT:
                throw EngineError(
                    .notFound, "there is no such socket", remedy: "Start QEMU with -qmp unix:\(path),server=on,wait=off",
                    place: path)
            case ECONNREFUSED:
                throw EngineError(
                    .connection, "nobody listens at this socket", remedy: "Is QEMU still running?", place: path)
            case ENAMETOOLONG:
                throw EngineError(
                    .invalidInput, "the path is longer than the 107 bytes that sockets allow",
                    remedy: "Use a shorter path, or one relative to the working directory.", place: path)
            default: throw EngineError(system: "connect", -descriptor, place: path)
            }
        }
    }

    /// What it means when a socket takes connections but says nothing.
    static func occupied(_ place: String) -> EngineError {
        EngineError(
            .busy, "another program holds the monitor, or QEMU hangs: it sends no greeting",
            remedy: "QEMU serves one client of a monitor at a time: add a second -qmp socket for this one.", place: place)
    }

    /// What `receive` found.
    enum Received { case bytes, end, interrupted }

    /// Waits for bytes and appends them to `buffer`.
    func receive(into buffer: inout [UInt8], _ deadline: Deadline) throws(EngineError) -> Received {
        let ready = ck_wait(descriptor, Int32(CK_READABLE), event, deadline.forPoll)
        if ready < 0 { throw EngineError(system: "wait for an answer", -ready, place: place) }
        if ready & Int32(CK_EVENT) != 0 { return .interrupted }
        if ready == 0 { throw EngineError(.timeout, "no answer in the time allowed", place: place) }
        var count = 0
        let chunk = unsafe [UInt8](unsafeUninitializedCapacity: 1 << 16) { target, initialized in
            count = unsafe ck_receive(descriptor, target.baseAddress, target.count)
            initialized = max(0, count)
        }
        if count == 0 || count == -Int(ECONNRESET) { return .end }
        if count < 0 && count != -Int(EAGAIN) { throw EngineError(system: "receive", Int32(-count), place: place) }
        buffer += chunk
        return .bytes
    }

    /// Sends `bytes`, with `passing` attached to the first of them.
    /// - Throws: `.timeout`: nothing was sent. Any other error: the connection is not good for anything any more.
    func send(_ bytes: [UInt8], passing: Int32?, _ deadline: Deadline) throws(EngineError) {
        var sent = 0
        while sent < bytes.count {
            let count = unsafe bytes.withUnsafeBytes { rest in
                unsafe ck_send(descriptor, rest.baseAddress! + sent, rest.count - sent, sent == 0 ? passing ?? -1 : -1)
            }
            if count > 0 { sent += count; continue }
            guard count == -Int(EAGAIN) else {
                if count == -Int(EPIPE) || count == -Int(ECONNRESET) { throw whyItEnded(afterMilliseconds: 3000) }
                throw EngineError(system: "send a command", Int32(-count), place: place)
            }
            let ready = ck_wait(descriptor, Int32(CK_WRITABLE), event, deadline.forPoll)
            if ready < 0 { throw EngineError(system: "wait for room to send", -ready, place: place) }
            if ready & Int32(CK_EVENT) != 0 { throw closedHere }
            if ready == 0 && deadline.remaining == 0 {
                throw sent == 0
                    ? EngineError(.timeout, "QEMU takes no commands", remedy: "It may hang.", place: place)
                    : EngineError(.connection, "half of a command was taken, and no more in the time allowed", place: place)
            }
        }
    }

    /// The error of whatever was under way when this side closed the connection.
    var closedHere: EngineError { EngineError(.cancelled, "the connection was closed by this program", place: place) }

    /// Why there is nobody at the other end any more. A process on its way out closes its sockets before it has ended: waits for
    /// that for a while.
    func whyItEnded(afterMilliseconds patience: Int32) -> EngineError {
        if process >= 0, ck_wait(process, Int32(CK_READABLE), event, patience) & Int32(CK_READABLE) != 0 {
            let status = ck_pidfd_status(process, false)
            let how = status >= 0 ? ": \(ChildProcess.Status(raw: status))" : ""
            return EngineError(
                .exited, "QEMU (process \(processID)) has ended\(how)", remedy: "Its log or standard error may tell why.",
                place: place)
        }
        return EngineError(
            .connection, "QEMU closed the connection" + (process >= 0 ? ", though process \(processID) has not ended" : ""),
            remedy: "Connect again.", place: place)
    }
}

/// What a system call's error number means.
func errorText(_ number: Int32) -> String { unsafe String(cString: strerror(number)) }
