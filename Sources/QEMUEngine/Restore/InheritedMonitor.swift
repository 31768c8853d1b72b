// A monitor of our own in the QEMU that we start, and how another process finds it when this one has been killed.
//
// A machine whose source is gone may wait for a page while it holds QEMU's big lock: then QEMU's main loop stands still and no new client can even
// say hello to a monitor. Only commands out of band, on a connection that allows them already, get through. So QEMU is
// given both ends of that connection: it serves one and merely keeps the other, from where whoever goes on takes it.
//
// Invariants:
// - The connection allows commands out of band from the moment at which anything is sent to the machine.
// - QEMU keeps our end, and the note beside it, for as long as it lives.

import CheckpointCore
import CLinux
import FoundationEssentials
import Glibc
import QMP
import Units

/// The numbers that our descriptors have in QEMU.
enum InheritedDescriptor {
    static let incoming: Int32 = 3
    /// The end of the monitor's connection that QEMU serves.
    static let monitor: Int32 = 4
    /// The client's end, kept for whoever goes on with a restore.
    static let client: Int32 = 5
    /// The note (`RestoreNote`).
    static let note: Int32 = 6
}

/// What a QEMU that is restored lazily keeps about that, for whoever goes on.
struct RestoreNote: Codable, Sendable {
    struct Block: Codable, Sendable {
        var name: String
        var byteLength: UInt64
        var pageBytes: UInt64
    }
    /// The checkpoint.
    var checkpoint: CheckpointID
    /// The machine's blocks, in the order of the checkpoint.
    var blocks: [Block]

    /// How the note's file is called; its link in /proc shows that.
    static let fileName = "ckstore-restore"
    private static let maximumBytes = 16 << 20

    init(_ plan: RestorePlan, of checkpoint: CheckpointID) {
        self.checkpoint = checkpoint
        blocks = plan.blocks.map { Block(name: $0.name, byteLength: $0.byteLength, pageBytes: $0.pageBytes) }
    }

    /// Writes it into an empty anonymous file.
    func write(to descriptor: Int32) throws(EngineError) {
        let data: Data
        do { data = try JSONEncoder().encode(self) } catch {
            preconditionFailure("a note has nothing that JSON can't say: \(error)")
        }
        let bytes = Array(data)
        let count = unsafe bytes.withUnsafeBytes { unsafe pwrite(descriptor, $0.baseAddress, $0.count, 0) }
        guard count == bytes.count else { throw EngineError(system: "leave a note with QEMU", count < 0 ? errno : ENOSPC) }
    }

    /// Reads the note that a process keeps.
    /// - Throws: `.busy` when it has none: it was not started by a lazy restore, or that has not begun.
    init(of process: Int32, handle: Int32) throws(EngineError) {
        let none = EngineError(
            .busy, "process \(process) is no machine that `ckstore vm restore --lazy` has started", remedy: "Name its monitor or its process.")
        let link = try? FileManager.default.destinationOfSymbolicLink(atPath: "/proc/\(process)/fd/\(InheritedDescriptor.note)")
        guard let link, link.hasPrefix("/memfd:\(Self.fileName)") else { throw none }
        let descriptor = ck_pidfd_getfd(handle, InheritedDescriptor.note)
        guard descriptor >= 0 else { throw Self.forbidden(process, -descriptor) }
        defer { ck_close(descriptor) }
        var bytes = [UInt8](repeating: 0, count: Self.maximumBytes)
        let count = unsafe bytes.withUnsafeMutableBytes { unsafe pread(descriptor, $0.baseAddress, $0.count, 0) }
        guard count > 0, let note = try? JSONDecoder().decode(RestoreNote.self, from: Data(bytes[..<count])) else { throw none }
        self = note
    }

    static func forbidden(_ process: Int32, _ number: Int32) -> EngineError {
        EngineError(
            system: "take over a descriptor of process \(process)", number,
            remedy: "Run as the machine's user, with the right to trace it, or as root.")
    }
}

/// Our monitor in a QEMU that is about to be started.
final class InheritedMonitor: Sendable {
    private let client: StreamSocket
    private let server: StreamSocket
    /// The note's file.
    let note: Int32
    private static let helloSeconds = 30
    private static let label = "ckstore-restore"

