// Running the built command, and other programs, as their users do: a process of its own, files and pipes around it.
//
// Invariants:
// - The process starts with default signal dispositions, whatever the test runner's are.
// - Every process that is started is waited for.

import Foundation

/// How a process ended and what it said.
public struct Outcome {
    /// The exit code, or nil when a signal ended it.
    public var exitCode: Int32?
    /// The signal that ended it.
    public var signal: Int32?
    /// What it wrote to its standard output.
    public var output: [UInt8]
    /// What it wrote to its standard error.
    public var errors: String

    /// Its standard output as text.
    public var text: String { String(decoding: output, as: UTF8.self) }
}

/// A process under way.
public final class RunningTool {
    /// Its process id.
    public let process: pid_t
    private let output: String
    private let errors: String
    private var outcome: Outcome?

    /// The command that was built beside these tests.
    public static let path: String = {
        let bundle = (try? FileManager.default.destinationOfSymbolicLink(atPath: "/proc/self/exe")) ?? CommandLine.arguments[0]
        return URL(fileURLWithPath: bundle).deletingLastPathComponent().appendingPathComponent("ckstore").path
    }()

    /// - Parameters:
    ///   - input: a descriptor to read from; nil: nothing.
    ///   - outputDescriptor: a descriptor to write to; nil: what is written can be had from `wait`.
    ///   - scratch: a directory for what it writes.
    public init(
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

    /// Sends it a signal.
    public func send(_ signal: Int32) { kill(process, signal) }

    /// Waits for its end; kills it after `limitSeconds`, which is an error.
    public func wait(limitSeconds: Double) throws -> Outcome {
        let end = Monotonic.now() + UInt64(limitSeconds * 1e9)
        while outcome == nil, try collect(WNOHANG) == nil {
            guard Monotonic.now() < end else {
                kill(process, SIGKILL)
                let errors = try wait().errors
                throw GuestTrouble("process \(process) did not end in \(limitSeconds) s: \(errors)")
            }
            usleep(2000)
        }
        return try wait()
    }

    /// Waits for its end.
    public func wait() throws -> Outcome {
        if let outcome { return outcome }
        guard let outcome = try collect(0) else { preconditionFailure("a wait without limit ends with the process") }
        return outcome
    }

    /// How it ended; nil while it runs, if `options` say not to wait.
    private func collect(_ options: Int32) throws -> Outcome? {
        var status: Int32 = 0
        var collected = unsafe waitpid(process, &status, options)
        while collected < 0 {
            guard errno == EINTR else { throw POSIXError(.ECHILD) }
            collected = unsafe waitpid(process, &status, options)
        }
        if collected == 0 { return nil }
        let signal = status & 0x7F
        let result = Outcome(
            exitCode: signal == 0 ? (status >> 8) & 0xFF : nil, signal: signal == 0 ? nil : signal,
            output: FileManager.default.contents(atPath: output).map([UInt8].init) ?? [],
            errors: String(decoding: FileManager.default.contents(atPath: errors) ?? Data(), as: UTF8.self))
        outcome = result
        return result
    }
}
