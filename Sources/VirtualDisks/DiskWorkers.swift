// Threads for what blocks: files that are read and written, overlays.
//
// Invariant: jobs start in the order they came; none waits for another that has not started.

import CheckpointCore
import Threading

/// Runs jobs that may block. Thread-safe.
public protocol DiskWorkers: Sendable {
    /// Runs `job` soon, on some thread; returns at once.
    func run(_ job: @escaping @Sendable () -> Void)
}

/// Threads of its own. Closed by its owner when nobody uses it any more.
public final class WorkerThreads: DiskWorkers {
    private struct State {
        var jobs: [@Sendable () -> Void] = []
        var first = 0
        var isClosed = false
        var threads: [PlainThread] = []

        /// The oldest job. Those that are gone are dropped from the array now and then: O(1) on average.
        mutating func next() -> (@Sendable () -> Void)? {
            guard first < jobs.count else { return nil }
            defer {
                first += 1
                if first >= 64, first * 2 >= jobs.count {
                    jobs.removeFirst(first)
                    first = 0
                }
            }
            return jobs[first]
        }
    }

    private let state = Lock(State())

    /// Starts the threads.
    /// - Throws: `.noMemory`.
    public init(count: Int) throws(EngineError) {
        precondition(count >= 1, "somebody has to work")
        for _ in 0..<count {
            guard let thread = PlainThread({ [state] in Self.work(state) }) else {
                close()
                throw EngineError(.noMemory, "can't start a thread for disk requests")
            }
            state.withLock { $0.threads.append(thread) }
        }
    }

    deinit { precondition(state.withLock { $0.threads.isEmpty }, "worker threads are closed by their owner") }

    public func run(_ job: @escaping @Sendable () -> Void) {
        state.withLock { state in
            precondition(!state.isClosed, "used after close")
            state.jobs.append(job)
        }
        state.wake()
    }

    /// Finishes all jobs and ends the threads. Not to be called by a job. Harmless when that was done before.
    public func close() {
        let threads = state.withLock { state in
            state.isClosed = true
            defer { state.threads = [] }
            return state.threads
        }
        state.wake()
        for thread in threads { thread.join() }
    }

    private static func work(_ state: Lock<State>) {
        while true {
            let job: (@Sendable () -> Void)? = state.waitFor { state in
                if let job = state.next() { return .some(job) }
                return state.isClosed ? .some(nil) : nil
            }
            guard let job else { return }
            job()
        }
    }
}
