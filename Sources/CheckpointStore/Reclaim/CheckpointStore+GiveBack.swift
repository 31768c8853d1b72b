// Giving the medium back what is free.
//
// A segment is discarded when it is freed, unless somebody still reads it in an older generation. What is left over like that, or by
// a commit that freed a segment of the catalog, by a writer that was aborted, by a process that ended, is found again later: on files and in memory by what takes
// space there, on devices by the generations in which segments became free.
//
// Invariants:
// - A segment is discarded under its claim, on the strength of a slot that was settled after that was taken, and only when it could be
//   used again as well (format, 8 rule 4): the generation before the newest stays whole, and so does what registered readers see.
// - One claim is held at a time: writers that look for a segment find others.

import Media
import StoreFormat
import Units

/// What a handle knows of free segments whose space may not have been given back.
struct Leftovers {
    /// Whether a deletion should look for some.
    var areExpected = true
    /// Devices: what became free in an earlier generation has been given back.
    var discardedBelow = Generation(UInt64(0))
}

extension CheckpointStore {
    /// Gives claims of segments up that this handle holds to free them.
    func unclaim(_ segments: [SegmentIndex]) {
        state.withLock { state in
            guard !state.isClosed else { return }
            for segment in segments where state.claims.remove(segment) != nil {
                try? medium.locks.unlock(LockLayout.claim(segment))
            }
        }
    }

    /// Gives the medium back what was freed, unless somebody may still read it in an older generation. The claims are held, and nothing is
    /// torn behind the newest slot. One that can't be given back keeps none of the others. Returns how many bytes that were.
    func discard(_ claimed: [SegmentIndex]) throws(StoreError) -> ByteCount {
        var bytes = ByteCount.zero
        var failure: StoreError?
        guard !claimed.isEmpty else { return bytes }
        let slot = try settledSlot()
        var table = TableReader(store: self, slot: slot)
        for segment in claimed {
            let entry = try table.entry(segment)
            guard !entry.isUsed else { continue }
            guard try obstacle(to: entry, slot) == nil else {
                state.withLock { $0.leftovers.areExpected = true }
                continue
            }
            do throws(StoreError) { bytes += try discard(segment, slot.geometry) } catch {
                state.withLock { $0.leftovers.areExpected = true }
                failure = failure ?? error
            }
        }
        if let failure { throw failure }
        return bytes
    }

    /// Gives back the free segments that still take space of the medium, but for those that somebody may read in an older generation.
    ///
    /// Reads the whole segment table, and asks the medium about what is free. A deletion looks only when there may be something, and not on
    /// devices, which can't say what takes space.
    /// - Parameters:
    ///   - isThorough: look in any case; make one more generation where that is what it takes; on devices, discard again what became
    ///     free since this handle did so last.
    ///   - isCancelled: asked between segments.
    /// - Returns: how many bytes that were: on files and in memory those that are free now, on devices those that were discarded.
    func giveBackLeftovers(isThorough: Bool = false, isCancelled: () -> Bool = { false }) throws(StoreError) -> ByteCount {
        guard isThorough || state.withLock({ $0.leftovers.areExpected }) else { return .zero }
        // Whoever frees something meanwhile sets it again.
        state.withLock { $0.leftovers.areExpected = false }
        let (generation, found) = try registeredFreeSpace()
        guard found.isKnown || isThorough else { return .zero }
        let known = state.withLock { $0.leftovers.discardedBelow }
        var bytes = ByteCount.zero
        // The first generation of which something is left.
        var heldFrom: Generation?
        for (segment, freed) in found.segments where found.isKnown || freed >= known {
            if isCancelled() {
                state.withLock { $0.leftovers.areExpected = true }
                return bytes
            }
            if let given = try giveBack(segment, isThorough: isThorough) { bytes += given } else { heldFrom = min(heldFrom ?? freed, freed) }
        }
        state.withLock { state in
            if heldFrom != nil { state.leftovers.areExpected = true }
            state.leftovers.discardedBelow = max(known, heldFrom ?? generation.next)
        }
        return bytes
    }

