// One connection to a monitor: the commands under way, the events, and the thread that reads both.
//
// Invariants:
// - An id is never used twice, by any process: what another left under way on this connection is never taken for ours.
// - Everybody who waits is woken when the connection ends, and `ended` says why from then on.
// - One command is being sent at a time. While a descriptor is on its way no other is sent: QEMU keeps only the newest that
//   came in until a command asks for it.

import CheckpointCore
import Threading

final class Connection: Sendable {
    struct State: Sendable {
        /// The commands under way, and the replies to them that have come.
        var awaited: Set<String> = []
        var replies: [String: JSONValue] = [:]
        var nextID: UInt64 = 0
        var isSending = false
        var events = EventRing()
        var ended: EngineError?
        /// False until this connection's own first reply: before that, what another process had sent is answered.
        var isSynchronized: Bool
    }

    let socket: MonitorSocket
    let state: Lock<State>
    private let idPrefix = String(UInt64.random(in: .min ... .max), radix: 36)

    init(_ socket: MonitorSocket, isSynchronized: Bool) {
        self.socket = socket
        state = Lock(State(isSynchronized: isSynchronized))
    }

    // MARK: - Reading

    /// Reads until the connection ends or is interrupted. On the reader thread.
    func readAll(_ lines: LineReader) {
        var lines = lines
        var ended = false
        let reason: EngineError
        do throws(EngineError) {
            while let line = try lines.next(socket, Deadline(milliseconds: nil), ended: &ended) { try take(line) }
            reason = ended
                ? socket.whyItEnded(afterMilliseconds: 3000)
                : socket.closedHere
        } catch {
            reason = error
        }
        end(reason)
    }

    /// Closes the socket, once nobody sends any more. When the reader has ended.
    func close() {
        state.waitFor { $0.isSending ? nil : () }
        socket.close()
    }

    /// Ends the connection for all, unless it has ended.
    private func end(_ reason: EngineError) {
        state.withLock { if $0.ended == nil { $0.ended = reason } }
        state.wake()
    }

    private func take(_ line: ArraySlice<UInt8>) throws(EngineError) {
        let message = JSONValue(bytes: line)
        try state.withLock { (state) throws(EngineError) in
            guard let message, message.object != nil else {
                // The rest of a line that another process read half of.
                if !state.isSynchronized { return }
                throw violation("this is no JSON object", line)
            }
            if message["event"] != nil {
                guard let event = QMPEvent(message: message, sequence: state.events.last + 1) else {
                    throw violation("an event without name or time", line)
                }
                state.events.append(event)
            } else if message["return"] != nil || message["error"] != nil {
                // An id that nobody waits for is a late answer, or one to a process that is no more.
                if let id = message["id"]?.string, state.awaited.contains(id) {
                    state.replies[id] = message
                    state.isSynchronized = true
                } else if message["id"] == nil && state.isSynchronized {
                    throw violation("an answer to nothing", line)
                }
            } else if state.isSynchronized {
                throw violation("neither an answer nor an event", line)
            }
        }
        state.wake()
    }

    /// The error of a message that makes no sense, quoting its beginning.
    func violation(_ what: String, _ line: ArraySlice<UInt8>) -> EngineError {
        let quote = String(decoding: line.prefix(200), as: UTF8.self).debugDescription
        return EngineError(
            .protocolViolation, "\(what): \(quote)\(line.count > 200 ? "…" : "")",
            remedy: "Is this a QMP socket? Connect again.", place: socket.place)
    }

    // MARK: - Commands

    /// Sends a command and waits for its reply.
    /// - Parameters:
    ///   - preamble: sent before it, in the same packet.
    ///   - passing: a descriptor that goes with it.
    func execute(
        _ command: String, _ arguments: [String: JSONValue], preamble: [UInt8] = [], passing: Int32? = nil, _ deadline: Deadline
    ) throws(EngineError) -> JSONValue {
        let id = try beginSending(command, deadline)
        var isMyTurn = true
        defer { finish(id, endingTurn: isMyTurn) }
        try send(command, arguments, id: id, preamble, passing, deadline)
        if passing == nil {
            endTurn()
            isMyTurn = false
        }
        let reply = try waitForReply(id, command, deadline)
        if let result = reply["return"] { return result }
        throw EngineError(.refused, reply["error"]?["desc"]?.string ?? "QEMU does not say why", place: command)
    }

    /// Waits for the turn to send; the id for the command that is sent in it.
    private func beginSending(_ command: String, _ deadline: Deadline) throws(EngineError) -> String {
        let id = try wait(deadline) { (state) throws(EngineError) -> String? in
            if let ended = state.ended { throw ended }
            if state.isSending { return nil }
            state.isSending = true
            state.nextID += 1
            let id = "\(idPrefix)-\(state.nextID)"
            state.awaited.insert(id)
            return id
        }
        guard let id else {
            throw EngineError(.timeout, "other commands were in the way of \(command)", place: socket.place)
        }
        return id
    }

    private func send(
        _ command: String, _ arguments: [String: JSONValue], id: String, _ preamble: [UInt8], _ passing: Int32?, _ deadline: Deadline
    ) throws(EngineError) {
        var message: [String: JSONValue] = ["execute": .string(command), "id": .string(id)]
        if !arguments.isEmpty { message["arguments"] = .object(arguments) }
        guard let bytes = JSONValue.object(message).bytes else {
            throw EngineError(.invalidInput, "a number that JSON can't express", place: command)
        }
        do throws(EngineError) {
            try socket.send(preamble + bytes + [UInt8(ascii: "\n")], passing: passing, deadline)
        } catch {
            if error.code != .timeout { end(error) }
            throw error
        }
    }

    private func waitForReply(_ id: String, _ command: String, _ deadline: Deadline) throws(EngineError) -> JSONValue {
        let reply = try wait(deadline) { (state) throws(EngineError) -> JSONValue? in
            if let reply = state.replies[id] { return reply }
            if let ended = state.ended { throw ended }
            return nil
        }
        guard let reply else {
            throw EngineError(
                .timeout, "no answer to \(command) in the time allowed",
                remedy: "QEMU may still carry it out; look at the machine's state before going on.", place: socket.place)
        }
        return reply
    }

    private func endTurn() {
        state.withLock { $0.isSending = false }
        state.wake()
    }

    private func finish(_ id: String, endingTurn: Bool) {
        state.withLock {
            $0.awaited.remove(id)
            $0.replies[id] = nil
        }
        if endingTurn { endTurn() }
    }

    // MARK: - Events

    /// Waits for events after number `sequence`: those there are, at least one; nil when none has come in time.
    func events(after sequence: Int, _ deadline: Deadline) throws(EngineError) -> [QMPEvent]? {
        try wait(deadline) { (state) throws(EngineError) -> [QMPEvent]? in
            if sequence + 1 < state.events.oldest {
                throw EngineError(
                    .invalidInput, "events after number \(sequence) are not kept any more, only those from \(state.events.oldest)",
                    remedy: "Wait from a newer event on.", place: socket.place)
            }
            let events = state.events.after(sequence)
            if !events.isEmpty { return events }
            if let ended = state.ended { throw ended }
            return nil
        }
    }

    /// Waits until `body` answers; nil when it has not by the deadline.
    private func wait<R>(_ deadline: Deadline, _ body: (inout State) throws(EngineError) -> R?) throws(EngineError) -> R? {
        guard let milliseconds = deadline.remaining else { return try state.waitFor(body) }
        return try state.waitFor(milliseconds: milliseconds, body)
    }
}
