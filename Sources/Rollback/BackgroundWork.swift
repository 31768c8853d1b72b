// Work that goes on while writers run: copying and draining after a commit.
//
// Invariant: the work is done by one thread at a time. When it fails, whoever waits for it tries again and gets the error.

import CheckpointCore
import Threading

/// A thread that does one piece of work whenever it is asked to. Thread-safe.
final class BackgroundWork: Sendable {
    private enum State {
        case idle, asked, atWork, failed, closed
    }

    private let state = Lock(State.idle)
    private let work: @Sendable () throws(EngineError) -> Void
    private let thread = Lock<PlainThread?>(nil)

    /// - Parameter work: must be able to go on where it has failed.
    init(_ work: @escaping @Sendable () throws(EngineError) -> Void) throws(EngineError) {
        self.work = work
        guard let thread = PlainThread({ [self] in run() }) else {
            throw EngineError(.noMemory, "can't start a thread that copies memory")
        }
        self.thread.withLock { $0 = thread }
    }

    /// Has the work done; no earlier work is left.
    func ask() {
        state.withLock { $0 = .asked }
        state.wake()
    }

    /// Waits until it is done, and does it here when the thread has failed. Throws what this second attempt throws.
    func finish() throws(EngineError) {
        let hasFailed = state.waitFor { state -> Bool? in
            switch state {
            case .idle, .closed: return false
            case .failed:
                state = .atWork
                return true
            case .asked, .atWork: return nil
            }
        }
        guard hasFailed else { return }
        try perform()
    }

    /// Ends the thread when its work is done.
    func close() {
        state.waitFor { state -> Void? in
            if state == .asked || state == .atWork { return nil }
            state = .closed
            return ()
        }
        state.wake()
        let thread = self.thread.withLock { thread in
            defer { thread = nil }
            return thread
        }
        thread?.join()
    }

    private func perform() throws(EngineError) {
        var end = State.failed
        defer {
            state.withLock { $0 = end }
            state.wake()
        }
        try work()
        end = .idle
    }

    private func run() {
        while true {
            let goesOn = state.waitFor { state -> Bool? in
                switch state {
                case .closed: return false
                case .asked:
                    state = .atWork
                    return true
                case .idle, .atWork, .failed: return nil
                }
            }
            guard goesOn else { return }
            // The error comes again from `finish`, to somebody who can do something about it.
            do throws(EngineError) { try perform() } catch { continue }
        }
    }
}
