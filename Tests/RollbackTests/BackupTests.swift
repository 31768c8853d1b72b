// The backup's protocol: damaged, repeated and misplaced frames, broken connections, and who may keep checkpoints.

import CheckpointCore
import FaultHarness
import Foundation
import MachineMemory
import Media
import Rollback
import Testing
import Threading
import Units

/// A strategy's way to its backup with somebody in between, who sees each frame of the machine's side and can change what is passed on.
private final class Tap: Sendable {
    private let backup: LocalBackup
    private let change: Lock<@Sendable (_ number: Int, _ frame: [UInt8]) -> [[UInt8]]>
    private let threads = Lock<[PlainThread]>([])

    init(_ backup: LocalBackup) {
        self.backup = backup
        change = Lock({ _, frame in [frame] })
    }

    /// What becomes of each frame from now on; no frames at all end the connection.
    func set(_ change: @escaping @Sendable (_ number: Int, _ frame: [UInt8]) -> [[UInt8]]) { self.change.withLock { $0 = change } }

    func connect() throws(EngineError) -> BackupSocket {
        let there = try backup.connectRaw()
        var ends: [Int32] = [0, 0]
        guard unsafe socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0, &ends) == 0 else { throw EngineError(system: "make sockets", errno) }
        let here = ends[1]
        let answers = PlainThread {
            var buffer = [UInt8](repeating: 0, count: 1 << 16)
            while true {
                let got = unsafe read(there, &buffer, buffer.count)
                guard got > 0, write(here, Array(buffer[..<got])) else { break }
            }
            shutdown(here, Int32(SHUT_RDWR))
        }
        let frames = PlainThread { [self] in
            var number = 0
            while let frame = Self.frame(here) {
                let passed = change.withLock { $0 }(number, frame)
                number += 1
                guard !passed.isEmpty, passed.allSatisfy({ write(there, $0) }) else { break }
            }
            shutdown(there, Int32(SHUT_RDWR))
            answers?.join()
            close(here)
            close(there)
        }
        threads.withLock { $0.append(frames!) }
        return try BackupSocket(adopting: ends[0])
    }

    func join() { for thread in threads.withLock({ $0 }) { thread.join() } }

    /// One whole frame: 64 bytes, the payload's length at 40.
    private static func frame(_ descriptor: Int32) -> [UInt8]? {
        guard let header = bytes(descriptor, 64) else { return nil }
        let length = (0..<4).reduce(0) { $0 | Int(header[40 + $1]) << (8 * $1) }
        guard let payload = bytes(descriptor, length) else { return nil }
        return header + payload
    }

    private static func bytes(_ descriptor: Int32, _ count: Int) -> [UInt8]? {
        var result: [UInt8] = []
        while result.count < count {
            var buffer = [UInt8](repeating: 0, count: count - result.count)
            let got = unsafe read(descriptor, &buffer, buffer.count)
            if got <= 0 { return nil }
            result += buffer[..<got]
        }
        return result
    }
}

private func write(_ descriptor: Int32, _ bytes: [UInt8]) -> Bool {
    var sent = 0
    while sent < bytes.count {
        let result = unsafe bytes.withUnsafeBytes { unsafe send(descriptor, $0.baseAddress! + sent, $0.count - sent, Int32(MSG_NOSIGNAL)) }
        if result <= 0 { return false }
        sent += result
    }
    return true
}

extension GuestMemory {
    fileprivate func byte(at place: Int) -> UInt8 { unsafe bytes[place] }
}

