// An image whose requests wait until the test completes them, in any order it likes: this is how interleavings are explored.
//
// Invariant: a request has its effect exactly once, when the test says so, and before it completes.

import CheckpointCore
import Threading
import Units
import VirtualDisks

final class ManualBackend: DiskBackend {
    /// When requests have their effect.
    enum Mode {
        /// As soon as they are issued; they complete later.
        case effectAtIssue
        /// When they complete.
        case effectAtCompletion
        /// They complete before the call that issues them returns.
        case immediate
    }

    struct Held {
        var number: Int
        var operation: DiskOperation
        var offset: DiskOffset
        var bytes: TransferBytes?
        var completion: DiskCompletion
        var hasHadEffect = false
    }

    struct State {
        var content: [UInt8]
        var mode: Mode
        var held: [Held] = []
        var count = 0
        var flushCount = 0
        /// What each of the coming requests fails with, by number; it has no effect then.
        var failures: [Int: EngineError] = [:]
    }

    let name = "image"
    let byteLength: ByteCount
    let state: Lock<State>

    init(_ content: [UInt8], _ mode: Mode = .immediate) {
        byteLength = ByteCount(content.count)
        state = Lock(State(content: content, mode: mode))
    }

    var content: [UInt8] { state.withLock { $0.content } }
    /// The numbers of what waits, in issue order.
    var held: [Int] { state.withLock { $0.held.map(\.number) } }
    /// Of these, the ones that have had no effect yet.
    var heldWithoutEffect: [Int] { state.withLock { $0.held.filter { !$0.hasHadEffect }.map(\.number) } }
    func setMode(_ mode: Mode) { state.withLock { $0.mode = mode } }
    /// The next requests fail: the first of them is number 0.
    func failNext(_ number: Int = 0, _ error: EngineError) { state.withLock { $0.failures[$0.count + number] = error } }

    func read(at offset: DiskOffset, into bytes: TransferBytes, _ completion: @escaping DiskCompletion) {
        issue(.read, offset, bytes, completion)
    }
    func write(at offset: DiskOffset, from bytes: TransferBytes, _ completion: @escaping DiskCompletion) {
        issue(.write, offset, bytes, completion)
    }
    func flush(_ completion: @escaping DiskCompletion) { issue(.flush, .zero, nil, completion) }

    private func issue(_ operation: DiskOperation, _ offset: DiskOffset, _ bytes: TransferBytes?, _ completion: @escaping DiskCompletion) {
        let number: Int? = state.withLock { state in
            let held = Held(number: state.count, operation: operation, offset: offset, bytes: bytes, completion: completion)
            state.count += 1
            state.held.append(held)
            if state.mode == .effectAtIssue { state.haveEffect(state.held.count - 1) }
            return state.mode == .immediate ? held.number : nil
        }
        if let number { complete(number) }
    }

    /// Lets a request have its effect now, and complete later.
    func haveEffect(_ number: Int) {
        state.withLock { state in state.haveEffect(state.held.firstIndex { $0.number == number }!) }
    }

    /// Completes a request.
    func complete(_ number: Int) {
        let (held, failure) = state.withLock { state in
            let index = state.held.firstIndex { $0.number == number }!
            state.haveEffect(index)
            return (state.held.remove(at: index), state.failures[number])
        }
        held.completion(failure.map { .failure($0) } ?? .success(()))
    }
}

extension ManualBackend.State {
    mutating func haveEffect(_ index: Int) {
        guard !held[index].hasHadEffect, failures[held[index].number] == nil else { return }
        held[index].hasHadEffect = true
        let start = held[index].offset.int
        switch held[index].operation {
        case .flush: flushCount += 1
        case .read:
            let bytes = unsafe held[index].bytes!.bytes
            unsafe content[start..<start + bytes.count].withUnsafeBytes { unsafe bytes.copyMemory(from: $0) }
        case .write:
            let bytes = unsafe held[index].bytes!.bytes
            unsafe content.withUnsafeMutableBytes {
                unsafe UnsafeMutableRawBufferPointer(rebasing: $0[start..<start + bytes.count]).copyMemory(from: UnsafeRawBufferPointer(bytes))
            }
        }
    }
}

/// Jobs that wait until the test runs them, or run at once.
final class ManualWorkers: DiskWorkers {
    private let state: Lock<(jobs: [@Sendable () -> Void], isImmediate: Bool)>

    init(isImmediate: Bool) { state = Lock(([], isImmediate)) }

    var jobCount: Int { state.withLock { $0.jobs.count } }

    func run(_ job: @escaping @Sendable () -> Void) {
        let isImmediate = state.withLock { state in
            if !state.isImmediate { state.jobs.append(job) }
            return state.isImmediate
        }
        if isImmediate { job() }
    }

    func runJob(_ index: Int) { state.withLock { $0.jobs.remove(at: index) }() }

    func setImmediate() { state.withLock { $0.isImmediate = true } }
}
