// A store of checkpoints on a medium: the handle that everything starts from.
//
// Invariants:
// - The handle's view of the newest generation only moves forward.
// - Nothing is overwritten, freed, discarded or committed on the strength of a slot that this
//   handle has not itself flushed (`settled`).
// - After a failed flush the handle refuses everything (`storeFailed`).

import Media
import StoreFormat
import Threading
import Units

/// An open store of checkpoints.
///
/// Thread-safe. Any number of handles may be open at once, in any number of processes; each opens its
/// medium for itself. All calls block; don't make them on the cooperative thread pool.
public final class CheckpointStore: Sendable {
    /// What the store stands on. Owned by the handle: `close` closes it.
    public let medium: any Medium
    /// True when nothing can be written through this handle.
    public let isReadOnly: Bool
    /// The generation that was asked for when opening, or nil: the newest.
    let pinnedGeneration: Generation?
    let environment: StoreEnvironment
    let state: Lock<State>
    /// Held while this handle commits: locks of one handle don't exclude its own threads.
    let commitGate = Lock<Void>(())
    /// Held while this handle deletes, compacts or repairs; taken before `commitGate`.
    let reclaimGate = Lock<Void>(())
    /// What this handle has looked up of blocks that were moved.
    let forwardingMap = ForwardingMap()

    struct State {
        /// The newest slot seen.
        var newest: Slot
        /// The newest generation that a flush of this handle has covered.
        var settled = Generation(UInt64(0))
        /// How many users each registered generation has.
        var registrations: [Generation: Int] = [:]
        /// Segments that writers of this handle hold, and how many of them were free before.
        var claims: Set<SegmentIndex> = []
        var freshClaims = 0
        /// Segments that were left partly filled, by class: tried first by small checkpoints.
        var partlyFilled: [SegmentClass: [SegmentIndex]] = [:]
        /// Segments whose space on the medium has been reserved.
        var reserved: Range<UInt64> = 0..<0
        /// Where the search for free segments goes on.
        var cursor: SegmentIndex?
        /// Free segments that may still take space.
        var leftovers = Leftovers()
        /// Writers that have not ended: closing ends them.
        var writers: [CheckpointID: WeakWriter] = [:]
        var failure: StoreError?
        var isClosed = false
    }

    init(
        medium: any Medium, slot: Slot, isReadOnly: Bool, pinnedGeneration: Generation?, environment: StoreEnvironment
    ) {
        self.medium = medium
        self.isReadOnly = isReadOnly
        self.pinnedGeneration = pinnedGeneration
        self.environment = environment
        state = Lock(State(newest: slot))
    }

    deinit { close() }

    /// Ends the use of the store and closes its medium. Harmless when done twice. Snapshots, readers and writers of this handle
    /// must not be used afterwards; writers that have not committed leave nothing behind.
    public func close() {
        // Their threads must have let go of the medium before it is closed.
        for writer in state.withLock({ Array($0.writers.values) }) { writer.value?.abort() }
        let wasOpen = state.withLock { state in
            defer { state.isClosed = true }
            return !state.isClosed
        }
        if wasOpen { medium.close() }
    }

    /// The store's identity, constant for its life.
    public var uuid: StoreUUID { state.withLock { $0.newest.uuid } }

    /// Where things lie on the medium. The number of segments may grow.
    public var geometry: Geometry { state.withLock { $0.newest.geometry } }

    /// Throws what makes this handle unusable, if anything does.
    func checkUsable(forWriting: Bool) throws(StoreError) {
        let (failure, isClosed) = state.withLock { ($0.failure, $0.isClosed) }
        precondition(!isClosed, "the store has been closed")
        if let failure { throw failure }
        if forWriting {
            try checkWritable(state.withLock { $0.newest })
            if isReadOnly {
                throw StoreError(
                    .readOnly, "the store is open for reading only", remedy: "Open it for writing.", medium: medium.name)
            }
        }
    }

    /// Throws when `slot` has features that let this version read the store, but not write it.
    func checkWritable(_ slot: Slot) throws(StoreError) {
        guard Feature.requiresReadOnly(slot) else { return }
        if slot.incompat & Feature.draft != 0 {
            throw StoreError(
                .readOnly, "the store was made before version 1 of the format; it can be read, not written",
                remedy: "Create a new store, and bring its checkpoints there with `ckstore send` and `ckstore receive`.", medium: medium.name)
        }
        throw StoreError(
            .readOnly, "writing it needs features that this version does not know: \(Feature.unknownForWriting(slot).joined(separator: ", "))",
            remedy: "Use a newer ckstore to write it.", medium: medium.name)
    }

