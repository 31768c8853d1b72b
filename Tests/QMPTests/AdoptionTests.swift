import CheckpointCore
import FaultHarness
import Foundation
import QEMUTesting
import QMP
import Testing
import Threading

/// Both ends of a connection that another process has used up to now.
private func adopt(
    _ body: @escaping @Sendable (FakeConnection) throws -> Void
) throws -> (client: QMPClient, finish: () throws -> Void) {
    var ends: [Int32] = [-1, -1]
    guard unsafe socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0, &ends) == 0 else { throw GuestTrouble("no sockets") }
    let (theirs, ours) = (ends[0], ends[1])
    let outcome = Lock<Result<Void, any Error>?>(nil)
    let thread = PlainThread {
        let result = Result { try body(FakeConnection(theirs)) }
        close(theirs)
        outcome.withLock { $0 = result }
    }
    let client = try QMPClient(adopting: ours, timeoutMilliseconds: 10_000)
    return (
        client,
        {
            client.close()
            thread?.join()
            try outcome.withLock { $0 }?.get()
        }
    )
}

private let version: JSONValue = ["qemu": ["major": 7, "minor": 2, "micro": 22], "package": ""]

@Test func `what another process had under way is passed over`() async throws {
    // What may be there when it died: the rest of a line, answers, events, nothing.
    let remains = [
        "", "\r\n", #"": {"rest": "of a line"}}"# + "\r\n", #"{"return": {}, "id": "1"}"# + "\r\n", #"{"return": {}}"# + "\r\n",
        #"lf"}, "id": 7}"# + "\r\n" + #"{"error": {"desc": "no"}, "id": "x-1"}"# + "\r\n",
        #"{"return": {"qemu": {"major": 1, "minor": 1, "micro": 1}}, "id": "1"}"# + "\r\n", FakeConnection.greeting + "\r\n",
    ]
    let results = try await onPlainThread {
        try remains.map { text in
            let (client, finish) = try adopt { peer in
                try peer.send(text)
                let command = try peer.expect("query-version")
                try peer.send(peer.event("BETWEEN") + peer.reply(command, version))
                try peer.send(peer.reply(try peer.expect("ask"), "answer"))
                try peer.waitForEnd()
            }
            let answer = try client.execute("ask")
            let event = try client.waitForEvent(after: 0, timeoutMilliseconds: 10_000) { _ in true }
            let result = [client.version, answer.string ?? "", event.name]
            try finish()
            return result
        }
    }
    for (text, result) in zip(remains, results) { #expect(result == ["7.2.22", "answer", "BETWEEN"], "\(text)") }
}

@Test func `half a command of a process that died does not spoil the next`() async throws {
    let answer = try await onPlainThread {
        var ends: [Int32] = [-1, -1]
        guard unsafe socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0, &ends) == 0 else { throw GuestTrouble("no sockets") }
        let (theirs, ours) = (ends[0], ends[1])
        try FakeConnection(ours).send(#"{"execute": "hal"#)
        let thread = PlainThread {
            let peer = FakeConnection(theirs)
            if let command = try? peer.expect("query-version") { try? peer.send(peer.reply(command, version)) }
            close(theirs)
        }
        defer { thread?.join() }
        return try QMPClient(adopting: ours, timeoutMilliseconds: 10_000).version
    }
    #expect(answer == "7.2.22")
}

@Test func `a connection that was not negotiated yet is negotiated`() async throws {
    let answer = try await onPlainThread {
        let (client, finish) = try adopt { peer in
            try peer.send(FakeConnection.greeting + "\r\n")
            let early = try peer.expect("query-version")
            try peer.send(
                peer.line(["error": ["class": "CommandNotFound", "desc": "Expecting capabilities negotiation"], "id": early["id"] ?? .null]))
            try peer.send(peer.reply(try peer.expect("qmp_capabilities")))
            try peer.send(peer.reply(try peer.expect("query-version"), version))
            try peer.waitForEnd()
        }
        defer { try? finish() }
        return client.version
    }
    #expect(answer == "7.2.22")
}

@Test func `no answer, and what is no socket, are told`() async throws {
    let codes = try await onPlainThread {
        var ends: [Int32] = [-1, -1]
        guard unsafe socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0, &ends) == 0 else { throw GuestTrouble("no sockets") }
        let (theirs, ours) = (ends[0], ends[1])
        defer { close(theirs) }
        let file = dup(Pipe().fileHandleForReading.fileDescriptor)
        return [
            errorCode { _ = try QMPClient(adopting: ours, timeoutMilliseconds: 50) },
            errorCode { _ = try QMPClient(adopting: file, timeoutMilliseconds: 50) },
        ]
    }
    #expect(codes == [.timeout, .invalidInput])
}
