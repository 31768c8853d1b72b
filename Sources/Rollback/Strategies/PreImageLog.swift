// Strategy 6: a log of what was overwritten [system D].
//
// The first write of an epoch to a page logs its old content; a checkpoint clears the bits and then the log, which is the commit; a
// rollback replays the log in reverse. The bits go first: the other way round a fault between the two would leave pages that count as
// logged and are not. After such a fault the log may get a second, younger entry for a page. That is why it is replayed in reverse: the
// oldest entry has the last word.
//
// With a medium the checkpoint is copied there as well, before it commits here: a log alone is of no use without the memory that it belongs to.
//
// Invariant: a page is logged at most once in an epoch whose checkpoint before it has not failed.

import CheckpointCore
import MachineMemory
import Threading
import Units

/// Pre-image checkpoints.
final class PreImageLog: RollbackStrategy {
    private struct State {
        /// The first page of each logged unit, in order; its content has the same place in the log.
        var entries: [PageIndex] = []
        /// Whether the bits were cleared and the log was not: then pages without a bit may differ from the checkpoint as well.
        var isBehind = false
        var device: [UInt8]
    }

    private let parts: RollbackParts
    private let log: GuestMemory
    private let mirror: Mirror?
    private let state: Lock<State>
    private var unit: PageCount { parts.memory.pagesPerUnit }
    private var room: Int { parts.capacity.int / unit.int }

    init(_ parts: RollbackParts, _ state: [UInt8]) throws(EngineError) {
        self.parts = parts
        log = try GuestMemory("\(parts.memory.name) (log)", byteLength: parts.capacity.bytes)
        mirror = try parts.makeMirror(state)
        self.state = Lock(State(device: state))
    }

    func firstWrite(_ unit: Range<PageIndex>) -> FirstWrite {
        state.withLock { state in
            if state.entries.count == room {
                dropYoungerEntries(&state)
                if state.entries.contains(unit.lowerBound) { return .noted }
                guard state.entries.count < room else { return .noRoom }
            }
            unsafe log.bytes(of: place(state.entries.count)).copyMemory(from: parts.memory.content(of: unit))
            state.entries.append(unit.lowerBound)
            let used = PageCount(state.entries.count * self.unit.int).bytes
            parts.counters.add { counts in
                counts.pagesCopiedFirst += self.unit
                counts.usedBufferBytes = max(counts.usedBufferBytes, used)
            }
            return .noted
        }
    }

    func checkpoint(_ state: [UInt8], _ writes: FirstWrites) throws(EngineError) {
        try parts.rules.step(.begun)
        let changed = changed(writes)
        try writes.protect(changed)
        try parts.rules.step(.protected)
        writes.commit { self.state.withLock { $0.isBehind = true } }
        try parts.rules.step(.cleared)
        // Last, so that nothing can fail between the medium's commit and this one.
        try mirror?.copy(changed, state)
        self.state.withLock { $0 = State(device: state) }
    }

    func rollback(_ writes: FirstWrites) throws(EngineError) -> [UInt8] {
        parts.counters.add { $0.pagesRestored = .zero }
        let (entries, device) = state.withLock { ($0.entries, $0.device) }
        let changed = changed(writes)
        // Those with a bit are released, or are when they are written.
        try writes.release(changed.subtracting(writes.written))
        for index in parts.rules.replayOrder(entryCount: entries.count) {
            unsafe parts.memory.bytes(of: entries[index]..<entries[index] + unit).copyMemory(from: log.content(of: place(index)))
            parts.counters.add { $0.pagesRestored += unit }
            try parts.rules.step(.restored)
        }
        try writes.protect(changed)
        writes.commit {}
        state.withLock { $0 = State(device: device) }
        return device
    }

    func settle() {}

    func describe(_ statistics: inout RollbackStatistics) {
        statistics.shadowBytes = mirror?.residentBytes ?? .zero
        statistics.bufferBytes = log.byteLength
        statistics.bitmapBytes = PageBitmap.byteLength(of: parts.memory.pageCount)
    }

    func close() { mirror?.close() }

    /// What may differ from the checkpoint: after a checkpoint that has thrown, more than the bits say.
    private func changed(_ writes: FirstWrites) -> PageRanges {
        let (entries, isBehind) = state.withLock { ($0.entries, $0.isBehind) }
        return isBehind ? PageRanges(entries.map { $0..<$0 + unit }).union(writes.written) : writes.written
    }

    /// Keeps the oldest entry of each page, which is what counts: only checkpoints that have thrown leave others.
    private func dropYoungerEntries(_ state: inout State) {
        var seen: Set<PageIndex> = []
        var kept: [PageIndex] = []
        for (index, page) in state.entries.enumerated() where seen.insert(page).inserted {
            if kept.count < index { unsafe log.bytes(of: place(kept.count)).copyMemory(from: log.content(of: place(index))) }
            kept.append(page)
        }
        state.entries = kept
    }

    /// Where the log keeps its n-th entry.
    private func place(_ index: Int) -> Range<PageIndex> { PageIndex(index * unit.int)..<PageIndex((index + 1) * unit.int) }
}
