import CheckpointCore
import FaultHarness
import Foundation
import QEMUTesting
import QMP
import Testing
import Threading

@Test func `what answers wrongly at the beginning is named`() async throws {
    let codes = try await onPlainThread {
        let folder = try TemporaryFolder()
        let abandoned = folder.file("abandoned")
        close(try listen(at: abandoned))
        func code(_ script: @escaping @Sendable (FakeConnection) throws -> Void) throws -> EngineError.Code? {
            let monitor = try FakeMonitor(script)
            return errorCode { _ = try QMPClient.connect(path: monitor.path, timeoutMilliseconds: 200) }
        }
        return [
            errorCode { _ = try QMPClient.connect(path: folder.file("missing")) },
            errorCode { _ = try QMPClient.connect(path: abandoned) },
            errorCode { _ = try QMPClient.connect(path: folder.file(String(repeating: "x", count: 120))) },
            try code { try $0.waitForEnd() },
            try code { try $0.send("(qemu) \r\n") },
            try code { try $0.send("{\"return\": {}}\r\n") },
            try code { _ in },
            // A greeting, but no answer after it.
            try code {
                try $0.send(FakeConnection.greeting + "\r\n")
                try $0.waitForEnd()
            },
        ]
    }
    #expect(
        codes == [
            .notFound, .connection, .invalidInput, .busy, .protocolViolation, .protocolViolation, .connection, .timeout,
        ])
}

@Test func `a full queue of clients means that the monitor is taken`() async throws {
    let code = try await onPlainThread {
        let folder = try TemporaryFolder()
        let path = folder.file("qmp")
        let listening = try listen(at: path)
        defer { close(listening) }
        let waiting = (0..<4).map { _ in errorCode { _ = try QMPClient.connect(path: path, timeoutMilliseconds: 50) } }
        return waiting
    }
    #expect(code == Array(repeating: .busy, count: 4))
}

@Test func `messages without sense end the connection`() async throws {
    let nonsense: [String] = [
        "garbage", "[]", "7", "{}", #"{"return": {}}"#, #"{"error": {"desc": "JSON parse error"}}"#, #"{"event": 7}"#, #"{"event": "X"}"#,
        #"{"event": "X", "timestamp": {"seconds": 9223372036854775807, "microseconds": 0}}"#, #"{"return": }"#, "\u{1}",
        #"{"hello": 1}"#,
    ]
    let codes = try await onPlainThread {
        try nonsense.map { text in
            let monitor = try FakeMonitor { peer in
                try peer.negotiate()
                try peer.expect("ask")
                try peer.send(text + "\r\n")
                try peer.waitForEnd()
            }
            let client = try QMPClient.connect(path: monitor.path)
            return [errorCode { try client.execute("ask") }, errorCode { try client.execute("ask") }]
        }
    }
    for (text, codes) in zip(nonsense, codes) { #expect(codes == [.protocolViolation, .protocolViolation], "\(text)") }
}

@Test func `a line without end is not gathered for ever`() async throws {
    let code = try await onPlainThread {
        let monitor = try FakeMonitor { peer in
            try peer.negotiate()
            try peer.expect("ask")
            try peer.send(#"{"return": ""#)
            let piece = [UInt8](repeating: UInt8(ascii: "x"), count: 1 << 20)
            // The client stops reading: sending fails, or nobody reads what was sent.
            for _ in 0..<17 { try? peer.send(piece) }
        }
        let client = try QMPClient.connect(path: monitor.path)
        return errorCode { try client.execute("ask") }
    }
    #expect(code == .protocolViolation)
}

@Test func `a long answer is an answer`() async throws {
    let count = try await onPlainThread {
        let monitor = try FakeMonitor { peer in
            try peer.negotiate()
            let command = try peer.expect("ask")
            try peer.send(peer.reply(command, .string(String(repeating: "x", count: 15 << 20))))
            try peer.waitForEnd()
        }
        return try QMPClient.connect(path: monitor.path).execute("ask").string?.utf8.count
    }
    #expect(count == 15 << 20)
}
