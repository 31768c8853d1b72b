// Work done by several threads whose results come in the order in which it was handed in.
//
// Invariants:
// - Results are delivered one at a time, in order, by whichever thread finds the next one ready.
// - At most `capacity` pieces are under way: whoever hands in more waits.
// - After the first error nothing is delivered any more, and every call throws it.

import CheckpointStore
import Threading

/// A pipeline of one step. `submit`, `drain` and `end` are called by one thread.
final class OrderedWork<Input: Sendable, Output: Sendable>: Sendable {
    private struct State {
        var inputs: [(number: Int, input: Input)] = []
        var outputs: [Int: Output] = [:]
        var submitted = 0
        var delivered = 0
        var isDelivering = false
        var isEnding = false
        var failure: StoreError?
    }
    private let state = Lock(State())
    private let capacity: Int
    private let transform: @Sendable (Input) throws(StoreError) -> Output
    private let deliver: @Sendable (Output) throws(StoreError) -> Void
    private let threads: Lock<[PlainThread]>

    /// - Parameter workers: 1: everything is done by the thread that hands it in.
    init(
        workers: Int, transform: @escaping @Sendable (Input) throws(StoreError) -> Output,
        deliver: @escaping @Sendable (Output) throws(StoreError) -> Void
    ) {
        capacity = workers * 3
        self.transform = transform
        self.deliver = deliver
        threads = Lock([])
        guard workers > 1 else { return }
        let started = (0..<workers).compactMap { _ in PlainThread { [self] in run() } }
        threads.withLock { $0 = started }
    }

    /// Hands in the next piece.
    func submit(_ input: Input) throws(StoreError) {
        guard threads.withLock({ !$0.isEmpty }) else {
            if let failure = state.withLock({ $0.failure }) { throw failure }
            do throws(StoreError) { try deliver(try transform(input)) } catch {
                state.withLock { $0.failure = error }
                throw error
            }
            return
        }
        try state.waitFor { (state) throws(StoreError) -> Void? in
            if let failure = state.failure { throw failure }
            guard state.submitted - state.delivered < capacity else { return nil }
            state.inputs.append((state.submitted, input))
            state.submitted += 1
            return ()
        }
        state.wake()
    }

    /// Waits until everything that was handed in has been delivered.
    func drain() throws(StoreError) {
        try state.waitFor { (state) throws(StoreError) -> Void? in
            if let failure = state.failure { throw failure }
            return state.submitted == state.delivered ? () : nil
        }
    }

    /// Ends the threads. What has not been delivered is dropped.
    func end() {
        state.withLock { $0.isEnding = true }
        state.wake()
        let started = threads.withLock { threads in
            defer { threads = [] }
            return threads
        }
        for thread in started { thread.join() }
    }

    private func run() {
        while true {
            let next: (number: Int, input: Input)?? = state.waitFor { state in
                if state.isEnding || state.failure != nil { return .some(nil) }
                return state.inputs.isEmpty ? nil : .some(state.inputs.removeFirst())
            }
            guard let job = next.flatMap({ $0 }) else { return }
            do throws(StoreError) {
                let output = try transform(job.input)
                state.withLock { $0.outputs[job.number] = output }
                try deliverReady()
            } catch {
                state.withLock { $0.failure = $0.failure ?? error }
            }
            state.wake()
        }
    }

    /// Delivers what is next, for as long as that is ready; one thread at a time does.
    private func deliverReady() throws(StoreError) {
        while true {
            let ready: Output? = state.withLock { state in
                guard !state.isDelivering, !state.isEnding, state.failure == nil else { return nil }
                guard let output = state.outputs.removeValue(forKey: state.delivered) else { return nil }
                state.isDelivering = true
                return output
            }
            guard let ready else { return }
            // An error leaves `isDelivering` set: nothing may follow on it.
            try deliver(ready)
            state.withLock { state in
                state.isDelivering = false
                state.delivered += 1
            }
            state.wake()
        }
    }
}
