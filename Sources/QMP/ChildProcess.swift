// Child processes: started without a shell, with exactly the descriptors they are meant to have.
//
// Invariants:
// - A child is reaped once, by whoever first sees that it has ended; its process id is not used for anything after that.
// - Signals go through a handle on the process: never to another that got its number.

import CLinux
import CheckpointCore
import Glibc
import Threading

/// A process that this one has started. Thread-safe. Letting go of it leaves the process running.
public final class ChildProcess: Sendable {
    /// How a process ended.
    public enum Status: Sendable, Equatable, CustomStringConvertible {
        /// It returned this.
        case exited(Int32)
        /// This signal ended it.
        case killed(signal: Int32)

        init(raw: Int32) {
            let signalled = Int32(ck_ended_by_signal)
            self = raw < signalled ? .exited(raw) : .killed(signal: raw - signalled)
        }

        public var description: String {
            switch self {
            case .exited(let code): "exit code \(code)"
            case .killed(let signal): "killed by signal \(signal) (\(unsafe String(cString: strsignal(signal))))"
            }
        }
    }

    /// A child's process id. After the child has been waited for, another process may get it.
    public let pid: Int32
    private let handle: Int32
    private let status = Lock<Status?>(nil)

    private init(pid: Int32, handle: Int32) {
        self.pid = pid
        self.handle = handle
    }

    deinit {
        // An ended child leaves nothing; a running one is the system's to reap once this process ends.
        _ = ck_pidfd_status(handle, true)
        ck_close(handle)
    }

    /// Starts a programme.
    ///
    /// The child has this process's environment, working directory and descriptors 0 to 2, and of the others only those listed. All its signals
    /// are at their defaults.
    /// - Parameters:
    ///   - executable: a path, or a name to be looked up in PATH.
    ///   - arguments: what follows the programme's name.
    ///   - inheriting: descriptors of this process and the numbers the child shall have them under, 0 to 2 included.
    ///   - diesWithParent: true: the system kills the child when this process ends, however it ends.
    ///   - inNewSession: true: signals from the terminal, to groups of processes and about the session's end don't reach it.
    /// - Throws: `.notFound` when there is no such programme, `.permission`, `.noMemory`, `.ioFailed`, `.invalidInput` (a zero byte in an
    ///   argument); nothing runs then.
    public static func spawn(
        executable: String, arguments: [String], inheriting: [(parent: Int32, child: Int32)] = [],
        diesWithParent: Bool, inNewSession: Bool = false
    ) throws(EngineError) -> ChildProcess {
        precondition(Set(inheriting.map(\.child)).count == inheriting.count, "every child's descriptor is listed once")
        for (parent, child) in inheriting {
            precondition(child >= 0 && fcntl(parent, F_GETFD) >= 0, "descriptors that are inherited are open")
        }
        guard !([executable] + arguments).contains(where: { $0.utf8.contains(0) }) else {
            throw EngineError(.invalidInput, "an argument contains a zero byte, which no programme can be given", place: executable)
        }
        guard let path = locate(executable) else {
            throw EngineError(
                .notFound, "there is no programme \(executable) in PATH", remedy: "Install it, or give its whole path.", place: executable)
        }
        let flags = (diesWithParent ? CK_DIES_WITH_PARENT : 0) | (inNewSession ? CK_NEW_SESSION : 0)
        let request = SpawnRequest(
            path: path, arguments: [executable] + arguments, inheriting: inheriting, flags: UInt32(flags))
        // The system kills such a child when the thread that started it ends.
        let result = diesWithParent ? try LastingThread.shared.spawn(request) : request.run()
        if result.pid < 0 { throw EngineError(system: "start it", -result.pid, place: path) }
        return ChildProcess(pid: result.pid, handle: result.handle)
    }

    /// Waits until the child has ended; nil when it has not in the time allowed (nil: no limit).
    /// - Throws: `.ioFailed` when somebody else has reaped it, so that nobody can tell how it ended.
    @discardableResult public func wait(timeoutMilliseconds: Int?) throws(EngineError) -> Status? {
        let deadline = Deadline(milliseconds: timeoutMilliseconds)
        while true {
            let ended = ck_pidfd_wait(handle, deadline.forPoll)
            if ended < 0 { throw EngineError(system: "wait for process \(pid)", -ended) }
            if ended > 0 { return try reap() }
            if deadline.remaining == 0 { return nil }
        }
    }

    /// Sends the child a signal, SIGKILL by default. No error when it has ended.
    /// - Throws: `.permission` when the child has taken on another user.
    public func kill(signal: Int32 = SIGKILL) throws(EngineError) {
        let status = ck_pidfd_signal(handle, signal)
        if status < 0 && status != -ESRCH { throw EngineError(system: "send signal \(signal) to process \(pid)", -status) }
    }

    private func reap() throws(EngineError) -> Status {
        try status.withLock { (status) throws(EngineError) in
            if let status { return status }
            let raw = ck_pidfd_status(handle, true)
            if raw < 0 { throw EngineError(system: "learn how process \(pid) ended", -raw) }
            let ended = Status(raw: raw)
            status = ended
            return ended
        }
    }

    /// Where the programme is: names without a slash are looked up in PATH.
    private static func locate(_ executable: String) -> String? {
        if executable.contains("/") { return executable }
        let path = unsafe getenv("PATH").map { unsafe String(cString: $0) } ?? "/usr/local/bin:/usr/bin:/bin"
        return path.split(separator: ":").map { "\($0)/\(executable)" }.first { candidate in
            var status = ck_file_status()
            return unsafe ck_status_at(candidate, &status) == 0 && status.type == CK_REGULAR && access(candidate, X_OK) == 0
        }
    }
}
