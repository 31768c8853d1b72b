// Checkpoints for programs: registered memory of one's own process, taken at one instant while it is being written.
//
// Invariants:
// - What a checkpoint holds is what the memory held while `instant` was called, of all regions at the same moment.
// - A checkpoint that fails leaves the program running, nothing in the store, and everything that it would have saved to the next one.
// - Nothing is protected and no thread is left when it has been closed.

import CheckpointCore
import Glibc
import MachineMemory
import StoreFormat
import Threading
import Units

/// Takes checkpoints of memory of this process, beginning with a full one; later ones save what was written since.
///
/// One checkpoint at a time: calls from several threads queue up. Must be closed.
public final class MemoryCheckpointer: Sendable {
    /// How checkpoints are taken.
    public struct Options: Sendable {
        public var method = InstantMethod.adaptive
        /// For memory that is copied on write.
        public var copyOnWrite = CopyOnWriteMemory.Options()
        /// Threads that save.
        public var workers = availableCores()

        public init() {}
    }

    /// One instant: stop your writers, call it, let them go on. It takes microseconds to milliseconds and must be called exactly once.
    public typealias Instant = () -> Void

    private struct State {
        var regions: [any InstantMemory] = []
        /// The checkpoint that the next one builds on.
        var parent: String?
        /// Regions that the parent has.
        var saved: Set<String> = []
        var isBusy = false
        var isClosed = false
    }

    private let store: any CheckpointDataStore
    private let options: Options
    private let state = Lock(State())

    /// Nothing happens to any memory before it is registered.
    public init(_ store: any CheckpointDataStore, options: Options = Options()) {
        self.store = store
        self.options = options
    }

    deinit { close() }

    /// Registers memory: from the next checkpoint on it is part of them, under its name. It must stay mapped until `close`.
    ///
    /// - Throws: `.permission` (says which sysctl or capability is missing), `.unsupported` (memory or kernel), `.busy` (somebody else watches
    ///   the memory), `.invalidInput` when the name is taken.
    public func register(_ memory: GuestMemory) throws(EngineError) {
        let instant: any InstantMemory =
            switch options.method {
            case .copyOnWrite: try CopyOnWriteMemory(memory, options: options.copyOnWrite)
            case .copyAhead: try CopyAheadMemory(memory)
            case .adaptive: try AdaptiveMemory(memory, options: options.copyOnWrite)
            }
        let isTaken = state.waitFor { state -> Bool? in
            precondition(!state.isClosed, "memory is registered before the checkpointer is closed")
            guard !state.isBusy else { return nil }
            if state.regions.contains(where: { $0.memory.name == memory.name }) { return true }
            state.regions.append(instant)
            return false
        }
        guard isTaken else { return }
        instant.close()
        throw EngineError(.invalidInput, "memory of this name is registered already", remedy: "Give each piece of memory a name of its own.", place: memory.name)
    }

    /// Registers memory that the program has mapped: whole pages, from `mmap` or `posix_memalign`. See `register(_:)`.
    public func register(_ name: String, _ bytes: UnsafeMutableRawBufferPointer) throws(EngineError) {
        try register(try unsafe GuestMemory(name, adopting: bytes))
    }

    /// Takes a checkpoint; it is durable when this returns. The program goes on all the time but for `instant`.
    ///
    /// - Parameters:
    ///   - parent: what to build on when this is the first checkpoint of this object: an older one of the same regions, for instance of the
    ///     process before this one. Later checkpoints build on the one before.
    ///   - isFull: saves all of the memory, whatever was written; equal pages of the parent are still stored once.
    ///   - stopping: stops the writers, calls the instant, lets them go on. Without it the caller vouches that nobody writes, or that
    ///     it does not matter where a write falls.
    ///   - state: called at the instant, for what belongs to it besides the memory: kept as region "state".
    ///   - progress: pages saved so far, and all of them.
    /// - Throws: `.store` and what the store throws; `.ioFailed`. The next checkpoint then has everything that this one had.
    @discardableResult
    public func checkpoint(
        _ name: String, parent: String? = nil, isFull: Bool = false, stopping: (Instant) -> Void = { $0() },
        state capture: (() -> [UInt8])? = nil, progress: @escaping @Sendable (PageCount, PageCount) -> Void = { _, _ in }
    ) throws(EngineError) -> MemoryCheckpointReport {
        let (regions, last, saved) = begin()
        defer {
            state.withLock { $0.isBusy = false }
            state.wake()
        }
        let base = last ?? parent
        do throws(EngineError) {
            var attempt = Attempt(regions: regions, name: name, saved: saved, options: options)
            var report = try attempt.take(
                into: try store.begin(name, parent: base), hasParent: base != nil, isFull: isFull || last == nil, capture: capture, progress: progress,
                stopping: stopping)
            report.unfinished = finish(regions, name)
            report.regions = Dictionary(uniqueKeysWithValues: regions.map { ($0.memory.name, $0.report) })
            return report
        } catch {
            for region in regions { region.cancel() }
            throw error
        }
    }

