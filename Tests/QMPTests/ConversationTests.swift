import CheckpointCore
import FaultHarness
import Foundation
import QEMUTesting
import QMP
import Testing
import Threading

@Test func `replies and events are told apart, however the bytes are cut`() async throws {
    let seed = UInt64.random(in: 0 ... .max)
    let (values, events) = try await onPlainThread {
        let monitor = try FakeMonitor { peer in
            var random = SeededGenerator(seed: seed)
            try peer.negotiate()
            for round in 0..<Int64(200) {
                let command = try peer.expect("ask")
                let text =
                    peer.event("BEFORE", round) + peer.line(["return": 1, "id": "somebody else's"])
                    + peer.reply(command, .integer(round)) + peer.event("AFTER", round) + "\r\n"
                var rest = ArraySlice(text.utf8)
                while !rest.isEmpty {
                    let count = Int.random(in: 1...rest.count, using: &random)
                    try peer.send(rest.prefix(count))
                    rest = rest.dropFirst(count)
                }
            }
        }
        let client = try QMPClient.connect(path: monitor.path)
        var values: [Int64?] = []
        for _ in 0..<200 { values.append(try client.execute("ask").integer) }
        let last = try client.waitForEvent(after: 0, timeoutMilliseconds: 60_000) { $0.name == "AFTER" && $0.data["n"] == 199 }
        return (values, client.events(after: 0).prefix(last.sequence))
    }
    #expect(values == (0..<200).map(Int64.init), "seed \(seed)")
    #expect(events.map(\.sequence) == Array(1...400), "seed \(seed)")
    #expect(events.map { $0.data["n"]?.integer } == (0..<400).map { Int64($0 / 2) }, "seed \(seed)")
    #expect(events.allSatisfy { $0.timestampMicroseconds == 5_000_007 })
}

@Test func `each of several commands gets its own reply, in whatever order they come`() async throws {
    let values = try await onPlainThread {
        let monitor = try FakeMonitor { peer in
            try peer.negotiate()
            let commands = try (0..<8).map { _ in try peer.expect("ask") }
            try peer.send(commands.reversed().map { peer.reply($0, $0["arguments"]?["n"] ?? .null) }.joined())
            try peer.waitForEnd()
        }
        let client = try QMPClient.connect(path: monitor.path)
        let values = Lock([Int64: JSONValue]())
        let threads = (0..<Int64(8)).map { number in
            PlainThread {
                let value = (try? client.execute("ask", ["n": .integer(number)])) ?? .null
                values.withLock { $0[number] = value }
            }
        }
        for thread in threads { thread?.join() }
        client.close()
        try monitor.finish()
        return values.withLock { $0 }
    }
    #expect(values == Dictionary(uniqueKeysWithValues: (0..<Int64(8)).map { ($0, .integer($0)) }))
}

@Test func `a command is one packet, so that a dying sender leaves no half`() async throws {
    let isWhole = try await onPlainThread {
        let isWhole = Lock(false)
        let monitor = try FakeMonitor { peer in
            try peer.negotiate()
            guard let command = JSONValue(bytes: try peer.packet()) else { throw GuestTrouble("half a command came") }
            isWhole.withLock { $0 = command["arguments"]?["text"]?.string?.count == 30_000 }
            try peer.send(peer.reply(command))
            try peer.waitForEnd()
        }
        try QMPClient.connect(path: monitor.path).execute("long", ["text": .string(String(repeating: "x", count: 30_000))])
        try monitor.finish()
        return isWhole.withLock { $0 }
    }
    #expect(isWhole)
}

@Test func `a refusal carries the monitor's own words`() async throws {
    let error = try await onPlainThread { () -> EngineError? in
        let monitor = try FakeMonitor { peer in
            try peer.negotiate()
            let command = try peer.expect("migrate")
            try peer.send(peer.line(["error": ["class": "GenericError", "desc": "not now"], "id": command["id"] ?? .null]))
        }
        let client = try QMPClient.connect(path: monitor.path)
        do throws(EngineError) { try client.execute("migrate") } catch { return error }
        return nil
    }
    #expect(error?.code == .refused)
    #expect(error?.reason == "not now")
    #expect(error?.place == "migrate")
}

@Test func `a late reply is not taken for the next one`() async throws {
    let (codes, value) = try await onPlainThread {
        let monitor = try FakeMonitor { peer in
            try peer.negotiate()
            let slow = try peer.expect("slow")
            let quick = try peer.expect("quick")
            try peer.send(peer.reply(slow, "late") + peer.reply(quick, "in time"))
            try peer.waitForEnd()
        }
        let client = try QMPClient.connect(path: monitor.path)
        let codes = [
            errorCode { try client.execute("slow", timeoutMilliseconds: 50) },
            errorCode { _ = try client.waitForEvent(after: 0, timeoutMilliseconds: 50) { _ in true } },
        ]
        return (codes, try client.execute("quick"))
    }
    #expect(codes == [.timeout, .timeout])
    #expect(value == "in time")
}

