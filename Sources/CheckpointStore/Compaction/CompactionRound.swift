// One round of compaction: a walk through the trees, then victims emptied batch by batch.
//
// Invariants:
// - Copying needs no lock; what is copied counts from the batch's commit on, under the reclaim lock, and only if the victim's entry in
//   the segment table is what it was when the trees were walked.
// - A victim is claimed from before the walk until it is free, so that nobody appends to it.
// - A batch that fails leaves nothing behind: what it wrote is free space.

import Media
import StoreFormat
import Threading
import Units

/// Empties the victims of one plan. Confined to one thread; copying goes on beside it.
final class CompactionRound {
    private let store: CheckpointStore
    private let options: CompactionOptions
    private let pace: Pace
    private var victims: [Victim]
    private var live = LiveBlocks()
    /// Victims whose claims this round holds. One that is free is given up at once, and may be anybody's from then on.
    private var claimed: Set<SegmentIndex> = []
    private(set) var report: CompactionReport

    /// Blocks that a round keeps in mind at once, about 130 bytes each.
    private static let mostBlocks = 1 << 20

    init(_ store: CheckpointStore, _ options: CompactionOptions, _ victims: [Victim], _ pace: Pace, _ report: CompactionReport) {
        self.store = store
        self.options = options
        self.pace = pace
        self.report = report
        var blocks = 0
        self.victims = Array(
            victims.prefix { victim in
                defer { blocks += victim.mostBlocks }
                return blocks < Self.mostBlocks
            })
    }

    /// Empties the victims.
    ///
    /// - Throws: what ends compaction; the report says what was done before.
    func run() throws(StoreError) {
        defer { store.unclaim(claimed.sorted()) }
        for victim in victims where try store.lockClaim(victim.segment) || store.has(.compactsWithoutClaims) {
            claimed.insert(victim.segment)
        }
        report.skippedSegments += victims.count - claimed.count
        try lookAround(victims.map(\.segment).filter(claimed.contains))
        try emptyAll()
    }

    /// Finds out what lives in the claimed segments, in the newest generation.
    private func lookAround(_ claimed: [SegmentIndex]) throws(StoreError) {
        let slot = try store.register()
        defer { store.unregister(slot.generation) }
        var table = TableReader(store: store, slot: slot)
        victims = []
        for segment in claimed {
            // What was appended before it was claimed counts too.
            let entry = try table.entry(segment)
            if entry.isUsed, entry.segmentClass != .catalog { victims.append(Victim(segment: segment, entry: entry)) }
        }
        guard victims.contains(where: { $0.entry.live > 0 }) || slot.forwarding != nil else { return }
        live = try LiveBlocks(of: Set(victims.map(\.segment)), in: slot, store, pace)
    }

    private func emptyAll() throws(StoreError) {
        var rest = victims[...]
        var budget = options.batchBytes
        // Copied while the one before it is committed.
        var next: CompactionBatch?
        defer { next?.drop() }
        while let batch = next ?? makeBatch(rest, budget, isAhead: false) {
            next = nil
            do throws(StoreError) {
                defer { batch.drop() }
                try pace.checkNotCancelled()
                let copied = try batch.copy()
                if mayCopyAhead, budget == options.batchBytes {
                    next = makeBatch(rest.dropFirst(batch.victims.count), budget, isAhead: true)
                    next?.begin()
                }
                let isCommitted = try commit(batch.victims, copied.outcomes, copied.uses)
                rest = rest.dropFirst(batch.victims.count)
                batch.drop()
                if isCommitted { store.remember(copied.uses) }
            } catch {
                // Where there is little room, a smaller batch may free enough for the next; and so may the one before, now committed.
                guard error.code == .noSpace, batch.victims.count > 1 || batch.isAhead else { throw error }
                next?.drop()
                next = nil
                budget = ByteCount(UInt64(1))
            }
        }
    }

    /// One thread does everything in one order.
    private var mayCopyAhead: Bool { options.parallelism > 1 }

    /// Nil when there is no victim left.
    private func makeBatch(_ victims: ArraySlice<Victim>, _ budget: ByteCount, isAhead: Bool) -> CompactionBatch? {
        guard !victims.isEmpty else { return nil }
        return CompactionBatch(
            Self.batch(victims, budget), live.blocks, isAhead: isAhead, store: store, parallelism: options.parallelism, pace: pace)
    }

    /// Victims with about `budget` bytes that live, one at least.
    private static func batch(_ victims: ArraySlice<Victim>, _ budget: ByteCount) -> ArraySlice<Victim> {
        var bytes = ByteCount.zero
        let count = victims.prefix { victim in
            defer { bytes += victim.liveBytes }
            return bytes < budget
        }.count
        return victims.prefix(max(1, count))
    }

