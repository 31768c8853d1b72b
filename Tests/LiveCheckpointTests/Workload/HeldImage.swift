// A disk's image whose requests wait until the test completes them, in any order, or lets them fail.
//
// Invariants:
// - A request has its effect once, and before it completes.
// - Requests of the checkpointer itself (copying the image, merging overlays) complete at once: nobody else could go on meanwhile.

import CheckpointCore
import Threading
import Units
import VirtualDisks

final class HeldImage: DiskBackend {
    /// When a held request reads or writes.
    enum Effect: Sendable { case atIssue, atCompletion }

    struct Held: Sendable {
        var number: Int
        var operation: DiskOperation
        var offset: DiskOffset
        var bytes: TransferBytes?
        var completion: DiskCompletion
        var isDone = false
    }

    struct State {
        var content: [UInt8]
        var effect = Effect.atCompletion
        var held: [Held] = []
        var count = 0
        var holds = true
        /// Asked about each request as it is issued; what it answers is the request's outcome, and it has no effect.
        var fault: (@Sendable (DiskOperation, DiskOffset) -> EngineError?)?
        /// Called for each request that is not held, before its effect, on the thread that makes it.
        var beforePassing: (@Sendable () -> Void)?
    }

    let name = "image"
    let byteLength: ByteCount
    let state: Lock<State>

    init(_ content: [UInt8]) {
        byteLength = ByteCount(content.count)
        state = Lock(State(content: content))
    }

    var content: [UInt8] { state.withLock { $0.content } }
    /// The numbers of what waits, in the order in which it was issued.
    var held: [Int] { state.withLock { $0.held.map(\.number) } }

    func read(at offset: DiskOffset, into bytes: TransferBytes, _ completion: @escaping DiskCompletion) { issue(.read, offset, bytes, completion) }
    func write(at offset: DiskOffset, from bytes: TransferBytes, _ completion: @escaping DiskCompletion) { issue(.write, offset, bytes, completion) }
    func flush(_ completion: @escaping DiskCompletion) { issue(.flush, .zero, nil, completion) }

    private func issue(_ operation: DiskOperation, _ offset: DiskOffset, _ bytes: TransferBytes?, _ completion: @escaping DiskCompletion) {
        let (fault, hook) = state.withLock { ($0.fault, $0.holds ? nil : $0.beforePassing) }
        if let error = fault?(operation, offset) { return completion(.failure(error)) }
        hook?()
        let passes = state.withLock { state -> Bool in
            var held = Held(number: state.count, operation: operation, offset: offset, bytes: bytes, completion: completion)
            state.count += 1
            if !state.holds || state.effect == .atIssue { held.haveEffect(&state.content) }
            if state.holds { state.held.append(held) }
            return !state.holds
        }
        state.wake()
        if passes { completion(.success(())) }
    }

    /// Completes a request that waits.
    func complete(_ number: Int) {
        let held = state.withLock { state in
            var held = state.held.remove(at: state.held.firstIndex { $0.number == number }!)
            held.haveEffect(&state.content)
            return held
        }
        held.completion(.success(()))
    }

    /// Completes everything that waits, also what comes to wait meanwhile.
    func completeAll() { while let first = held.first { complete(first) } }
}

extension HeldImage.Held {
    mutating func haveEffect(_ content: inout [UInt8]) {
        guard !isDone, let bytes else { return }
        isDone = true
        let start = offset.int
        if operation == .read {
            unsafe content.withUnsafeBytes { unsafe bytes.bytes.copyMemory(from: UnsafeRawBufferPointer(rebasing: $0[start..<start + bytes.bytes.count])) }
        } else {
            unsafe content.withUnsafeMutableBytes {
                unsafe UnsafeMutableRawBufferPointer(rebasing: $0[start..<start + bytes.bytes.count]).copyMemory(from: UnsafeRawBufferPointer(bytes.bytes))
            }
        }
    }
}

/// Overlays' reading and writing, which waits until the test does it, in any order; or done at once, on the thread that has it.
final class HeldJobs: DiskWorkers {
    private let state = Lock<(jobs: [@Sendable () -> Void], holds: Bool)>(([], false))

    var count: Int { state.withLock { $0.jobs.count } }
    func setHolds(_ holds: Bool) { state.withLock { $0.holds = holds } }

    func run(_ job: @escaping @Sendable () -> Void) {
        let holds = state.withLock { state in
            if state.holds { state.jobs.append(job) }
            return state.holds
        }
        if !holds { job() }
    }

    func runJob(_ index: Int) { state.withLock { $0.jobs.remove(at: index) }() }
}
