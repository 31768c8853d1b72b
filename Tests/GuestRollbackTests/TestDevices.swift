// Devices of tests: memory with a record, under the test's hand or on a thread with moods.

import CheckpointCore
import FaultHarness
import Foundation
import GuestRollback
import Threading
import Units

/// A device in memory that records what it is asked for and does it when the test says so.
final class ManualDevice: GuestDevice {
    struct Waiting {
        enum What {
            case read(TransferBuffer)
            case write(TransferBuffer)
            case flush
        }
        var number: Int
        var id: RequestID?
        var offset: DeviceOffset
        var what: What
        var completion: Completion
    }
    struct State {
        var content: [UInt8]
        var waiting: [Waiting] = []
        var writes: [TracedWrite] = []
        var readCount = 0
        var arrivals = 0
        var failure: EngineError?
    }
    let name: String
    let byteLength: ByteCount
    let blockLength = ByteCount(512)
    let state: Lock<State>

    init(_ name: String, _ content: [UInt8]) {
        self.name = name
        byteLength = ByteCount(content.count)
        state = Lock(State(content: content))
    }

    /// A disk with content that differs in every word.
    static func content(sectors: Int, seed: UInt64) -> [UInt8] {
        var random = SeededGenerator(seed: seed)
        return (0..<sectors * 64).flatMap { _ -> [UInt8] in
            let word = random.next()
            return (0..<8).map { UInt8(truncatingIfNeeded: word >> (8 * $0)) }
        }
    }

    func read(at offset: DeviceOffset, into buffer: TransferBuffer, completion: @escaping Completion) {
        add(nil, offset, .read(buffer), completion)
    }
    func write(_ id: RequestID, at offset: DeviceOffset, _ buffer: TransferBuffer, completion: @escaping Completion) {
        add(id, offset, .write(buffer), completion)
    }
    func flush(completion: @escaping Completion) { add(nil, DeviceOffset(UInt64(0)), .flush, completion) }

    private func add(_ id: RequestID?, _ offset: DeviceOffset, _ what: Waiting.What, _ completion: @escaping Completion) {
        state.withLock { state in
            state.arrivals += 1
            state.waiting.append(Waiting(number: state.arrivals, id: id, offset: offset, what: what, completion: completion))
        }
        state.wake()
    }

    var waitingCount: Int { state.withLock { $0.waiting.count } }
    var content: [UInt8] { state.withLock { $0.content } }
    var writes: [TracedWrite] { state.withLock { $0.writes } }
    var readCount: Int { state.withLock { $0.readCount } }

    /// Carries the `index`th waiting operation out and completes it.
    func complete(_ index: Int) {
        let (waiting, result) = state.withLock { state -> (Waiting, Result<Void, EngineError>) in
            let waiting = state.waiting.remove(at: index)
            if let failure = state.failure { return (waiting, .failure(failure)) }
            switch waiting.what {
            case .read(let buffer):
                state.readCount += 1
                let range = waiting.offset.int..<waiting.offset.int + buffer.byteLength.int
                unsafe buffer.bytes.copyBytes(from: state.content[range])
            case .write(let buffer):
                let bytes = unsafe Array(buffer.bytes)
                state.writes.append(TracedWrite(id: waiting.id!, offset: waiting.offset, bytes: bytes))
                state.content.replaceSubrange(waiting.offset.int..<waiting.offset.int + bytes.count, with: bytes)
            case .flush: break
            }
            return (waiting, .success(()))
        }
        waiting.completion(result)
    }

    /// From here on every operation fails, those that wait as well, when they are completed.
    func breakDown(_ reason: String = "it is broken") {
        state.withLock { $0.failure = EngineError(.ioFailed, reason, place: name) }
    }

    /// Completes `index`th after it has written only the first half of its bytes: the device dies in the middle.
    func tear(_ index: Int) {
        state.withLock { state in
            if case .write(let buffer) = state.waiting[index].what {
                let start = state.waiting[index].offset.int
                let half = buffer.byteLength.int / 2
                state.content.replaceSubrange(start..<start + half, with: unsafe Array(buffer.bytes[..<half]))
            }
            state.failure = EngineError(.ioFailed, "it died in the middle of a write", place: name)
        }
        complete(index)
    }
}

/// Completes a manual device's operations on a thread, in an order and with delays that a seed gives.
final class MoodyServer: Sendable {
    private let thread = Lock<PlainThread?>(nil)
    private let isEnded = Lock(false)

    init(_ device: ManualDevice, seed: UInt64, mostMicroseconds: Int) {
        let ended = isEnded
        thread.withLock {
            $0 = PlainThread {
                var random = SeededGenerator(seed: seed)
                while !ended.withLock({ $0 }) {
                    let count = device.state.waitFor(milliseconds: 5) { $0.waiting.isEmpty ? nil : $0.waiting.count }
                    guard let count else { continue }
                    if mostMicroseconds > 0, random.chance(1, in: 2) { usleep(UInt32(random.below(mostMicroseconds))) }
                    device.complete(random.below(count))
                }
            }
        }
    }

    func end() {
        isEnded.withLock { $0 = true }
        thread.withLock { thread in
            thread?.join()
            thread = nil
        }
    }
}