    // MARK: a batch

    /// Makes the moves durable, makes them count and frees the victims, all in one generation; then gives their space back.
    ///
    /// - Returns: false when there was nothing to commit, since all the victims stay.
    private func commit(
        _ batch: ArraySlice<Victim>, _ outcomes: [SegmentIndex: MoveOutcome], _ uses: [SegmentUse]
    ) throws(StoreError) -> Bool {
        let isAnyMoved = outcomes.values.contains { if case .moved = $0 { true } else { false } }
        // The commit's own flush covers it; but others would wait for that when it is much.
        if isAnyMoved, uses.reduce(0, { $0 + $1.committedLength - $1.firstOffset }) > CheckpointStore.smallCommitBytes {
            do { try onMedium { () throws(MediumError) in try store.medium.flush() } } catch { throw store.fail(error) }
        }
        var done = CompactionReport()
        var freed: [SegmentIndex] = []
        let generation = try store.underReclaimLock { () throws(StoreError) in
            try store.underCommitLock { base throws(StoreError) -> Generation? in
                let transaction = try CommitTransaction(store: store, base: base)
                transaction.mayUseReserve = true
                var counted: [SegmentIndex: UInt32] = [:]
                for victim in batch {
                    guard let moves = try moves(of: victim, outcomes, transaction, &done) else { continue }
                    for move in moves { counted[move.copy.segment, default: 0] += move.liveUnits }
                    try free(victim, moves, transaction)
                    freed.append(victim.segment)
                    done.count(moves)
                }
                guard !freed.isEmpty else { return nil }
                for var use in uses {
                    // What was copied out of a victim that must stay is dead from the start.
                    use.live = counted[use.segment] ?? 0
                    if use.live > 0 { try transaction.append(use) }
                }
                store.adopt(try transaction.finish())
                return transaction.generation
            }
        }
        guard let generation else {
            report.add(done)
            return false
        }
        // It is durable, whatever happens to the space that it freed.
        done.freedSegments = freed.count
        done.commits = 1
        report.add(done)
        pace.didFree(freed.count)
        try giveBack(freed, generation)
        return true
    }

    /// Makes what was freed usable again, and gives it back to the medium.
    private func giveBack(_ freed: [SegmentIndex], _ generation: Generation) throws(StoreError) {
        defer {
            claimed.subtract(freed)
            store.unclaim(freed)
        }
        // One more generation makes this one old enough for what it freed to be used again.
        try store.advanceGeneration(beyond: generation)
        report.givenBackBytes += try store.discard(freed)
    }

    /// What was moved of a victim; nil when it must stay.
    private func moves(
        of victim: Victim, _ outcomes: [SegmentIndex: MoveOutcome], _ transaction: CommitTransaction, _ done: inout CompactionReport
    ) throws(StoreError) -> [Move]? {
        guard try transaction.table.entry(victim.segment) == victim.entry else {
            // Something in it has died, or somebody has freed it, since the trees were walked.
            done.skippedSegments += 1
            return nil
        }
        switch outcomes[victim.segment] {
        case .moved(let moves): return moves
        case .damaged(let error):
            done.damaged.append(error)
            done.leaveAlone([victim.segment: victim.entry])
            return nil
        case nil: preconditionFailure("every victim of the batch has an outcome")
        }
    }

    private func free(_ victim: Victim, _ moves: [Move], _ transaction: CommitTransaction) throws(StoreError) {
        for key in live.deadEntries[victim.segment] ?? [] { try transaction.moves.remove(key) }
        for move in moves { try transaction.forward(move.pointer, to: move.copy, kept: move.kept, live: move.live) }
        try transaction.free(victim.segment)
    }
}

extension LiveBlocks {
    /// Nothing lives in any victim.
    init() {}
}

extension CompactionReport {
    fileprivate mutating func count(_ moves: [Move]) {
        movedBlocks += moves.count
        movedBytes += ByteCount(moves.reduce(UInt64(0)) { $0 + UInt64($1.copy.storedLength) })
        rewrittenRuns += moves.count { $0.isRewritten }
    }

    fileprivate mutating func add(_ other: CompactionReport) {
        movedBytes += other.movedBytes
        movedBlocks += other.movedBlocks
        rewrittenRuns += other.rewrittenRuns
        freedSegments += other.freedSegments
        commits += other.commits
        damaged += other.damaged
        skippedSegments += other.skippedSegments
        leaveAlone(other.leftAlone)
    }
}
