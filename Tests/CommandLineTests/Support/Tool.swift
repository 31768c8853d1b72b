// Running the built command as its users do: a process of its own, files and pipes around it.
//
// Invariants:
// - The process starts with default signal dispositions, whatever the test runner's are.
// - Every process that is started is waited for.

import Foundation
import Testing

/// How a process ended and what it said.
struct Outcome {
    /// The exit code, or nil when a signal ended it.
    var exitCode: Int32?
    /// The signal that ended it.
    var signal: Int32?
    var output: [UInt8]
    var errors: String

    var text: String { String(decoding: output, as: UTF8.self) }

    /// Standard output as a JSON object.
    func object(at location: SourceLocation = #_sourceLocation) throws -> [String: Any] {
        let value = try JSONSerialization.jsonObject(with: Data(output))
        return try #require(value as? [String: Any], "\(text)", sourceLocation: location)
    }
}

/// A process under way.
final class RunningTool {
    let process: pid_t
    private let output: String
    private let errors: String
    private var outcome: Outcome?

    /// The command that was built beside these tests.
    static let path: String = {
        let bundle = (try? FileManager.default.destinationOfSymbolicLink(atPath: "/proc/self/exe")) ?? CommandLine.arguments[0]
        return URL(fileURLWithPath: bundle).deletingLastPathComponent().appendingPathComponent("ckstore").path
    }()

    /// - Parameters:
    ///   - input: a descriptor to read from; nil: nothing.
    ///   - outputDescriptor: a descriptor to write to; nil: what is written can be had from `wait`.
    ///   - scratch: a directory for what it writes.
    init(
        _ arguments: [String], program: String = RunningTool.path, input: Int32? = nil, output outputDescriptor: Int32? = nil,
        scratch: String
    ) throws {
        let number = UUID().uuidString
        (output, errors) = ("\(scratch)/output-\(number)", "\(scratch)/errors-\(number)")
        var actions = unsafe posix_spawn_file_actions_t()
        unsafe posix_spawn_file_actions_init(&actions)
        defer { unsafe posix_spawn_file_actions_destroy(&actions) }
        if let input {
            unsafe posix_spawn_file_actions_adddup2(&actions, input, 0)
        } else {
            unsafe posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0)
        }
        if let outputDescriptor {
            unsafe posix_spawn_file_actions_adddup2(&actions, outputDescriptor, 1)
        } else {
            unsafe posix_spawn_file_actions_addopen(&actions, 1, output, O_WRONLY | O_CREAT, 0o600)
        }
        unsafe posix_spawn_file_actions_addopen(&actions, 2, errors, O_WRONLY | O_CREAT, 0o600)
        process = unsafe try Self.spawn(program, arguments, &actions)
    }

    private static func spawn(
        _ program: String, _ arguments: [String], _ actions: inout posix_spawn_file_actions_t
    ) throws -> pid_t {
        var attributes = posix_spawnattr_t()
        unsafe posix_spawnattr_init(&attributes)
        defer { unsafe posix_spawnattr_destroy(&attributes) }
        var signals = sigset_t()
        unsafe sigemptyset(&signals)
        unsafe posix_spawnattr_setsigmask(&attributes, &signals)
        for number in [SIGINT, SIGTERM, SIGHUP, SIGPIPE, SIGXFSZ] { unsafe sigaddset(&signals, number) }
        unsafe posix_spawnattr_setsigdefault(&attributes, &signals)
        unsafe posix_spawnattr_setflags(&attributes, Int16(POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK))
        var vector = unsafe ([program] + arguments).map { unsafe strdup($0) } + [nil]
        defer { for unsafe word in unsafe vector { unsafe free(word) } }
        var process = pid_t()
        let status = unsafe posix_spawn(&process, program, &actions, &attributes, &vector, environ)
        guard status == 0 else { throw POSIXError(POSIXErrorCode(rawValue: status) ?? .EIO) }
        return process
    }

    deinit {
        guard outcome == nil else { return }
        kill(process, SIGKILL)
        var status: Int32 = 0
        unsafe waitpid(process, &status, 0)
    }

    func send(_ signal: Int32) { kill(process, signal) }

    /// Waits for its end.
    func wait() throws -> Outcome {
        if let outcome { return outcome }
        var status: Int32 = 0
        while unsafe waitpid(process, &status, 0) < 0 {
            guard errno == EINTR else { throw POSIXError(.ECHILD) }
        }
        let signal = status & 0x7F
        let result = Outcome(
            exitCode: signal == 0 ? (status >> 8) & 0xFF : nil, signal: signal == 0 ? nil : signal,
            output: FileManager.default.contents(atPath: output).map([UInt8].init) ?? [],
            errors: String(decoding: FileManager.default.contents(atPath: errors) ?? Data(), as: UTF8.self))
        outcome = result
        return result
    }
}
