// The workload's commands and answers: see Tests/Guest/workload/main.c.

import CLinux
import Foundation
import Threading

/// What the workload answers.
public struct GuestStatus: Sendable, Codable, Equatable {
    /// The writers of a disk, taken together.
    public struct Disk: Sendable, Codable, Equatable {
        public var threads: Int
        /// Records whose writes have begun, and ended.
        public var issued, completed: UInt64
    }
    /// No error has been found since the guest booted, across restores.
    public var ok: Bool
    /// Milliseconds of activity, roughly.
    public var ticks: UInt64
    /// What `mark` was last told.
    public var mark: Int64
    public var fillPages, dirtyPages: UInt64
    public var fillGeneration: UInt32
    /// The dirtier's place: pages before the position hold the round, the others the one before.
    public var dirtyRound, dirtyPosition: UInt64
    /// Pages it has written in all.
    public var dirtyWritten: UInt64
    public var disks: [Disk]
    public var errorCount: UInt64
    /// The first errors.
    public var errors: [String]
}

/// The connection to a guest's workload.
///
/// Invariant: one command at a time; an answer is taken by its number alone, so that one to a command of another time is skipped.
final class GuestPort: Sendable {
    private struct State {
        let descriptor: Int32
        var buffer: [UInt8] = []
    }
    private struct Numbered: Decodable { var id: UInt64? }

    private let state: Lock<State>
    private static let repeatMilliseconds: UInt64 = 300

    /// Takes `descriptor` over.
    init(descriptor: Int32) { state = Lock(State(descriptor: descriptor)) }

    deinit { state.withLock { _ = ck_close($0.descriptor) } }

    /// Sends a command and waits for its answer.
    /// - Parameter repeats: sends it again and again: for a guest that may not listen yet.
    func command(_ text: String, limitSeconds: Double, repeats: Bool = false) throws -> GuestStatus {
        try state.withLock { (state) throws -> GuestStatus in
            let number = UInt64.random(in: 1...0xffff_ffff)
            let end = Monotonic.now() + UInt64(limitSeconds * 1e9)
            // A line end first: whatever came before is no part of it.
            let line = Array("\n\(number) \(text)\n".utf8)
            var nextSend: UInt64 = 0
            while Monotonic.now() < end {
                if Monotonic.now() >= nextSend {
                    try Self.send(line, to: state.descriptor)
                    nextSend = repeats ? Monotonic.now() + Self.repeatMilliseconds * 1_000_000 : .max
                }
                if let answer = try Self.answer(to: number, from: &state) { return answer }
            }
            throw GuestTrouble("the guest did not answer \"\(text)\" in \(limitSeconds) s")
        }
    }

    private static func send(_ line: [UInt8], to descriptor: Int32) throws {
        let sent = unsafe line.withUnsafeBytes { unsafe ck_send(descriptor, $0.baseAddress, $0.count, -1) }
        // A queue that is full is that of a guest that does not listen: it is left at that.
        guard sent == line.count || sent == -Int(EAGAIN) else { throw GuestTrouble("the guest is gone: error \(sent)") }
    }

    /// Waits a little for bytes; the answer `number` if it is among them.
    private static func answer(to number: UInt64, from state: inout State) throws -> GuestStatus? {
        guard ck_wait(state.descriptor, Int32(CK_READABLE), -1, 20) > 0 else { return nil }
        var count = 0
        unsafe state.buffer += [UInt8](unsafeUninitializedCapacity: 1 << 14) { target, initialized in
            count = unsafe ck_receive(state.descriptor, target.baseAddress, target.count)
            initialized = max(0, count)
        }
        guard count > 0 || count == -Int(EAGAIN) else { throw GuestTrouble("the guest is gone: error \(count)") }
        let decoder = JSONDecoder()
        decoder.keyDecodingStrategy = .convertFromSnakeCase
        while let end = state.buffer.firstIndex(of: UInt8(ascii: "\n")) {
            let line = Data(state.buffer[..<end])
            state.buffer.removeSubrange(...end)
            // A line that is no answer was cut off by a checkpoint or a restart.
            guard (try? decoder.decode(Numbered.self, from: line))?.id == number else { continue }
            return try decoder.decode(GuestStatus.self, from: line)
        }
        return nil
    }
}
