// Emptying segments of class 3: the nodes that stand in them are written anew where commits append now.
//
// Invariants:
// - Nothing is forwarded: each batch is an ordinary commit, which frees a segment when the last node in it has been replaced. Neither
//   claims nor the reclaim lock are needed, since only commits write to such segments.
// - A batch is bounded, and so is the time for which others wait for the commit lock.

import Media
import StoreFormat
import Units

/// Empties the victims of class 3 of one plan. Confined to one thread.
final class CatalogRound {
    private let store: CheckpointStore
    private let options: CompactionOptions
    private let pace: Pace
    private var victims: ArraySlice<Victim>
    private(set) var report: CompactionReport

    /// Bytes of nodes that one commit writes anew, the nodes on the way to them not counted.
    private static let batchBytes = 1 << 20

    init(_ store: CheckpointStore, _ options: CompactionOptions, _ victims: [Victim], _ pace: Pace, _ report: CompactionReport) {
        self.store = store
        self.options = options
        self.pace = pace
        self.report = report
        self.victims = victims[...]
    }

    /// Empties the victims, the deadest first.
    ///
    /// - Throws: what ends compaction; the report says what was done before.
    func run() throws(StoreError) {
        // Before the first of them is free, as much room is needed as a batch takes.
        var budget = min(options.batchBytes.int, Self.batchBytes, Int(store.geometry.segmentSize) / 2)
        while let first = victims.first {
            try pace.checkNotCancelled()
            let batch = victims.prefix(max(1, Self.count(victims, budget)))
            do throws(StoreError) {
                if try rewrite(batch, budget) == .complete { victims = victims.dropFirst(batch.count) }
            } catch {
                guard error.code == .noSpace, budget > Int(first.entry.committedLength) / 8 else { throw error }
                budget /= 8
            }
        }
    }

    /// How many of the victims a batch of `budget` bytes can empty.
    private static func count(_ victims: ArraySlice<Victim>, _ budget: Int) -> Int {
        var bytes = 0
        return victims.prefix { victim in
            bytes += victim.liveBytes.int
            return bytes <= budget
        }.count
    }

    private enum Outcome { case complete, partial }

    /// One commit. Complete: what is left of the victims after it stays.
    private func rewrite(_ batch: ArraySlice<Victim>, _ budget: Int) throws(StoreError) -> Outcome {
        var wanted = NodeRewriting(segments: [], budget: budget)
        var freed: [SegmentIndex] = []
        var isComplete = true
        let generation = try store.underCommitLock { base throws(StoreError) -> Generation? in
            let transaction = try CommitTransaction(store: store, base: base)
            transaction.mayUseReserve = true
            let before = try takeStillUsed(batch, transaction, &wanted)
            try transaction.rewrite(&wanted)
            if wanted.count > 0 { store.adopt(try transaction.finish()) }
            var left: [SegmentIndex: SegmentEntry] = [:]
            for segment in wanted.segments { left[segment] = try transaction.table.entry(segment) }
            let after = left.values.reduce(UInt64(0)) { $0 + UInt64($1.live) }
            // Counts that never come to 0, or nodes that can't be reached, must not keep this going.
            isComplete = wanted.count == 0 || after == 0 || after >= before
            if isComplete, !wanted.damaged.isEmpty { report.leaveAlone(left.filter { $0.value.live > 0 }) }
            guard wanted.count > 0 else { return nil }
            freed = transaction.freedCatalogSegments
            return transaction.generation
        }
        for error in wanted.damaged where !report.damaged.contains(where: { $0.offset == error.offset }) { report.damaged.append(error) }
        guard let generation else { return .complete }
        report.commits += 1
        report.movedBlocks += wanted.count
        report.rewrittenNodes += wanted.count
        report.movedBytes += ByteCount(wanted.bytes)
        report.freedSegments += freed.count
        try giveBack(freed, generation)
        pace.didFree(freed.count)
        pace.didMove(ByteCount(wanted.bytes))
        try pace.take(ByteCount(wanted.bytes))
        return isComplete ? .complete : .partial
    }

    /// Takes those of the victims that still are what the plan took them for. Returns what the table counts in them.
    private func takeStillUsed(
        _ batch: ArraySlice<Victim>, _ transaction: CommitTransaction, _ wanted: inout NodeRewriting
    ) throws(StoreError) -> UInt64 {
        var live: UInt64 = 0
        for victim in batch where victim.segment != transaction.base.catalogSegment {
            let entry = try transaction.table.entry(victim.segment)
            guard entry.isUsed, entry.segmentClass == .catalog else { continue }
            wanted.segments.insert(victim.segment)
            live += UInt64(entry.live)
        }
        return live
    }

    /// Makes what was freed usable again, and gives it back to the medium where nobody reads it or has claimed it.
    private func giveBack(_ freed: [SegmentIndex], _ generation: Generation) throws(StoreError) {
        guard !freed.isEmpty else { return }
        var claimed: [SegmentIndex] = []
        defer { store.unclaim(claimed) }
        for segment in freed where try store.lockClaim(segment) { claimed.append(segment) }
        try store.advanceGeneration(beyond: generation)
        report.givenBackBytes += try store.discard(claimed)
    }
}
