// Room that only a checkpoint makes: the log of old pages, the kept buffers.
//
// Invariants:
// - Whoever finds no room waits until a stop of the guest has begun, not until the checkpoint is taken: a processor that waits inside a store
//   can't be stopped, and a checkpoint that waits for it would never come. It then uses a little more than there is, and stops.
// - Nobody waits while a stop is on, nor after the guest has been closed or forced checkpoints have failed.

import Threading

/// Asks for checkpoints and keeps those waiting who need them. Thread-safe.
final class CheckpointPressure: Sendable {
    private struct State {
        var isDemanded = false
        var isStopping = false
        /// Nobody answers demands any more.
        var isOver = false
    }
    private let state = Lock(State())

    /// Asks for a checkpoint.
    func demand() {
        state.withLock { if !$0.isStopping { $0.isDemanded = true } }
        state.wake()
    }

    /// Asks for a checkpoint and waits until the guest is being stopped.
    func demandAndWait() {
        demand()
        state.waitFor { $0.isStopping || $0.isOver || !$0.isDemanded ? () : nil }
    }

    /// A stop begins: whoever waits goes on.
    func beginStop() {
        state.withLock { $0.isStopping = true }
        state.wake()
    }

    /// The stop is over. Whoever still finds no room asks again.
    func endStop() {
        state.withLock { state in
            state.isStopping = false
            state.isDemanded = false
        }
        state.wake()
    }

    /// Why somebody who takes checkpoints is called.
    enum Call { case demand, interval, end }

    /// Waits for a demand, for the end, or at most for `milliseconds`; nil: no limit.
    func nextCall(milliseconds: Int?) -> Call {
        func look(_ state: inout State) -> Call? { state.isOver ? .end : state.isDemanded && !state.isStopping ? .demand : nil }
        guard let milliseconds else { return state.waitFor(look) }
        return state.waitFor(milliseconds: milliseconds, look) ?? .interval
    }

    /// From here on nobody waits.
    func end() {
        state.withLock { $0.isOver = true }
        state.wake()
    }
}
