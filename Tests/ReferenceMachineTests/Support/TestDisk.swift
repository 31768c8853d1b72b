// A disk in memory whose requests are carried out when, and in whatever order, a test wants.
//
// Invariants:
// - Overlapping requests are carried out in the order of their submission; others in any order.
// - Completions come on the disk's own thread.

import CheckpointCore
import FaultHarness
import Glibc
import ReferenceMachine
import Threading
import Units

/// A disk that shuffles, holds and fails requests.
final class TestDisk: DMADisk {
    let byteLength: ByteCount
    private let state: Lock<State>
    private let thread = Lock<PlainThread?>(nil)

    fileprivate struct Request {
        var operation: DMAOperation
        var range: Range<Int>
        var buffer: DMABuffer?
        var completion: @Sendable (Result<Void, EngineError>) -> Void
    }
    fileprivate struct State {
        var content: [UInt8]
        var random: SeededGenerator
        var waiting: [Request] = []
        var isHeld = false
        /// The request from which on everything is held.
        var heldRequest: Int?
        var fails = false
        var isBusy = false
        var isClosed = false
        var submitted = 0
        var submitMicroseconds: UInt32 = 0
        var isSubmitting = false
    }

    init(_ content: [UInt8], seed: UInt64) {
        byteLength = ByteCount(content.count)
        state = Lock(State(content: content, random: SeededGenerator(seed: seed)))
        thread.withLock { $0 = PlainThread { self.serve() }! }
    }

    var content: [UInt8] { state.withLock { $0.content } }
    var submittedCount: Int { state.withLock { $0.submitted } }
    /// Whether somebody is in `submit`.
    var isSubmitting: Bool { state.withLock { $0.isSubmitting } }
    var waitingCount: Int { state.withLock { $0.waiting.count } }

    /// While held, requests wait.
    func setHeld(_ isHeld: Bool) {
        state.withLock { state in
            state.isHeld = isHeld
            state.heldRequest = nil
        }
        state.wake()
    }

    /// Holds requests from one on, counted from 1, and lets go what is held now.
    func hold(from request: Int) {
        state.withLock { state in
            state.isHeld = state.submitted >= request
            state.heldRequest = request
        }
        state.wake()
    }

    /// How long `submit` takes.
    func setSubmitMicroseconds(_ microseconds: UInt32) { state.withLock { $0.submitMicroseconds = microseconds } }

    /// What is carried out from now on fails.
    func setFails(_ fails: Bool) { state.withLock { $0.fails = fails } }

    /// Waits until nothing is waiting.
    func drain() { state.waitFor { $0.waiting.isEmpty && !$0.isBusy ? () : nil } }

    func close() {
        state.withLock { state in
            state.isClosed = true
            state.isHeld = false
        }
        state.wake()
        thread.withLock { $0 }?.join()
    }

    func submit(
        _ operation: DMAOperation, at offset: ByteCount, _ buffer: DMABuffer?,
        completion: @escaping @Sendable (Result<Void, EngineError>) -> Void
    ) {
        let range = offset.int..<offset.int + (buffer?.byteCount.int ?? 0)
        let delay = state.withLock { state in
            state.isSubmitting = true
            return state.submitMicroseconds
        }
        if delay > 0 { usleep(delay) }
        state.withLock { state in
            state.isSubmitting = false
            state.submitted += 1
            if state.submitted == state.heldRequest { state.isHeld = true }
            state.waiting.append(Request(operation: operation, range: range, buffer: buffer, completion: completion))
        }
        state.wake()
    }

    private func serve() {
        while true {
            // Empty when the disk has been closed.
            let next: [Request] = state.waitFor { state in
                if state.waiting.isEmpty || state.isHeld { return state.isClosed ? [] : nil }
                state.isBusy = true
                return [state.takeOne()]
            }
            guard let request = next.first else { return }
            let fails = state.withLock { state in
                if !state.fails { state.carryOut(request) }
                return state.fails
            }
            request.completion(fails ? .failure(EngineError(.ioFailed, "the test wants it so")) : .success(()))
            let pause = state.withLock { state in
                state.isBusy = false
                return state.random.below(300)
            }
            state.wake()
            // Requests pile up now and then.
            usleep(UInt32(pause))
        }
    }
}

extension TestDisk.State {
    /// One of the requests that no earlier one overlaps.
    fileprivate mutating func takeOne() -> TestDisk.Request {
        let ready = waiting.indices.filter { index in
            let later = waiting[index]
            return waiting[..<index].allSatisfy { earlier in
                !earlier.range.overlaps(later.range) || (earlier.operation == .read && later.operation == .read)
            }
        }
        return waiting.remove(at: ready[random.below(ready.count)])
    }

    fileprivate mutating func carryOut(_ request: TestDisk.Request) {
        guard let buffer = request.buffer else { return }
        if request.operation == .read {
            unsafe buffer.bytes.copyBytes(from: content[request.range])
        } else {
            unsafe content.replaceSubrange(request.range, with: buffer.bytes)
        }
    }
}
