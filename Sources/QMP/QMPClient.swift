// QEMU's monitor: commands and events over its QMP socket.
//
// Invariants:
// - Every wait has a limit, unless its caller asked for none, and ends when the connection does.
// - A command that timed out may still be carried out; its late reply is dropped.
// - Nothing the monitor sends is acted on beyond its form: what it means is the callers' affair.

import CLinux
import CheckpointCore
import Glibc
import Threading

/// A connection to a QEMU's monitor. Thread-safe: commands of several threads may be under way at once. Closed when it is let go.
public final class QMPClient: Sendable {
    private let connection: Connection
    private let reader: PlainThread
    private let isClosed = Lock(false)

    /// QEMU's version: "7.2.22".
    public let version: String

    /// The process that serves the monitor: QEMU's, unless another handed it the listening socket. 0 when that process
    /// can't be seen from here (it lives in another PID namespace).
    public var processID: Int32 { connection.socket.processID }

    /// The socket, to be handed on to another process (see `init(adopting:)`). Stays this client's, until `close`; two
    /// processes must not read it at the same time.
    public var descriptor: Int32 { connection.socket.descriptor }

    /// Connects to the monitor that listens at the socket `path`, and negotiates.
    /// - Throws: `.notFound`, `.connection` (nobody listens, or it closes at once), `.busy` (no greeting: another client is connected),
    ///   `.protocolViolation` (no QMP), `.exited`, `.permission`. Nothing is left behind.
    public static func connect(path: String, timeoutMilliseconds: Int = 5000) throws(EngineError) -> QMPClient {
        let deadline = Deadline(milliseconds: timeoutMilliseconds)
        let socket = try MonitorSocket.connect(path: path, deadline)
        var lines = LineReader()
        let version = try greeting(socket, &lines, deadline)
        let client = try QMPClient(Connection(socket, isSynchronized: true), lines) { (_) throws(EngineError) in version }
        _ = try client.connection.execute("qmp_capabilities", [:], deadline)
        return client
    }

    /// Goes on with a connection on which another process, which may have died at any moment, has negotiated.
    ///
    /// Replies to what that process had asked are dropped, half a message too; events from now on are kept.
    /// - Parameter descriptor: the connected socket; it belongs to the client from now on and is closed when this throws.
    /// - Throws: `.invalidInput` when it is no local socket, `.timeout`, `.connection`, `.exited`, `.protocolViolation`.
    public convenience init(adopting descriptor: Int32, timeoutMilliseconds: Int = 5000) throws(EngineError) {
        let deadline = Deadline(milliseconds: timeoutMilliseconds)
        let socket = try MonitorSocket(owning: descriptor, place: nil)
        try self.init(Connection(socket, isSynchronized: false), LineReader()) { (connection) throws(EngineError) in
            // A byte that is never JSON ends what QEMU may have read of half a command; it complains, to nobody.
            let preamble: [UInt8] = [0xff, UInt8(ascii: "\n")]
            let answer: JSONValue
            do throws(EngineError) {
                answer = try connection.execute("query-version", [:], preamble: preamble, deadline)
            } catch {
                guard error.code == .refused else { throw error }
                // The other process died before it had negotiated.
                _ = try connection.execute("qmp_capabilities", [:], deadline)
                answer = try connection.execute("query-version", [:], deadline)
            }
            guard let version = QMPClient.version(answer) else {
                throw EngineError(.protocolViolation, "the answer to query-version holds no version", place: socket.place)
            }
            return version
        }
    }

    /// Starts the reader, then asks for the version.
    private init(
        _ connection: Connection, _ lines: LineReader, version: (Connection) throws(EngineError) -> String
    ) throws(EngineError) {
        self.connection = connection
        guard let reader = PlainThread({ connection.readAll(lines) }) else {
            throw EngineError(.noMemory, "can't start a thread", place: connection.socket.place)
        }
        self.reader = reader
        do throws(EngineError) {
            self.version = try version(connection)
        } catch {
            connection.socket.interrupt()
            reader.join()
            throw error
        }
    }

