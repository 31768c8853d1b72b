// Victims whose blocks are copied together, for one commit.
//
// Invariants:
// - Copying needs no lock, so a batch can be copied while the one before it is being committed.
// - What it has written counts nothing, and its claims are held, until the batch is committed or dropped.
// - When copying has ended, well or not, nothing is being written any more: nobody who claims the same places afterwards is overwritten.
//   A write that failed is forgotten with the batch.

import StoreFormat
import Threading
import Units

/// Copies what lives in some victims. Begun, waited for and dropped by one thread; moving is spread over several.
final class CompactionBatch: Sendable {
    let victims: ArraySlice<Victim>
    /// Whether the batch before it had not been committed when this one was begun.
    let isAhead: Bool
    private let store: CheckpointStore
    private let blocks: [SegmentIndex: [LiveBlock]]
    private let id: CheckpointID
    private let parallelism: Int
    private let pace: Pace
    private let state: Lock<State>

    private struct State {
        var rest: ArraySlice<Victim>
        var movers: [BlockMover] = []
        var outcomes: [SegmentIndex: MoveOutcome] = [:]
        /// Set when everything is on the medium.
        var uses: [SegmentUse]?
        var failure: StoreError?
        var isDropped = false
        var thread: PlainThread?
    }

    /// - Parameter blocks: what lives in the victims, by segment.
    init(
        _ victims: ArraySlice<Victim>, _ blocks: [SegmentIndex: [LiveBlock]], isAhead: Bool, store: CheckpointStore, parallelism: Int,
        pace: Pace
    ) {
        self.victims = victims
        self.blocks = blocks
        self.isAhead = isAhead
        self.store = store
        self.parallelism = parallelism
        self.pace = pace
        id = store.environment.newID()
        state = Lock(State(rest: victims))
    }

    /// Begins to copy on other threads; `copy` waits for them. Does nothing where the system has no thread to give.
    func begin() {
        let thread = PlainThread { [self] in run() }
        state.withLock { $0.thread = thread }
    }

    /// Copies everything, or waits until that is done.
    ///
    /// - Returns: what was appended to each segment, all of it written, not flushed; and what came of each victim.
    /// - Throws: what copying throws.
    func copy() throws(StoreError) -> (uses: [SegmentUse], outcomes: [SegmentIndex: MoveOutcome]) {
        if let thread = takeThread() { thread.join() } else { run() }
        return try state.withLock { (state) throws(StoreError) in
            if let failure = state.failure { throw failure }
            guard let uses = state.uses else { preconditionFailure("copying ends with one or the other") }
            return (uses, state.outcomes)
        }
    }

    /// Gives the claims up. What was copied without a commit is free space again. Harmless when done twice.
    func drop() {
        state.withLock { $0.isDropped = true }
        takeThread()?.join()
        for mover in state.withLock({ state in
            defer { state.movers = [] }
            return state.movers
        }) {
            mover.abandon()
            store.release(mover.claims)
        }
    }

    private func takeThread() -> PlainThread? {
        state.withLock { state in
            defer { state.thread = nil }
            return state.thread
        }
    }

    private func run() {
        let queue = makeQueue()
        defer { queue.close() }
        do throws(StoreError) {
            try inParallel(workers: max(1, min(parallelism, victims.count))) { [self] _ throws(StoreError) in try move(to: queue) }
            var uses: [SegmentUse] = []
            for mover in state.withLock({ $0.movers }) { uses += try mover.finish() }
            try queue.drain()
            let finished = uses
            state.withLock { $0.uses = finished }
        } catch { state.withLock { $0.failure = error } }
    }

    private func makeQueue() -> WriteQueue {
        let isInline = parallelism == 1 || store.medium.traits.writesAreCopies
        return WriteQueue(
            medium: store.medium, threads: isInline ? 0 : parallelism, buffers: parallelism * 4 + 4,
            bufferBytes: SegmentAppender.bufferBytes(store.geometry))
    }

    /// Empties victims until none is left.
    private func move(to queue: WriteQueue) throws(StoreError) {
        let mover = BlockMover(store: store, id: id, queue: queue, pace: pace)
        state.withLock { $0.movers.append(mover) }
        while let victim = state.withLock({ $0.isDropped || $0.failure != nil ? nil : $0.rest.popFirst() }) {
            let outcome = try mover.move(blocks[victim.segment] ?? [])
            state.withLock { $0.outcomes[victim.segment] = outcome }
        }
    }
}
