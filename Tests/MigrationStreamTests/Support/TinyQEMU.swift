// A QEMU without a guest, talked to over its standard streams: just enough to make a stream and to load one.

import CheckpointCore
import Foundation
import Testing

/// A machine of 64 MiB whose firmware finds nothing to boot. Ends with `stop`.
final class TinyQEMU {
    private let process = Process()
    private let (input, output) = (Pipe(), Pipe())
    private var unread = Data()

    init(_ arguments: [String]) throws {
        process.executableURL = URL(fileURLWithPath: "/usr/bin/qemu-system-x86_64")
        process.arguments =
            ["-accel", "tcg", "-machine", "pc", "-nodefaults", "-display", "none", "-m", "64", "-smp", "2", "-qmp", "stdio"] + arguments
        (process.standardInput, process.standardOutput) = (input, output)
        process.standardError = FileHandle.nullDevice
        try process.run()
        _ = try line()
        try execute("{\"execute\": \"qmp_capabilities\"}")
    }

    /// Runs a command and returns the reply.
    @discardableResult func execute(_ command: String) throws -> [String: Any] {
        try input.fileHandleForWriting.write(contentsOf: Data((command + "\n").utf8))
        while true {
            let reply = try line()
            if let result = reply["return"] { return result as? [String: Any] ?? [:] }
            if let error = reply["error"] {
                throw EngineError(.refused, "\(error)", place: command)
            }
        }
    }

    /// Asks until the answer's `status` is `wanted`, for a minute at the most.
    func wait(_ query: String, until wanted: String) throws {
        var status = ""
        for _ in 0..<1200 {
            status = try execute("{\"execute\": \"\(query)\"}")["status"] as? String ?? ""
            if status == wanted { return }
            usleep(50_000)
        }
        throw EngineError(.timeout, "\(query) still says \(status), not \(wanted)")
    }

    func stop() {
        kill(process.processIdentifier, SIGKILL)
        // `waitUntilExit` can miss the end on a thread that is not the main one.
        while process.isRunning { usleep(10_000) }
    }

    private func line() throws -> [String: Any] {
        while true {
            if let end = unread.firstIndex(of: 10) {
                defer { unread = Data(unread[(end + 1)...]) }
                return try JSONSerialization.jsonObject(with: unread[..<end]) as? [String: Any] ?? [:]
            }
            let more = output.fileHandleForReading.availableData
            if more.isEmpty { throw EngineError(.exited, "QEMU has ended") }
            unread += more
        }
    }
}

/// A folder that goes away with its test.
func withFolder(_ body: (URL) throws -> Void) throws {
    let folder = FileManager.default.temporaryDirectory.appendingPathComponent("migration-stream-\(UUID().uuidString)")
    try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
    defer { try? FileManager.default.removeItem(at: folder) }
    try body(folder)
}

/// The stream of a stopped machine.
func realStream(in folder: URL, _ arguments: [String] = [], setup: [String] = []) throws -> [UInt8] {
    let file = folder.appendingPathComponent("stream").path
    let machine = try TinyQEMU(arguments)
    defer { machine.stop() }
    usleep(500_000)
    try machine.execute("{\"execute\": \"stop\"}")
    for command in setup { try machine.execute(command) }
    try machine.execute("{\"execute\": \"migrate\", \"arguments\": {\"uri\": \"exec:cat>\(file)\"}}")
    try machine.wait("query-migrate", until: "completed")
    return Array(try Data(contentsOf: URL(fileURLWithPath: file)))
}