    deinit { close() }

    /// Closes this process's side. Everybody who waits, and every later call, gets `.cancelled`. Events that came are still there. QEMU
    /// takes another client once every process has closed the socket. May be called again.
    public func close() {
        isClosed.withLock { isClosed in
            if isClosed { return }
            isClosed = true
            connection.socket.interrupt()
            reader.join()
            connection.close()
        }
    }

    /// Runs a command and waits for its reply.
    /// - Returns: what QEMU returned; an empty object for commands that return nothing.
    /// - Throws: `.refused` (reason: QEMU's own words; place: the command), `.timeout` (it may still be carried out),
    ///   `.connection`, `.exited`, `.protocolViolation`, `.invalidInput` (a number that JSON can't express).
    @discardableResult public func execute(
        _ command: String, _ arguments: [String: JSONValue] = [:], timeoutMilliseconds: Int = 30_000
    ) throws(EngineError) -> JSONValue {
        try connection.execute(command, arguments, Deadline(milliseconds: timeoutMilliseconds))
    }

    /// Gives QEMU a duplicate of `descriptor` under a name, for `fd:NAME`. A descriptor that it has under that name is closed.
    /// - Throws: what `execute` throws.
    public func pass(descriptor: Int32, named name: String) throws(EngineError) {
        precondition(fcntl(descriptor, F_GETFD) >= 0, "the descriptor is open")
        _ = try connection.execute("getfd", ["fdname": .string(name)], passing: descriptor, Deadline(milliseconds: 30_000))
    }

    /// The number of the newest event that has come; 0 when there was none.
    public var lastEventSequence: Int { connection.state.withLock { $0.events.last } }

    /// Waits for the first event after number `sequence` that `matches`, which runs on this thread, once for each event in order,
    /// and may use the client. Events that came before the connection ended are still found after it.
    /// - Parameter timeoutMilliseconds: nil: no limit.
    /// - Throws: `.timeout`; `.connection`, `.exited`; `.invalidInput` when events after `sequence` have already been dropped
    ///   for newer ones (10,000 are kept).
    public func waitForEvent(
        after sequence: Int, timeoutMilliseconds: Int?, where matches: (QMPEvent) -> Bool
    ) throws(EngineError) -> QMPEvent {
        let deadline = Deadline(milliseconds: timeoutMilliseconds)
        var seen = sequence
        while let events = try connection.events(after: seen, deadline) {
            if let event = events.first(where: matches) { return event }
            seen = events[events.count - 1].sequence
        }
        throw EngineError(.timeout, "the event that was waited for has not come", place: connection.socket.place)
    }

    /// The events after number `sequence` that are kept, which are the newest 10,000, in order.
    public func events(after sequence: Int) -> [QMPEvent] { connection.state.withLock { $0.events.after(sequence) } }

    // MARK: - Greeting

    private static func greeting(_ socket: MonitorSocket, _ lines: inout LineReader, _ deadline: Deadline) throws(EngineError) -> String {
        var ended = false
        let line: ArraySlice<UInt8>?
        do throws(EngineError) {
            line = try lines.next(socket, deadline, ended: &ended)
        } catch {
            throw error.code == .timeout ? MonitorSocket.occupied(socket.place) : error
        }
        guard let line else { throw socket.whyItEnded(afterMilliseconds: 3000) }
        guard let version = JSONValue(bytes: line)?["QMP"]?["version"].flatMap(version) else {
            let quote = String(decoding: line.prefix(200), as: UTF8.self).debugDescription
            throw EngineError(
                .protocolViolation, "this is no QMP greeting: \(quote)",
                remedy: "Give the socket of a -qmp option, not that of a human monitor, console or guest agent.", place: socket.place)
        }
        return version
    }

    /// The version in a greeting or an answer to query-version.
    private static func version(_ answer: JSONValue) -> String? {
        let parts = ["major", "minor", "micro"].compactMap { answer["qemu"]?[$0]?.integer }
        return parts.count == 3 ? parts.map(String.init).joined(separator: ".") : nil
    }
}
