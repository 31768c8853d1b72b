// The other end of a monitor connection, acted out by a test.
//
// Invariants:
// - A script runs on a thread of its own, and its connection is closed when it returns.
// - What goes wrong in a script is thrown by `finish`.

import CheckpointCore
import Foundation
import QEMUTesting
import QMP
import Threading

/// Listens at a local socket and acts out a script for its first client.
final class FakeMonitor: Sendable {
    let path: String
    private let folder: TemporaryFolder
    private let outcome = Lock<Result<Void, any Error>?>(nil)

    init(_ script: @escaping @Sendable (FakeConnection) throws -> Void) throws {
        folder = try TemporaryFolder()
        path = folder.file("qmp")
        let listening = try listen(at: path)
        let thread = PlainThread { [outcome] in
            let descriptor = accept(listening, nil, nil)
            close(listening)
            let result = Result { try script(FakeConnection(descriptor)) }
            close(descriptor)
            outcome.withLock { $0 = result }
            outcome.wake()
        }
        guard thread != nil else { throw GuestTrouble("no thread") }
    }

    /// Waits until the script has ended.
    func finish() throws {
        guard let outcome = outcome.waitFor(milliseconds: 60_000, { $0 }) else { throw GuestTrouble("the script does not end") }
        try outcome.get()
    }
}

/// A listening socket at `path`.
func listen(at path: String) throws -> Int32 {
    var address = sockaddr_un()
    address.sun_family = sa_family_t(AF_UNIX)
    guard path.utf8.count < 108 else { throw GuestTrouble("\(path) is too long") }
    unsafe withUnsafeMutableBytes(of: &address.sun_path) { unsafe $0.copyBytes(from: path.utf8) }
    let descriptor = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
    let bound = unsafe withUnsafePointer(to: &address) { pointer in
        unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
            unsafe bind(descriptor, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
        }
    }
    guard bound == 0, listen(descriptor, 1) == 0 else { throw GuestTrouble("can't listen: error \(errno)") }
    return descriptor
}

/// A script's side of a connection.
final class FakeConnection {
    static let greeting = #"{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "x"}, "capabilities": ["oob"]}}"#

    let descriptor: Int32
    /// A descriptor that came with the command received last.
    private(set) var passed: Int32?
    private var unread: [UInt8] = []

    init(_ descriptor: Int32) { self.descriptor = descriptor }

    func send(_ text: String) throws { try send([UInt8](text.utf8)) }

    func send(_ bytes: some Collection<UInt8>) throws {
        var rest = ArraySlice(bytes)
        while !rest.isEmpty {
            let count = unsafe rest.withUnsafeBytes { unsafe Glibc.send(descriptor, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL)) }
            guard count > 0 else { throw GuestTrouble("can't send: error \(errno)") }
            rest = rest.dropFirst(count)
        }
    }

    /// One packet, as it was sent; empty at the end.
    func packet() throws -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: 1 << 16)
        var control = [UInt8](repeating: 0, count: 64)
        let count = unsafe bytes.withUnsafeMutableBytes { bytes in
            unsafe control.withUnsafeMutableBytes { control in
                var vector = unsafe iovec(iov_base: bytes.baseAddress, iov_len: bytes.count)
                return unsafe withUnsafeMutablePointer(to: &vector) { vector in
                    var message = unsafe msghdr()
                    unsafe message.msg_iov = vector
                    unsafe message.msg_iovlen = 1
                    unsafe message.msg_control = control.baseAddress
                    unsafe message.msg_controllen = control.count
                    let count = unsafe recvmsg(descriptor, &message, Int32(MSG_CMSG_CLOEXEC))
                    // A header of 16 bytes, then the descriptor.
                    if unsafe message.msg_controllen >= 20 { passed = unsafe control.load(fromByteOffset: 16, as: Int32.self) }
                    return count
                }
            }
        }
        guard count >= 0 else { throw GuestTrouble("can't receive: error \(errno)") }
        return [UInt8](bytes.prefix(count))
    }

    /// The next command.
    func command() throws -> JSONValue {
        passed = nil
        while true {
            if let end = unread.firstIndex(of: 10) {
                // As QEMU does: a byte that is never JSON, and what was before it, is complained about.
                let line = unread[..<end]
                unread.removeSubrange(...end)
                if let value = JSONValue(bytes: line) { return value }
                try send(#"{"error": {"class": "GenericError", "desc": "JSON parse error"}}"# + "\r\n")
                continue
            }
            let more = try packet()
            if more.isEmpty { throw GuestTrouble("the client has closed the connection") }
            unread += more
        }
    }

    /// Waits for the command called `name`.
    @discardableResult func expect(_ name: String) throws -> JSONValue {
        let command = try command()
        guard command["execute"] == .string(name) else { throw GuestTrouble("\(command) came, not \(name)") }
        return command
    }

    /// The line that answers `command`.
    func reply(_ command: JSONValue, _ result: JSONValue = .object([:])) -> String {
        line(["return": result, "id": command["id"] ?? .null])
    }

    func line(_ value: JSONValue) -> String { String(decoding: value.bytes ?? [], as: UTF8.self) + "\r\n" }

    func event(_ name: String, _ number: Int64 = 0) -> String {
        line(["event": .string(name), "data": ["n": .integer(number)], "timestamp": ["seconds": 5, "microseconds": 7]])
    }

    /// Greets, and accepts the capabilities.
    func negotiate() throws {
        try send(Self.greeting + "\r\n")
        try send(reply(try expect("qmp_capabilities")))
    }

    /// Waits until the client has closed its end.
    func waitForEnd() throws {
        while try !packet().isEmpty {}
    }
}

/// The code of the error that `body` throws; nil when it throws none, or another kind of error.
func errorCode(_ body: () throws -> Void) -> EngineError.Code? {
    do { try body() } catch { return (error as? EngineError)?.code }
    return nil
}
