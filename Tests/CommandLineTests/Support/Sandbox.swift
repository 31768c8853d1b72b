// A directory with a store, and content to save in it.

import Foundation
import QEMUTesting
import Testing

/// A directory of its own with a store in it, gone with the object.
final class Sandbox {
    let directory: String
    var store: String { file("vm.ck") }

    init() throws {
        directory = FileManager.default.temporaryDirectory.appendingPathComponent("ckstore-command-\(UUID())").path
        try FileManager.default.createDirectory(atPath: directory, withIntermediateDirectories: false)
        try FileManager.default.createDirectory(atPath: scratch, withIntermediateDirectories: false)
    }

    deinit { try? FileManager.default.removeItem(atPath: directory) }

    /// Where the processes' output goes, so that `directory` has only what the command has made.
    private var scratch: String { "\(directory)/.scratch" }

    func file(_ name: String) -> String { "\(directory)/\(name)" }

    /// Everything in the directory, hidden files too, but for what the tests keep there.
    func contents(of name: String = "") throws -> [String] {
        try FileManager.default.contentsOfDirectory(atPath: file(name)).filter { $0 != ".scratch" }.sorted()
    }

    /// Starts `ckstore` with `arguments`.
    func start(_ arguments: [String], input: Int32? = nil, output: Int32? = nil) throws -> RunningTool {
        try RunningTool(arguments, input: input, output: output, scratch: scratch)
    }

    /// Starts another program.
    func start(program: String, _ arguments: [String]) throws -> RunningTool {
        try RunningTool(arguments, program: program, scratch: scratch)
    }

    /// Runs `ckstore` to its end.
    func run(_ arguments: [String], input: Int32? = nil, output: Int32? = nil) throws -> Outcome {
        try start(arguments, input: input, output: output).wait()
    }

    /// Runs it and expects this exit code.
    @discardableResult
    func expect(
        _ code: Int32, _ arguments: String..., input: Int32? = nil, output: Int32? = nil,
        at location: SourceLocation = #_sourceLocation
    ) throws -> Outcome {
        let outcome = try run(arguments, input: input, output: output)
        #expect(outcome.exitCode == code, "\(arguments): \(outcome.errors)", sourceLocation: location)
        return outcome
    }

    /// Makes the store.
    func create(size: String = "64M", segment: String = "256K") throws {
        try expect(0, "create", store, "--size", size, "--segment", segment)
    }

    /// Makes a file with `bytes` and returns its path.
    @discardableResult
    func write(_ name: String, _ bytes: [UInt8]) throws -> String {
        try Data(bytes).write(to: URL(fileURLWithPath: file(name)))
        return file(name)
    }

    func read(_ name: String) throws -> [UInt8] { [UInt8](try Data(contentsOf: URL(fileURLWithPath: file(name)))) }

    /// Makes a file of holes but for `pieces`.
    func writeSparse(_ name: String, length: UInt64, _ pieces: [(offset: UInt64, bytes: [UInt8])]) throws -> String {
        #expect(FileManager.default.createFile(atPath: file(name), contents: nil))
        let handle = try #require(FileHandle(forWritingAtPath: file(name)))
        try handle.truncate(atOffset: length)
        for piece in pieces {
            try handle.seek(toOffset: piece.offset)
            try handle.write(contentsOf: Data(piece.bytes))
        }
        try handle.close()
        return file(name)
    }

    /// Bytes that a file takes on the disk.
    func allocatedBytes(_ name: String) -> Int {
        var status = stat()
        unsafe stat(file(name), &status)
        return Int(status.st_blocks) * 512
    }

    /// Opens a file for a process's input or output.
    func open(_ path: String, _ flags: Int32) throws -> FileHandle {
        let descriptor = unsafe Glibc.open(path, flags | O_CLOEXEC, 0o600)
        try #require(descriptor >= 0)
        return FileHandle(fileDescriptor: descriptor, closeOnDealloc: true)
    }

    /// The names of the checkpoints in the store.
    func checkpointNames() throws -> [String] {
        let list = try expect(0, "list", store, "--json").object()
        return try #require(list["checkpoints"] as? [[String: Any]]).compactMap { $0["name"] as? String }
    }
}

/// A pipe that no process gets which is not given it.
struct PrivatePipe {
    let reading: FileHandle
    let writing: FileHandle

    init() throws {
        // Unlike `pipe`, a FIFO can be opened such that no process started meanwhile inherits it.
        let path = FileManager.default.temporaryDirectory.appendingPathComponent("ckstore-pipe-\(UUID())").path
        try #require(unsafe mkfifo(path, 0o600) == 0)
        defer { unsafe unlink(path) }
        let ends = unsafe [open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC), open(path, O_WRONLY | O_CLOEXEC)]
        try #require(ends.allSatisfy { $0 >= 0 } && fcntl(ends[0], F_SETFL, 0) == 0)
        reading = FileHandle(fileDescriptor: ends[0], closeOnDealloc: true)
        writing = FileHandle(fileDescriptor: ends[1], closeOnDealloc: true)
    }
}

/// Numbers that a seed determines (SplitMix64).
struct SeededGenerator: RandomNumberGenerator {
    private var state: UInt64
    init(seed: UInt64) { state = seed }
    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
        return z ^ (z >> 31)
    }
}

/// Bytes that don't compress.
func noise(_ seed: UInt64, count: Int) -> [UInt8] {
    var generator = SeededGenerator(seed: seed)
    var bytes: [UInt8] = []
    bytes.reserveCapacity(count + 8)
    while bytes.count < count {
        let word = generator.next()
        for shift in stride(from: UInt64(0), to: 64, by: 8) { bytes.append(UInt8(truncatingIfNeeded: word >> shift)) }
    }
    return Array(bytes.prefix(count))
}

func zeros(_ count: Int) -> [UInt8] { [UInt8](repeating: 0, count: count) }