    /// Makes the handle refuse everything from now on, and returns the error that says so.
    func fail(_ error: StoreError) -> StoreError {
        let failure = StoreError(
            .storeFailed, "a flush or a superblock write failed (\(error.reason)); nothing may be assumed about the medium",
            remedy: "Check the device, reopen the store and run `ckstore verify`.", medium: medium.name, offset: error.offset)
        state.withLock { $0.failure = $0.failure ?? failure }
        return failure
    }

    /// A writer has ended.
    func forget(_ writer: CheckpointWriter) {
        let id = writer.id
        state.withLock { $0.writers[id] = nil }
    }

    // MARK: generations

    /// The newest generation on the medium, durable or not: good for reading only.
    func newestSlot() throws(StoreError) -> Slot {
        let known = state.withLock { $0.newest }
        if pinnedGeneration != nil { return known }
        guard let newer = try SlotRing.newer(than: known, on: medium) else { return known }
        try growWith(newer)
        return state.withLock { state in
            if newer.generation > state.newest.generation { state.newest = newer }
            return state.newest
        }
    }

    /// The newest generation, flushed by this handle: what writing may be based on.
    func settledSlot() throws(StoreError) -> Slot {
        while true {
            let slot = try newestSlot()
            if state.withLock({ $0.settled >= slot.generation }) { return slot }
            do { try onMedium { () throws(MediumError) in try medium.flush() } } catch { throw fail(error) }
            // Read again: its committer may have taken it back (poisoned it) meanwhile.
            if try rereadSlot(slot) == slot {
                state.withLock { $0.settled = max($0.settled, slot.generation) }
                return slot
            }
        }
    }

    /// What stands where `slot` was found.
    private func rereadSlot(_ slot: Slot) throws(StoreError) -> Slot {
        let ring = try SlotRing.read(medium, generation: nil)
        try growWith(ring.slot)
        state.withLock { state in
            if ring.slot.generation >= state.newest.generation { state.newest = ring.slot }
        }
        var found = ring.slot
        found.twin = slot.twin
        return found
    }

    /// Another handle may have enlarged the medium for `slot`.
    private func growWith(_ slot: Slot) throws(StoreError) {
        guard slot.geometry.requiredSize > medium.size else { return }
        _ = try onMedium { () throws(MediumError) in try medium.refreshSize() }
    }

    // MARK: registrations

    /// Registers a reader of the newest generation: nothing that it names is reused until `unregister`.
    func register() throws(StoreError) -> Slot {
        var slot = try newestSlot()
        while true {
            try addRegistration(slot.generation)
            let again: Slot
            do { again = try newestSlot() } catch {
                unregister(slot.generation)
                throw error
            }
            if again.generation == slot.generation { return slot }
            unregister(slot.generation)
            slot = again
        }
    }

    /// Keeps what `generation` names until `unregister` or `close`.
    func addRegistration(_ generation: Generation) throws(StoreError) {
        try state.withLock { (state) throws(StoreError) in
            let users = state.registrations[generation] ?? 0
            if users == 0 {
                try onMedium { () throws(MediumError) in
                    try medium.locks.lock(LockLayout.registration(generation), .shared, timeout: nil)
                }
            }
            state.registrations[generation] = users + 1
        }
    }

    /// Gives up a registration. An unlock that fails leaves a lock that ends with the process: it only
    /// delays the reuse of segments.
    func unregister(_ generation: Generation) {
        state.withLock { state in
            guard !state.isClosed, let users = state.registrations[generation] else { return }
            state.registrations[generation] = users > 1 ? users - 1 : nil
            if users == 1 { try? medium.locks.unlock(LockLayout.registration(generation)) }
        }
    }
}

/// A writer that its store knows without keeping it.
struct WeakWriter {
    weak var value: CheckpointWriter?
    init(_ value: CheckpointWriter) { self.value = value }
}

/// Where a store gets what makes runs differ: random numbers and the time. Tests give their own, so that
/// a run can be replayed.
public struct StoreEnvironment: Sendable {
    /// 64 random bits; checkpoint ids and seeds are made of them.
    public var random: @Sendable () -> UInt64
    /// Nanoseconds since 1970-01-01 UTC.
    public var nowNanoseconds: @Sendable () -> UInt64
    /// How long to wait for another process to finish its commit; nil: for ever.
    public var commitTimeout: Duration?
    /// Mistakes to make on purpose; none but in this package's tests.
    package var defects: EngineDefects = []

    public init(
        random: @escaping @Sendable () -> UInt64 = { UInt64.random(in: .min ... .max) },
        nowNanoseconds: @escaping @Sendable () -> UInt64 = wallClockNanoseconds,
        commitTimeout: Duration? = .seconds(60)
    ) {
        self.random = random
        self.nowNanoseconds = nowNanoseconds
        self.commitTimeout = commitTimeout
    }

    /// A random id that is not zero.
    func newID() -> CheckpointID {
        while true {
            let value = random()
            if value != 0 { return CheckpointID(value) }
        }
    }
}
