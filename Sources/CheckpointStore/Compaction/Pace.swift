// How fast compaction goes, how far it is, and whether it has been told to end.

import StoreFormat
import Threading
import Units

/// What the movers of one compaction share. Thread-safe.
final class Pace: Sendable {
    private struct State {
        var progress: CompactionProgress
        /// Bytes counted towards the rate, and since when.
        var pacedBytes: UInt64 = 0
        var startMicroseconds: UInt64
    }
    private let options: CompactionOptions
    private let medium: String
    private let state: Lock<State>
    /// How long a mover sleeps before it asks again whether it has been told to end.
    private static let napMilliseconds = 50

    init(_ options: CompactionOptions, medium: String) {
        self.options = options
        self.medium = medium
        state = Lock(
            State(
                progress: CompactionProgress(movedBytes: .zero, plannedBytes: .zero, freedSegments: 0),
                startMicroseconds: options.bytesPerSecond == nil ? 0 : monotonicMicroseconds()))
    }

    var isCancelled: Bool { options.isCancelled?() ?? false }

    /// - Throws: `.cancelled`.
    func checkNotCancelled() throws(StoreError) {
        if isCancelled { throw StoreError(.cancelled, "compaction was cancelled", medium: medium) }
    }

    func plan(_ bytes: ByteCount) { state.withLock { $0.progress.plannedBytes = $0.progress.movedBytes + bytes } }

    func didFree(_ segments: Int) {
        let progress = state.withLock { state in
            state.progress.freedSegments += segments
            return state.progress
        }
        options.progress?(progress)
    }

    /// Counts what was moved, and waits while that is ahead of the rate.
    ///
    /// - Throws: `.cancelled` when it is told to end meanwhile.
    func didMove(_ bytes: ByteCount) throws(StoreError) {
        let progress = state.withLock { state in
            state.progress.movedBytes += bytes
            state.pacedBytes += bytes.rawValue
            return state.progress
        }
        options.progress?(progress)
        guard let rate = options.bytesPerSecond else { return }
        while true {
            let isAhead = state.withLock { state in
                let seconds = Double(monotonicMicroseconds() - state.startMicroseconds) / 1_000_000
                return Double(state.pacedBytes) > seconds * Double(rate.rawValue)
            }
            guard isAhead else { return }
            try checkNotCancelled()
            _ = state.waitFor(milliseconds: Self.napMilliseconds) { _ -> Void? in nil }
        }
    }
}
