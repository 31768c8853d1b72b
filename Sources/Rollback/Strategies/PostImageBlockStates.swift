// Strategy 5: two locations for each page, and states that say which of them holds the checkpoint [system D].
//
// A page that was not written is its own checkpoint. The first write of an epoch makes the page's other location hold the checkpoint and
// marks it modified; a checkpoint clears these states, and nothing is copied; a rollback brings modified pages back from their other
// location.
//
// A memory controller sends the write itself to the other location. A process would have to map the page there, and bring along the rest of
// its content: 11 us for mapping, registering and touching one page of a memfd here, beside 0.6 us for the copy that is needed all the
// same, and after some 25,000 pages the address space has no more mappings (vm.max_map_count), at 100 to 200 MiB. So the old content goes
// to the other location and the page stays where it is; the rest is as in the controller.
//
// With a medium the checkpoint is copied there as well, before it commits here.
//
// Invariant: a page whose state is clear is in memory as the checkpoint has it, one whose state is set in its other location.

import CheckpointCore
import MachineMemory
import Threading
import Units

/// Post-image checkpoints by block states.
final class PostImageBlockStates: RollbackStrategy {
    private struct State {
        /// Pages whose checkpoint is in the other location.
        var modified: PageBitmap
        var device: [UInt8]
    }

    private let parts: RollbackParts
    private let other: GuestMemory
    private let mirror: Mirror?
    private let state: Lock<State>

    init(_ parts: RollbackParts, _ state: [UInt8]) throws(EngineError) {
        self.parts = parts
        other = try GuestMemory("\(parts.memory.name) (other location)", byteLength: parts.memory.byteLength)
        mirror = try parts.makeMirror(state)
        self.state = Lock(State(modified: PageBitmap(pageCount: parts.memory.pageCount), device: state))
    }

    func firstWrite(_ unit: Range<PageIndex>) -> FirstWrite {
        state.withLock { state in
            unsafe other.bytes(of: unit).copyMemory(from: parts.memory.content(of: unit))
            state.modified.insert(unit)
            parts.counters.add { $0.pagesCopiedFirst += parts.memory.pagesPerUnit }
            return .noted
        }
    }

    func checkpoint(_ state: [UInt8], _ writes: FirstWrites) throws(EngineError) {
        try parts.rules.step(.begun)
        let written = writes.written
        try writes.protect(written)
        try parts.rules.step(.protected)
        try mirror?.copy(written, state)
        writes.commit { self.state.withLock { $0 = State(modified: PageBitmap(pageCount: parts.memory.pageCount), device: state) } }
    }

    func rollback(_ writes: FirstWrites) throws(EngineError) -> [UInt8] {
        parts.counters.add { $0.pagesRestored = .zero }
        let (modified, device) = state.withLock { ($0.modified.pageRanges, $0.device) }
        try unsafe writes.restore(modified) { piece, target throws(EngineError) in
            unsafe target.copyMemory(from: other.content(of: piece))
            parts.counters.add { $0.pagesRestored += piece.upperBound - piece.lowerBound }
            try parts.rules.step(.restored)
        }
        writes.commit { state.withLock { $0.modified = PageBitmap(pageCount: parts.memory.pageCount) } }
        return device
    }

    func settle() {}

    func describe(_ statistics: inout RollbackStatistics) {
        statistics.shadowBytes = other.byteLength + (mirror?.residentBytes ?? .zero)
        statistics.bitmapBytes = PageBitmap.byteLength(of: parts.memory.pageCount) + PageBitmap.byteLength(of: parts.memory.pageCount)
    }

    func close() { mirror?.close() }
}
