// Running the independent reader and its tools, in Python.

import Foundation

/// What a program said.
struct ProgramResult {
    var exitCode: Int32
    var output: String
    var errors: String
}

/// A test found what must not be.
struct Mismatch: Error, CustomStringConvertible {
    var description: String
    init(_ description: String) { self.description = description }
}

enum Python {
    /// The directory with FORMAT.md and the reader.
    static let formats = URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
        .deletingLastPathComponent().appending(path: "Formats")
    /// The system's Python, for which Debian packages the libraries.
    private static let interpreter = "/usr/bin/python3"

    /// Throws what to install when the reader can't run.
    static func requireLibraries() throws {
        guard FileManager.default.isExecutableFile(atPath: interpreter) else {
            throw Mismatch("\(interpreter) is missing: install the Debian packages python3, python3-lz4, python3-xxhash and python3-yaml")
        }
        let result = try start(["-c", "import lz4.block, xxhash, yaml"])
        guard result.exitCode == 0 else {
            throw Mismatch(
                "Python lacks a library: install the Debian packages python3-lz4, python3-xxhash and python3-yaml\n\(result.errors)")
        }
    }

    /// Runs a program of the directory `Formats` and returns what it says, whatever that is.
    static func run(_ program: String, _ arguments: String...) throws -> ProgramResult {
        try requireLibrariesOnce.get()
        return try start([formats.appending(path: program).path] + arguments)
    }

    /// Runs a program that must succeed, and returns its standard output.
    static func output(_ program: String, _ arguments: String...) throws -> String {
        try requireLibrariesOnce.get()
        let result = try start([formats.appending(path: program).path] + arguments)
        guard result.exitCode == 0 else {
            throw Mismatch("\(program) \(arguments): exit code \(result.exitCode)\n\(result.output.suffix(2000))\(result.errors.suffix(2000))")
        }
        return result.output
    }

    private static let requireLibrariesOnce = Result { try requireLibraries() }.mapError { Mismatch("\($0)") }

    private static func start(_ arguments: [String]) throws -> ProgramResult {
        let process = Process()
        process.executableURL = URL(filePath: interpreter)
        // No byte code is left beside the sources.
        process.arguments = ["-B"] + arguments
        let files = try TemporaryDirectory()
        let (out, err) = (files.path("out"), files.path("err"))
        process.standardOutput = try newFile(out)
        process.standardError = try newFile(err)
        process.standardInput = FileHandle.nullDevice
        try process.run()
        process.waitUntilExit()
        return ProgramResult(
            exitCode: process.terminationStatus, output: try String(contentsOfFile: out, encoding: .utf8),
            errors: try String(contentsOfFile: err, encoding: .utf8))
    }
}

/// A directory that is gone with its owner.
final class TemporaryDirectory {
    let url: URL

    init() throws {
        url = FileManager.default.temporaryDirectory.appending(path: "ckstore-formats-\(UUID().uuidString)")
        try FileManager.default.createDirectory(
            at: url, withIntermediateDirectories: true, attributes: [.posixPermissions: 0o700])
    }

    deinit { try? FileManager.default.removeItem(at: url) }

    func path(_ name: String) -> String { url.appending(path: name).path }
}

/// A new empty file that only its owner can read, open for writing.
func newFile(_ path: String) throws -> FileHandle {
    guard FileManager.default.createFile(atPath: path, contents: nil, attributes: [.posixPermissions: 0o600]) else {
        throw Mismatch("can't create \(path)")
    }
    return try FileHandle(forWritingTo: URL(filePath: path))
}

func decodeJSON<T: Decodable>(_ type: T.Type, _ text: String) throws -> T {
    try JSONDecoder().decode(type, from: Data(text.utf8))
}