    init() throws(EngineError) {
        (client, server) = try StreamSocket.pair(bufferBytes: .kibibytes(256))
        note = unsafe ck_open_anonymous(RestoreNote.fileName, false)
        guard note >= 0 else { throw EngineError(system: "make an anonymous file", -note) }
    }

    deinit { ck_close(note) }

    /// What QEMU gets of it.
    var inherited: [(parent: Int32, child: Int32)] {
        [
            (server.descriptor, InheritedDescriptor.monitor), (client.descriptor, InheritedDescriptor.client),
            (note, InheritedDescriptor.note),
        ]
    }

    static var arguments: [String] {
        ["-chardev", "socket,id=\(label),fd=\(InheritedDescriptor.monitor)", "-mon", "chardev=\(label),mode=control"]
    }

    /// Negotiates with QEMU, which has been started, and allows commands out of band.
    /// - Throws: `.connection` when QEMU has ended or says nothing.
    func connect() throws(EngineError) -> QMPClient {
        // QEMU holds the other end alone, so that its end shows.
        server.close()
        var limit = timeval(tv_sec: Self.helloSeconds, tv_usec: 0)
        unsafe setsockopt(client.descriptor, SOL_SOCKET, SO_RCVTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
        try client.send(line: #"{"execute":"qmp_capabilities","arguments":{"enable":["oob"]}}"#)
        // The greeting, and the answer.
        try client.receiveLines { text in text.contains(#""return""#) }
        let descriptor = fcntl(client.descriptor, F_DUPFD_CLOEXEC, 0)
        guard descriptor >= 0 else { throw EngineError(system: "duplicate a descriptor", errno) }
        return try QMPClient(adopting: descriptor)
    }
}

/// Commands out of band to a machine whose main loop may stand still.
enum OutOfBand {
    private static let answerSeconds = 20

    /// Runs `command` on the connection that the process keeps.
    static func execute(_ command: String, _ arguments: [String: JSONValue], in process: Int32, handle: Int32) throws(EngineError) {
        let descriptor = ck_pidfd_getfd(handle, InheritedDescriptor.client)
        guard descriptor >= 0 else { throw RestoreNote.forbidden(process, -descriptor) }
        let socket = StreamSocket(adopting: descriptor)
        var limit = timeval(tv_sec: answerSeconds, tv_usec: 0)
        unsafe setsockopt(descriptor, SOL_SOCKET, SO_RCVTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
        let id = "ckstore-\(UInt64.random(in: .min ... .max))"
        let request: JSONValue = ["exec-oob": .string(command), "arguments": .object(arguments), "id": .string(id)]
        let text: String
        do { text = String(decoding: try JSONEncoder().encode(request), as: UTF8.self) } catch {
            throw EngineError(.invalidInput, "a command that JSON can't express")
        }
        // What a client that was killed left of a command ends here.
        try socket.send(line: "\u{1}\n" + text)
        var refusal: String?
        try socket.receiveLines { line in
            guard line.contains(id), let answer = try? JSONDecoder().decode(JSONValue.self, from: Data(line.utf8)),
                answer["id"]?.string == id
            else { return false }
            refusal = answer["error"]?["desc"]?.string
            return true
        }
        if let refusal { throw EngineError(.refused, refusal, place: command) }
    }
}

extension StreamSocket {
    func send(line: String) throws(EngineError) {
        var text = line + "\n"
        let failure: EngineError? = text.withUTF8 { bytes in
            do throws(EngineError) {
                unsafe try send(UnsafeRawBufferPointer(bytes))
                return nil
            } catch { return error }
        }
        if let failure { throw failure }
    }

    /// Receives lines until one is what the caller waits for.
    /// - Throws: `.connection` at the connection's end, or when nothing comes in the time that the socket allows.
    func receiveLines(until isFound: (String) -> Bool) throws(EngineError) {
        var line: [UInt8] = []
        var byte = [UInt8](repeating: 0, count: 1)
        while true {
            let count = unsafe byte.withUnsafeMutableBytes { unsafe receive(into: $0) }
            guard count == 1 else { throw EngineError(.connection, "QEMU has ended, or does not answer at its monitor") }
            guard byte[0] == UInt8(ascii: "\n") else {
                line.append(byte[0])
                guard line.count < 1 << 20 else { throw EngineError(.protocolViolation, "QEMU's monitor sends a line without an end") }
                continue
            }
            if isFound(String(decoding: line, as: UTF8.self)) { return }
            line = []
        }
    }
}