@Suite(.serialized) struct BackupTests {
    /// A memory whose third checkpoint meets with `change`; afterwards the second or the third stands, and all goes on.
    private static func meet(
        _ what: String, expected: EngineError.Code?, _ change: @escaping @Sendable (_ number: Int, _ frame: [UInt8]) -> [[UInt8]]
    ) throws {
        let backup = try LocalBackup()
        let tap = Tap(backup)
        let memory = try GuestMemory("ram", byteLength: .kibibytes(256))
        var options = RollbackOptions()
        options.connect = { () throws(EngineError) in try tap.connect() }
        options.answerMilliseconds = 5000
        let rollback = try MemoryRollback.make(.postImageRemote, memory, options: options)
        for page in 0..<20 { unsafe memory.bytes[page * 2 * pageSize] = 1 }
        try rollback.checkpoint(state: [2])
        let old = unsafe [UInt8](memory.bytes)
        for page in 0..<20 { unsafe memory.bytes[page * 2 * pageSize] = 2 }
        let new = unsafe [UInt8](memory.bytes)
        tap.set(change)
        do throws(EngineError) {
            try rollback.checkpoint(state: [3])
            throw EngineError(.invalidInput, "\(what): the checkpoint was taken")
        } catch { try require([.refused, .connection, .timeout].contains(error.code), "\(what): \(error)") }
        tap.set { _, frame in [frame] }
        for page in 0..<20 { unsafe memory.bytes[(page * 2 + 1) * pageSize] = 9 }
        let state = try rollback.rollback()
        try memory.requireEqual(state == [3] ? new : old, "\(what), state \(state)")
        try require(state == [2] || state == [3], "\(what): state \(state)")
        if let expected { try require(backup.errors.withLock { $0.first?.code } == expected, "\(what): \(backup.errors.withLock { $0 })") }
        unsafe memory.bytes[0] = 77
        try rollback.checkpoint(state: [4])
        unsafe memory.bytes[0] = 78
        let last = try rollback.rollback()
        try require(last == [4] && memory.byte(at: 0) == 77, "\(what): it does not go on")
        rollback.close()
        backup.close()
        tap.join()
    }

    // The frames of the connection: hello and an end marker, twice discard, 20 pages and an end marker: the last checkpoint's are 24 to 45.
    @Test func `damaged frames are refused`() async throws {
        try await onPlainThread {
            let seed = newSeed()
            var random = SeededGenerator(seed: seed)
            for target in [24, 25, 30, 45] {
                let bit = random.below(8)
                let place = random.below(64)
                try Self.meet("seed \(seed), frame \(target) with a bit of byte \(place) flipped", expected: nil) { number, frame in
                    guard number == target else { return [frame] }
                    var frame = frame
                    frame[place] ^= UInt8(1 << bit)
                    // A length that lies makes the receiver wait for what never comes: the connection ends then.
                    return (40..<44).contains(place) ? [] : [frame]
                }
            }
            try Self.meet("a damaged payload", expected: .corrupt) { number, frame in
                guard number == 27 else { return [frame] }
                var frame = frame
                frame[64 + 1000] ^= 4
                return [frame]
            }
        }
    }

    @Test func `repeated and misplaced frames are refused`() async throws {
        try await onPlainThread {
            try Self.meet("a frame that comes twice", expected: .protocolViolation) { number, frame in number == 26 ? [frame, frame] : [frame] }
            let kept = Lock<[UInt8]?>(nil)
            try Self.meet("two frames in the wrong order", expected: .protocolViolation) { number, frame in
                if number == 26 {
                    kept.withLock { $0 = frame }
                    // Something that is passed on, so that the connection stays.
                    return [[]]
                }
                let earlier = kept.withLock { kept in
                    defer { kept = nil }
                    return kept
                }
                return earlier.map { [frame, $0] } ?? [frame]
            }
        }
    }

    @Test func `a connection that breaks at any frame leaves the old checkpoint or the new one`() async throws {
        try await onPlainThread {
            for target in 24...45 {
                try Self.meet("the connection ends before frame \(target)", expected: nil) { number, frame in number >= target ? [] : [frame] }
            }
        }
    }

    @Test func `only one process keeps its checkpoints in a backup, until another takes over`() async throws {
        try await onPlainThread {
            let backup = try LocalBackup()
            defer { backup.close() }
            let memory = try GuestMemory("ram", byteLength: .kibibytes(256))
            var options = RollbackOptions()
            options.connect = { () throws(EngineError) in try backup.connect() }
            let first = try MemoryRollback.make(.postImageRemote, memory, state: [1], options: options)
            defer { first.close() }
            unsafe memory.bytes[100] = 1
            try first.checkpoint(state: [2])
            unsafe memory.bytes[100] = 2

            let other = try GuestMemory("ram", byteLength: .kibibytes(256))
            var otherOptions = options
            otherOptions.identity = .random()
            try requireRefusal(.refused) { _ = try MemoryRollback.make(.postImageRemote, other, options: otherOptions) }

            let image = try TakenOverImage.takeOver(try backup.connect(), identity: otherOptions.identity)
            try image.restore(into: other)
            image.close()
            try require(image.state == [2] && other.byte(at: 100) == 1, "something else was handed over")
            try requireRefusal(.refused) { try first.checkpoint(state: [3]) }
            try requireRefusal(.refused) { _ = try first.rollback() }
            let second = try MemoryRollback.make(.postImageRemote, other, state: [4], options: otherOptions)
            defer { second.close() }
            unsafe other.bytes[100] = 3
            let last = try second.rollback()
            try require(last == [4] && other.byte(at: 100) == 1, "the second does not roll back")
        }
    }

