// A thread that decodes what reads in order are going to ask for.
//
// Invariant: it holds up nobody: what it has no time for is dropped, and read when it is asked for.

import Threading
import Units

/// The thread, and what it has to do. Thread-safe.
final class ReadAhead: Sendable {
    private struct State {
        var waiting: [(file: OpenRegion, span: SpanIndex)] = []
        var isEnding = false
    }
    private let state = Lock(State())
    private static let mostWaiting = 8

    /// Has a span of a file prepared, soon.
    func prepare(_ span: SpanIndex, of file: OpenRegion) {
        state.withLock { state in
            if state.waiting.count < Self.mostWaiting { state.waiting.append((file, span)) }
        }
        state.wake()
    }

    /// Works until `end` is called.
    func run() {
        while let next = state.waitFor({ state -> (file: OpenRegion, span: SpanIndex)?? in
            if state.isEnding { return .some(nil) }
            return state.waiting.isEmpty ? nil : .some(state.waiting.removeFirst())
        }) {
            next.file.prepare(next.span)
        }
    }

    /// Lets `run` return.
    func end() {
        state.withLock { state in
            state.isEnding = true
            state.waiting = []
        }
        state.wake()
    }
}