    /// Gives one segment back when nobody uses it any more. Returns how many bytes that were; nil when it has to be looked at again, since
    /// it may still be read.
    private func giveBack(_ segment: SegmentIndex, isThorough: Bool) throws(StoreError) -> ByteCount? {
        while true {
            // Somebody writes to it.
            guard try lockClaim(segment) else { return .zero }
            defer { unclaim([segment]) }
            let slot = try settledSlot()
            guard segment.rawValue < UInt64(slot.geometry.segmentCount) else { return .zero }
            var table = TableReader(store: self, slot: slot)
            let entry = try table.entry(segment)
            guard !entry.isUsed else { return .zero }
            switch try obstacle(to: entry, slot) {
            case .freedTooRecently? where isThorough:
                try advanceGeneration(beyond: slot.generation)
                continue
            case .some: return nil
            case nil: break
            }
            let claim = SegmentClaim(segment: segment, start: 0, isFresh: false, baseGeneration: slot.generation)
            if try confirm(claim) { return try discard(segment, slot.geometry) }
        }
    }

    private func discard(_ segment: SegmentIndex, _ geometry: Geometry) throws(StoreError) -> ByteCount {
        let (offset, length) = (geometry.offset(of: segment), ByteCount(UInt64(geometry.segmentSize)))
        state.withLock { $0.reserved = 0..<0 }
        return try onMedium { () throws(MediumError) in
            let before = try medium.allocatedBytes(at: offset, length)
            try medium.discard(at: offset, length)
            guard let before, let after = try medium.allocatedBytes(at: offset, length) else { return length }
            return before > after ? before - after : .zero
        }
    }

    // MARK: what takes space

    /// Free segments that may take space.
    struct FreeSpace {
        /// Whether the medium can say what takes space. If not, all are listed that were ever used.
        var isKnown = true
        /// Each with the generation in which it became free, ascending.
        var segments: [(segment: SegmentIndex, freed: Generation)] = []
        /// How much space they take; 0 where that is not known.
        var bytes = ByteCount.zero
    }

    /// The free segments of a generation that still take space of the medium. Reads the whole segment table; `slot` is registered.
    func freeSpace(in slot: Slot) throws(StoreError) -> FreeSpace {
        var space = FreeSpace()
        var table = TableReader(store: self, slot: slot)
        let count = UInt64(slot.geometry.segmentCount)
        let size = UInt64(slot.geometry.segmentSize)
        for first in stride(from: UInt64(0), to: count, by: TableReader.fanOut) {
            let numbers = first..<min(first + UInt64(TableReader.fanOut), count)
            let entries = try table.leaf(of: SegmentIndex(first))?.entries
            // Mostly a big store has large parts that nobody ever wrote to: one question for all of them.
            if entries == nil, try allocated(first, ByteCount(UInt64(numbers.count) * size), slot) == .zero { continue }
            for number in numbers {
                let entry = entries?[Int(number - first)] ?? .neverUsed
                guard !entry.isUsed else { continue }
                if let bytes = try allocated(number, ByteCount(size), slot) {
                    guard bytes > .zero else { continue }
                    space.bytes += bytes
                } else {
                    space.isKnown = false
                    guard entry.freedGeneration.rawValue > 0 else { continue }
                }
                space.segments.append((SegmentIndex(number), entry.freedGeneration))
            }
        }
        return space
    }

    /// The free space of the newest generation, and which that is.
    func registeredFreeSpace() throws(StoreError) -> (generation: Generation, space: FreeSpace) {
        let slot = try register()
        defer { unregister(slot.generation) }
        return (slot.generation, try freeSpace(in: slot))
    }

    private func allocated(_ segment: UInt64, _ length: ByteCount, _ slot: Slot) throws(StoreError) -> ByteCount? {
        try onMedium { () throws(MediumError) in try medium.allocatedBytes(at: slot.geometry.offset(of: SegmentIndex(segment)), length) }
    }
}