    @Test func `a backup that is started again goes on with the image of its medium`() async throws {
        try await onPlainThread {
            let device = SimulatedDevice(size: .zero)
            let medium = FaultMedium(device)
            let memory = try GuestMemory("ram", byteLength: .kibibytes(256))
            var options = RollbackOptions()
            options.medium = medium
            unsafe memory.bytes[70_000] = 5
            try withRollback(.postImageRemote, memory, state: describe(1, memory), options: options) { rollback in
                unsafe memory.bytes[70_000] = 6
                try rollback.checkpoint(state: describe(2, memory))
                // The answer to this comes when the checkpoint has drained.
                _ = try rollback.rollback()
            }
            try require(try verifiedNumber(medium) == 2, "another checkpoint")
            var backupOptions = BackupOptions()
            backupOptions.medium = medium
            let backup = try LocalBackup(backupOptions)
            defer { backup.close() }
            let other = try GuestMemory("ram", byteLength: .kibibytes(256))
            let image = try TakenOverImage.takeOver(try backup.connect())
            try image.restore(into: other)
            image.close()
            try require(image.state == describe(2, other), "another image")
        }
    }

    @Test func `TCP is taken over loopback and refused from elsewhere`() async throws {
        try await onPlainThread {
            let backup = try LocalBackup()
            defer { backup.close() }
            let (near, far) = try Self.loopback()
            try backup.serve(try BackupSocket(adopting: far))
            let memory = try GuestMemory("ram", byteLength: .kibibytes(256))
            let socket = try BackupSocket(adopting: near)
            var options = RollbackOptions()
            options.connect = { () throws(EngineError) in socket }
            try withRollback(.postImageRemote, memory, state: [1], options: options) { rollback in
                unsafe memory.bytes[100] = 1
                let last = try rollback.rollback()
                try require(last == [1] && memory.byte(at: 100) == 0, "it does not roll back")
            }
            // A datagram socket that is "connected" to an address elsewhere: nothing is sent for that.
            let elsewhere = Self.socket_(AF_INET, SOCK_DGRAM)
            var address = Self.address(192, 0, 2, 1, port: 9)
            let connected = unsafe withUnsafePointer(to: &address) { pointer in
                unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                    unsafe connect(elsewhere, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
                }
            }
            if connected == 0 { try requireRefusal(.unsupported) { _ = try BackupSocket(adopting: elsewhere) } }
        }
    }

    private static func socket_(_ family: Int32, _ type: __socket_type) -> Int32 { socket(family, Int32(type.rawValue), 0) }

    private static func address(_ a: UInt8, _ b: UInt8, _ c: UInt8, _ d: UInt8, port: UInt16) -> sockaddr_in {
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_port = port.bigEndian
        address.sin_addr.s_addr = (UInt32(a) << 24 | UInt32(b) << 16 | UInt32(c) << 8 | UInt32(d)).bigEndian
        return address
    }

    /// Two ends of a TCP connection.
    private static func loopback() throws -> (Int32, Int32) {
        let listening = socket_(AF_INET, SOCK_STREAM)
        defer { close(listening) }
        var address = Self.address(127, 0, 0, 1, port: 0)
        var length = socklen_t(MemoryLayout<sockaddr_in>.size)
        let near = socket_(AF_INET, SOCK_STREAM)
        let result = unsafe withUnsafeMutablePointer(to: &address) { pointer in
            unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                unsafe bind(listening, $0, length) == 0 && listen(listening, 1) == 0 && getsockname(listening, $0, &length) == 0
                    && connect(near, $0, length) == 0
            }
        }
        try require(result, "no TCP over loopback: error \(errno)")
        return (near, accept(listening, nil, nil))
    }
}
