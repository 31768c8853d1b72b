// Compaction that goes on beside other work until it is stopped.
//
// Invariants:
// - It has one thread, which ends with `stop`; a store must not be closed before.
// - What has been committed when it is stopped stays; the batch under way is dropped.

import StoreFormat
import Threading
import Units

/// Compacts a store again and again, with pauses. Thread-safe.
public final class BackgroundCompaction: Sendable {
    private struct State {
        var isStopping = false
        var last: Result<CompactionReport, StoreError>?
        var thread: PlainThread?
    }
    private let store: CheckpointStore
    private let options: CompactionOptions
    private let pauseMilliseconds: Int
    private let didCompact: (@Sendable (Result<CompactionReport, StoreError>) -> Void)?
    private let state = Lock(State())

    /// Starts at once.
    ///
    /// - Parameters:
    ///   - options: as for `compact`; a dry run makes no sense here.
    ///   - pauseMilliseconds: from the end of one compaction to the start of the next.
    ///   - didCompact: called after each, by the thread that compacts.
    /// - Throws: `.readOnly`; `.busy` when the system has no thread to give.
    public init(
        _ store: CheckpointStore, _ options: CompactionOptions = CompactionOptions(), pauseMilliseconds: Int = 60_000,
        didCompact: (@Sendable (Result<CompactionReport, StoreError>) -> Void)? = nil
    ) throws(StoreError) {
        precondition(!options.isDryRun, "a dry run changes nothing, however often it is repeated")
        precondition(pauseMilliseconds >= 0)
        self.store = store
        self.pauseMilliseconds = pauseMilliseconds
        self.didCompact = didCompact
        var options = options
        let (isCancelled, state) = (options.isCancelled, state)
        options.isCancelled = { state.withLock { $0.isStopping } || (isCancelled?() ?? false) }
        self.options = options
        try store.checkUsable(forWriting: true)
        guard let thread = PlainThread({ [self] in run() }) else {
            throw StoreError(.busy, "the system has no thread for compaction", remedy: "End other programs.", medium: store.medium.name)
        }
        state.withLock { $0.thread = thread }
    }

    /// Ends it and waits for its thread. Returns what the last compaction came to; nil when none has ended. Harmless when done twice.
    @discardableResult
    public func stop() -> Result<CompactionReport, StoreError>? {
        let thread = state.withLock { state in
            state.isStopping = true
            defer { state.thread = nil }
            return state.thread
        }
        state.wake()
        thread?.join()
        return state.withLock { $0.last }
    }

    private func run() {
        while !state.withLock({ $0.isStopping }) {
            let result: Result<CompactionReport, StoreError>
            do throws(StoreError) { result = .success(try store.compact(options)) } catch { result = .failure(error) }
            state.withLock { $0.last = result }
            didCompact?(result)
            // A store that has failed refuses everything from now on.
            if case .failure(let error) = result, error.code == .storeFailed { return }
            _ = state.waitFor(milliseconds: pauseMilliseconds) { $0.isStopping ? () : nil }
        }
    }
}