@Test func `a monitor that takes no commands does not hold its caller up`() async throws {
    let codes = try await onPlainThread {
        let isDone = Lock(false)
        let monitor = try FakeMonitor { peer in
            try peer.negotiate()
            isDone.waitFor { $0 ? () : nil }
        }
        let client = try QMPClient.connect(path: monitor.path)
        // As much as the socket holds, and more.
        let text = JSONValue.string(String(repeating: "x", count: 20_000))
        let codes = (0..<40).map { _ in errorCode { try client.execute("ask", ["text": text], timeoutMilliseconds: 20) } }
        isDone.withLock { $0 = true }
        isDone.wake()
        try monitor.finish()
        return codes
    }
    #expect(codes.allSatisfy { $0 == .timeout }, "\(codes)")
}

@Test func `when the connection ends, all who wait are told, and events that came are still there`() async throws {
    let (codes, found) = try await onPlainThread {
        let monitor = try FakeMonitor { peer in
            try peer.negotiate()
            _ = try (0..<4).map { _ in try peer.expect("ask") }
            try peer.send(peer.event("LAST") + #"{"return": {"half"#)
        }
        let client = try QMPClient.connect(path: monitor.path)
        let codes = Lock([EngineError.Code?]())
        let waiters = (0..<4).map { _ in
            PlainThread {
                let code = errorCode { try client.execute("ask") }
                codes.withLock { $0.append(code) }
            }
        }
        let other = PlainThread {
            let code = errorCode { _ = try client.waitForEvent(after: 0, timeoutMilliseconds: nil) { $0.name == "NEVER" } }
            codes.withLock { $0.append(code) }
        }
        for waiter in waiters + [other] { waiter?.join() }
        codes.withLock { $0.append(errorCode { try client.execute("later") }) }
        let found = try client.waitForEvent(after: 0, timeoutMilliseconds: 0) { $0.name == "LAST" }
        return (codes.withLock { $0 }, found.name)
    }
    #expect(codes == Array(repeating: .connection, count: 6))
    #expect(found == "LAST")
}

@Test func `closing wakes those who wait`() async throws {
    let code = try await onPlainThread {
        let monitor = try FakeMonitor { peer in
            try peer.negotiate()
            try peer.waitForEnd()
        }
        let client = try QMPClient.connect(path: monitor.path)
        let code = Lock<EngineError.Code?>(nil)
        let waiter = PlainThread {
            let result = errorCode { _ = try client.waitForEvent(after: 0, timeoutMilliseconds: nil) { _ in true } }
            code.withLock { $0 = result }
        }
        client.close()
        client.close()
        waiter?.join()
        return code.withLock { $0 }
    }
    #expect(code == .cancelled)
}

@Test func `the newest events are kept, and missing ones are not passed over in silence`() async throws {
    let (kept, last, code) = try await onPlainThread {
        let monitor = try FakeMonitor { peer in
            try peer.negotiate()
            for number in 1...Int64(10_050) { try peer.send(peer.event("TICK", number)) }
            try peer.send(peer.reply(try peer.expect("ask")))
            try peer.waitForEnd()
        }
        let client = try QMPClient.connect(path: monitor.path)
        try client.execute("ask")
        let code = errorCode { _ = try client.waitForEvent(after: 49, timeoutMilliseconds: 1000) { _ in true } }
        return (client.events(after: 0), client.lastEventSequence, code)
    }
    #expect(kept.map(\.sequence) == Array(51...10_050))
    #expect(kept.allSatisfy { $0.data["n"] == .integer(Int64($0.sequence)) })
    #expect(last == 10_050)
    #expect(code == .invalidInput)
}

@Test func `a descriptor goes along with its command`() async throws {
    let (name, text) = try await onPlainThread {
        let seen = Lock(["", ""])
        let monitor = try FakeMonitor { peer in
            try peer.negotiate()
            let command = try peer.expect("getfd")
            guard let passed = peer.passed else { throw GuestTrouble("no descriptor came") }
            var bytes = [UInt8](repeating: 0, count: 16)
            let count = unsafe read(passed, &bytes, 16)
            close(passed)
            seen.withLock { $0 = [command["arguments"]?["fdname"]?.string ?? "", String(decoding: bytes.prefix(count), as: UTF8.self)] }
            try peer.send(peer.reply(command))
            try peer.waitForEnd()
        }
        let client = try QMPClient.connect(path: monitor.path)
        let pipe = Pipe()
        try pipe.fileHandleForWriting.write(contentsOf: Data("through it".utf8))
        try client.pass(descriptor: pipe.fileHandleForReading.fileDescriptor, named: "way")
        return seen.withLock { ($0[0], $0[1]) }
    }
    #expect(name == "way")
    #expect(text == "through it")
}
