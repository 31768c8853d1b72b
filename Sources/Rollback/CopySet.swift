// What a shadow still has to get of a checkpoint that stands already: the common part of the two strategies that copy after their commit point.
//
// Invariants:
// - A page of the set is in memory as it was at the commit: it is copied before its first write, or before that by whoever gets to it.
// - Until the shadow is complete, and durable where it is on a medium, a page of the set that is written is kept: by a shadow in memory,
//   else in a copy here. So a medium that fails does not cost the checkpoint, and no writer waits for one.

import CheckpointCore
import MachineMemory
import Threading
import Units

/// The pages that are to be copied. Thread-safe.
final class CopySet: Sendable {
    private struct State {
        /// The pages of the checkpoint that the shadow did not have before, and those of them that it still has to get.
        var pages: PageBitmap
        var remaining: PageBitmap
        /// Where the first of them can be.
        var next = PageIndex(UInt64(0))
        /// The checkpoint's device state.
        var device: [UInt8]
        /// Whether the shadow is not complete yet.
        var isOpen = false
        /// Units that were written before the shadow was complete, by their first page.
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
        let none = PageBitmap(pageCount: parts.memory.pageCount)
        state = Lock(State(pages: none, remaining: none, device: device))
    }

    /// The device state of the checkpoint that stands.
    var device: [UInt8] { state.withLock { $0.device } }

    /// These pages of memory, and `device`, are the new checkpoint's. The set was complete.
    func begin(_ pages: PageRanges, _ device: [UInt8]) {
        state.withLock { state in
            precondition(!state.isOpen, "copying ends before the next checkpoint")
            state.pages = PageBitmap(pageCount: memory.pageCount)
            for range in pages.ranges { state.pages.insert(range) }
            state.remaining = state.pages
            state.next = PageIndex(UInt64(0))
            state.device = device
            state.isOpen = true
        }
    }

    /// Copies a unit that is going to be written, where the checkpoint still needs that.
    func copyFirst(_ unit: Range<PageIndex>) {
        guard parts.rules.copiesFirst else { return }
        state.withLock { state in
            guard state.isOpen, (shadow.isSure ? state.remaining : state.pages).contains(unit.lowerBound) else { return }
            let bytes = unsafe memory.content(of: unit)
            if shadow.isSure, unsafe isPut(unit, bytes) {
                state.remaining.remove(unit)
            } else {
                unsafe state.kept[unit.lowerBound] = [UInt8](bytes)
            }
            parts.counters.add { $0.pagesCopiedFirst += memory.pagesPerUnit }
        }
    }

    /// Puts a unit into the shadow. The copying meets the same error as this, and says so; the writer must not wait for that.
    private func isPut(_ unit: Range<PageIndex>, _ bytes: UnsafeRawBufferPointer) -> Bool {
        do throws(EngineError) { try unsafe shadow.put(unit, bytes) } catch { return false }
        return true
    }

    /// Copies what is left and completes the shadow. Calls `step` behind each piece. After an error the rest can be copied by another call.
    func copyRest(_ step: RollbackStep, _ counter: WritableKeyPath<RollbackStatistics, PageCount> & Sendable) throws(EngineError) {
        while try copyPiece(counter) { try parts.rules.step(step) }
        let (device, isOpen) = state.withLock { ($0.device, $0.isOpen) }
        guard isOpen else { return }
        try shadow.commit(device)
        state.withLock { state in
            state.isOpen = false
            state.kept = [:]
        }
    }

    /// Reads a piece of the checkpoint that has been written since.
    func read(_ pages: Range<PageIndex>, into buffer: UnsafeMutableRawBufferPointer) throws(EngineError) {
        let kept = state.withLock { $0.kept }
        if kept.isEmpty { return try unsafe shadow.read(pages, into: buffer) }
        for offset in stride(from: 0, to: (pages.upperBound - pages.lowerBound).int, by: memory.pagesPerUnit.int) {
            let unit = pages.lowerBound + PageCount(offset)..<pages.lowerBound + PageCount(offset) + memory.pagesPerUnit
            let target = unsafe UnsafeMutableRawBufferPointer(rebasing: buffer[offset * pageSize..<offset * pageSize + memory.unit.int])
            if let bytes = kept[unit.lowerBound] { unsafe target.copyBytes(from: bytes) } else { try unsafe shadow.read(unit, into: target) }
        }
    }

    /// False when nothing is left. Short, since writers of these pages wait for the lock.
    private func copyPiece(_ counter: WritableKeyPath<RollbackStatistics, PageCount> & Sendable) throws(EngineError) -> Bool {
        try state.withLock { state throws(EngineError) in
            guard let first = state.remaining.first(in: state.next..<memory.allPages.upperBound, isMember: true) else { return false }
            let limit = min(first + max(memory.pagesPerUnit, PageCount(UInt64(pagesPerRun))), memory.allPages.upperBound)
            var piece = first..<(state.remaining.first(in: first..<limit, isMember: false) ?? limit)
            if !state.kept.isEmpty { piece = piece.lowerBound..<piece.lowerBound + memory.pagesPerUnit }
            try put(piece, state)
            state.remaining.remove(piece)
            state.next = piece.upperBound
            parts.counters.add { $0[keyPath: counter] += piece.upperBound - piece.lowerBound }
            return true
        }
    }

    /// Copies a piece of memory to the shadow, or what was kept of it.
    private func put(_ piece: Range<PageIndex>, _ state: State) throws(EngineError) {
        guard let kept = state.kept[piece.lowerBound] else { return try unsafe shadow.put(piece, memory.content(of: piece)) }
        let bytes = AlignedBytes(copying: kept)
        try unsafe bytes.withBytes { bytes throws(EngineError) in try unsafe shadow.put(piece, bytes) }
    }
}
