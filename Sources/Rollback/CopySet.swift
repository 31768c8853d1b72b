// What a shadow still has to get of a checkpoint that stands already: the common part of the two strategies that copy after their commit point.
//
// Invariants:
// - A page of the set is in memory as it was at the commit: it is copied before its first write, or before that by whoever gets to it.
// - What can't be copied to the shadow before its first write is kept in memory, so that a medium that fails does not cost the checkpoint.

import CheckpointCore
import MachineMemory
import Threading
import Units

/// The pages that are to be copied. Thread-safe.
final class CopySet: Sendable {
    private struct State {
        var remaining: PageBitmap
        /// Where the first of them can be.
        var next = PageIndex(UInt64(0))
        /// The checkpoint's device state.
        var device: [UInt8]
        /// Whether the shadow is not complete yet.
        var isOpen = false
        /// Units that the shadow has refused, by their first page.
        var kept: [PageIndex: [UInt8]] = [:]
    }

    private let parts: RollbackParts
    private let shadow: any Shadow
    private let state: Lock<State>
    private var memory: GuestMemory { parts.memory }

    /// Nothing is to be copied: the shadow has the checkpoint.
    init(_ parts: RollbackParts, _ shadow: any Shadow, _ device: [UInt8]) {
        self.parts = parts
        self.shadow = shadow
        state = Lock(State(remaining: PageBitmap(pageCount: parts.memory.pageCount), device: device))
    }

    /// The device state of the checkpoint that stands.
    var device: [UInt8] { state.withLock { $0.device } }
    /// Whether the shadow is not complete.
    var isOpen: Bool { state.withLock { $0.isOpen } }

    /// These pages of memory, and `device`, are the new checkpoint's. The set was complete.
    func begin(_ pages: PageRanges, _ device: [UInt8]) {
        state.withLock { state in
            precondition(!state.isOpen, "copying ends before the next checkpoint")
            for range in pages.ranges { state.remaining.insert(range) }
            state.next = PageIndex(UInt64(0))
            state.device = device
            state.isOpen = true
        }
    }

    /// Copies a unit that is going to be written, if it is still to be copied.
    func copyFirst(_ unit: Range<PageIndex>) {
        guard parts.rules.copiesFirst else { return }
        state.withLock { state in
            guard state.isOpen, state.remaining.contains(unit.lowerBound) else { return }
            let bytes = unsafe memory.content(of: unit)
            do throws(EngineError) { try unsafe shadow.put(unit, bytes) } catch {
                // The copying meets the same error, and says so; the writer must not wait for that.
                unsafe state.kept[unit.lowerBound] = [UInt8](bytes)
            }
            state.remaining.remove(unit)
            parts.counters.add { $0.pagesCopiedFirst += memory.pagesPerUnit }
        }
    }

    /// Copies what is left and completes the shadow. Calls `step` behind each piece. After an error the rest can be copied by another call.
    func copyRest(_ step: RollbackStep, _ counter: WritableKeyPath<RollbackStatistics, PageCount> & Sendable) throws(EngineError) {
        while try copyPiece(counter) { try parts.rules.step(step) }
        let (kept, device, isOpen) = state.withLock { ($0.kept, $0.device, $0.isOpen) }
        guard isOpen else { return }
        for (first, bytes) in kept {
            var result: Result<Void, EngineError> = .success(())
            unsafe bytes.withUnsafeBytes { bytes in
                do throws(EngineError) { try unsafe shadow.put(first..<first + memory.pagesPerUnit, bytes) } catch { result = .failure(error) }
            }
            try result.get()
        }
        try shadow.commit(device)
        state.withLock { state in
            state.isOpen = false
            state.kept = [:]
        }
    }

    /// Reads a piece of the checkpoint that has been written since.
    func read(_ pages: Range<PageIndex>, into buffer: UnsafeMutableRawBufferPointer) throws(EngineError) {
        try unsafe shadow.read(pages, into: buffer)
        state.withLock { state in
            for offset in stride(from: 0, to: (pages.upperBound - pages.lowerBound).int, by: memory.pagesPerUnit.int) {
                guard let bytes = state.kept[pages.lowerBound + PageCount(offset)] else { continue }
                unsafe UnsafeMutableRawBufferPointer(rebasing: buffer[(offset * pageSize)...]).copyBytes(from: bytes)
            }
        }
    }

    /// False when nothing is left. Short, since writers of these pages wait for the lock.
    private func copyPiece(_ counter: WritableKeyPath<RollbackStatistics, PageCount> & Sendable) throws(EngineError) -> Bool {
        try state.withLock { state throws(EngineError) in
            guard let first = state.remaining.first(in: state.next..<memory.allPages.upperBound, isMember: true) else { return false }
            let limit = min(first + max(memory.pagesPerUnit, PageCount(UInt64(pagesPerRun))), memory.allPages.upperBound)
            let piece = first..<(state.remaining.first(in: first..<limit, isMember: false) ?? limit)
            try unsafe shadow.put(piece, memory.content(of: piece))
            state.remaining.remove(piece)
            state.next = piece.upperBound
            parts.counters.add { $0[keyPath: counter] += piece.upperBound - piece.lowerBound }
            return true
        }
    }
}