    /// The checkpoint is durable: the next one builds on it. A region that can't be got ready for that is saved in full then.
    private func finish(_ regions: [any InstantMemory], _ name: String) -> [EngineError] {
        var unfinished: [EngineError] = []
        var saved: Set<String> = []
        for region in regions {
            do throws(EngineError) {
                try region.finish()
                saved.insert(region.memory.name)
            } catch {
                region.cancel()
                unfinished.append(error)
            }
        }
        let names = saved
        state.withLock { state in
            state.parent = name
            state.saved = names
        }
        return unfinished
    }

    private func begin() -> (regions: [any InstantMemory], parent: String?, saved: Set<String>) {
        state.waitFor { state in
            precondition(!state.isClosed, "a checkpointer that was closed takes no checkpoints")
            guard !state.isBusy else { return nil }
            state.isBusy = true
            return (state.regions, state.parent, state.saved)
        }
    }

    /// Forgets what the last checkpoint was: the next one is a full one again. For when that one has been deleted.
    public func forgetParent() {
        state.waitFor { state -> Void? in
            guard !state.isBusy else { return nil }
            state.parent = nil
            return ()
        }
    }

    /// Waits for the checkpoint under way, then ends all protection. Harmless to repeat.
    public func close() {
        let regions = state.waitFor { state -> [any InstantMemory]? in
            guard !state.isBusy else { return nil }
            state.isClosed = true
            defer { state.regions = [] }
            return state.regions
        }
        for region in regions { region.close() }
    }
}

/// What a checkpoint of a program's memory came to.
public struct MemoryCheckpointReport: Sendable {
    /// What the store says.
    public var receipt: CheckpointReceipt
    /// How long the instant took: the writers' stop, less what the program itself needs to stop and start them.
    public var stopMicroseconds: UInt64
    /// From the call to the end of the commit.
    public var totalMicroseconds: UInt64
    /// What each region came to, by its name.
    public var regions: [String: InstantReport]
    /// What could not be got ready for the next checkpoint: its memory is saved in full then. This checkpoint is complete all the same.
    public var unfinished: [EngineError]
}

/// One checkpoint on its way.
private struct Attempt {
    let regions: [any InstantMemory]
    let name: String
    let saved: Set<String>
    let options: MemoryCheckpointer.Options

    mutating func take(
        into sink: any CheckpointSink, hasParent: Bool, isFull: Bool, capture: (() -> [UInt8])?,
        progress: @escaping @Sendable (PageCount, PageCount) -> Void, stopping: (MemoryCheckpointer.Instant) -> Void
    ) throws(EngineError) -> MemoryCheckpointReport {
        let start = monotonicMicroseconds()
        var isCommitted = false
        defer { if !isCommitted { sink.abort() } }
        var targets: [any RegionSink] = []
        for region in regions {
            let target = try sink.addRegion(region.memory.name, kind: .memory, byteLength: region.memory.byteLength)
            targets.append(target)
            // A region that is new to the store has to be full, whatever the others are.
            try region.prepare(
                isFull: isFull || !saved.contains(region.memory.name), into: target, hasParent: hasParent, workers: options.workers)
        }
        let (stop, blob) = try stopAndMark(capture, stopping)
        if let blob { try sink.putBlob("state", blob) }
        for (region, target) in zip(regions, targets) {
            try region.save(into: target, hasParent: hasParent, workers: options.workers, progress: progress)
        }
        let receipt = try sink.commit()
        isCommitted = true
        return MemoryCheckpointReport(
            receipt: receipt, stopMicroseconds: stop, totalMicroseconds: monotonicMicroseconds() - start,
            regions: [:], unfinished: [])
    }

    /// The instant, of all regions.
    private func stopAndMark(
        _ capture: (() -> [UInt8])?, _ stopping: (MemoryCheckpointer.Instant) -> Void
    ) throws(EngineError) -> (stopMicroseconds: UInt64, state: [UInt8]?) {
        var calls = 0
        var failure: EngineError?
        var blob: [UInt8]?
        var stop: UInt64 = 0
        stopping {
            calls += 1
            let start = monotonicMicroseconds()
            do throws(EngineError) {
                for region in regions { try region.mark(pending: PageRanges()) }
                blob = capture?()
            } catch { failure = error }
            stop = monotonicMicroseconds() - start
        }
        precondition(calls == 1, "the instant is called exactly once")
        if let failure { throw failure }
        return (stop, blob)
    }
}
