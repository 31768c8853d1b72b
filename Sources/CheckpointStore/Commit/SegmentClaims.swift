// Claiming segments to write to (format, 8 rules 2-4, 7).
//
// Invariant: a segment is chosen by what a settled slot said *after* its claim lock was taken.

import Media
import StoreFormat
import Threading
import Units

/// A segment that this handle may append to until it is released.
struct SegmentClaim: Sendable {
    var segment: SegmentIndex
    /// Where to append: 0 in a fresh segment, which needs a header first.
    var start: Int
    /// True when the segment was free.
    var isFresh: Bool
    /// The newest durable generation when it was claimed.
    var baseGeneration: Generation
}

/// What keeps a free segment from being used yet.
enum SegmentObstacle: Hashable, Sendable {
    /// It became free in the newest generation: the one before must stay whole.
    case freedTooRecently
    /// It became free in this generation, and older ones are still being read.
    case heldByReaders(Generation)
}

/// What a checkpoint wrote in one segment.
struct SegmentUse: Sendable {
    var segment: SegmentIndex
    var segmentClass: SegmentClass
    /// The first byte and the end of its blocks.
    var firstOffset: Int
    var endOffset: Int
    /// Where the next writer may append, commit record included; known at the end.
    var committedLength: Int
    /// What of it lives. Runs: pages; else 64-byte units.
    var live: UInt32
    /// What counts as appended: at least `live`.
    var written: UInt32
    var birth: BlockBirth
}

extension CheckpointStore {
    /// Segments of the reserve that are left to the nodes of commits, so that deleting works beside compaction, in other processes too.
    private static let keptForCommits: UInt32 = 2
    /// Partly filled segments of a class that a handle remembers.
    private static let rememberedSegments = 1024

    /// Room below which a partly filled segment is not worth appending to.
    private func worthwhileRoom(_ geometry: Geometry) -> Int { min(Int(geometry.segmentSize) / 4, 256 << 10) }

    /// Claims a segment for blocks of one class: a partly filled one of that class, or a free one.
    ///
    /// - Parameters:
    ///   - room: bytes that it must have left.
    ///   - base: for the catalog, the slot under the commit lock; nil: the newest settled slot.
    ///   - limit: free segments are taken below it only; nil: all.
    /// - Throws: `.noSpace` when no segment is left beyond the reserve, or the medium has no room.
    func claimSegment(
        _ segmentClass: SegmentClass, room: Int = 0, base: Slot? = nil, below limit: UInt32? = nil, mayUseReserve: Bool = false
    ) throws(StoreError) -> SegmentClaim {
        while true {
            let claim = try claimOnce(segmentClass, room: room, base: base, limit: limit, mayUseReserve: mayUseReserve)
            if base != nil { return claim }
            if try confirm(claim) { return claim }
        }
    }

    private func claimOnce(
        _ segmentClass: SegmentClass, room: Int, base: Slot?, limit: UInt32?, mayUseReserve: Bool
    ) throws(StoreError) -> SegmentClaim {
        try checkUsable(forWriting: true)
        if segmentClass != .catalog, let claim = try claimPartlyFilled(segmentClass, room: room) { return claim }
        while true {
            let slot: Slot
            if let base { slot = base } else { slot = try settledSlot() }
            let fresh = state.withLock { $0.freshClaims }
            let kept = mayUseReserve ? (segmentClass == .catalog ? 0 : min(slot.reserveSegments, Self.keptForCommits)) : slot.reserveSegments
            let taken = UInt64(slot.usedSegments) + UInt64(fresh) + UInt64(kept)
            let count = UInt64(limit ?? slot.geometry.segmentCount)
            guard taken < count else {
                if let claim = try searchPartlyFilled(slot, segmentClass, room: room) { return claim }
                throw fullError(slot)
            }
            switch try searchFree(slot, count: count) {
            case .found(let claim): return claim
            case .obstacle(.freedTooRecently) where base == nil: try advanceGeneration(beyond: slot.generation)
            case .obstacle(.freedTooRecently), .none: throw fullError(slot)
            case .obstacle(.heldByReaders(let generation)): throw heldError(slot, generation)
            }
        }
    }

    /// Gives claims up. What was written to them without a commit is free space again.
    func release(_ claims: [SegmentClaim]) {
        state.withLock { state in
            guard !state.isClosed else { return }
            for claim in claims where state.claims.remove(claim.segment) != nil {
                if claim.isFresh { state.freshClaims -= 1 }
                try? medium.locks.unlock(LockLayout.claim(claim.segment))
            }
        }
    }

    /// Remembers segments that a committed checkpoint left partly filled.
    func remember(_ uses: [SegmentUse]) {
        let geometry = geometry
        let room = worthwhileRoom(geometry)
        state.withLock { state in
            for use in uses where Int(geometry.segmentSize) - use.committedLength >= room {
                var list = state.partlyFilled[use.segmentClass] ?? []
                if !list.contains(use.segment) { list.append(use.segment) }
                state.partlyFilled[use.segmentClass] = list.suffix(Self.rememberedSegments)
            }
        }
    }

    // MARK: partly filled segments

    private func claimPartlyFilled(_ segmentClass: SegmentClass, room: Int) throws(StoreError) -> SegmentClaim? {
        if state.withLock({ $0.cursor == nil }) { try lookAroundHint() }
        while let candidate = state.withLock({ $0.partlyFilled[segmentClass]?.popLast() }) {
            if let claim = try claimPartlyFilled(candidate, segmentClass, room: room) { return claim }
        }
        return nil
    }

    /// Locks a segment that may be partly filled and looks again. Nil when it is not, or somebody else has it.
    private func claimPartlyFilled(
        _ segment: SegmentIndex, _ segmentClass: SegmentClass, room: Int
    ) throws(StoreError) -> SegmentClaim? {
        let early = has(.trustsLengthsFromBeforeTheClaim) ? state.withLock { $0.newest } : nil
        guard try lockClaim(segment) else { return nil }
        var keep = false
        defer { if !keep { unlockClaim(segment) } }
        let settled = try settledSlot()
        let slot = early ?? settled
        var table = TableReader(store: self, slot: slot)
        let entry = try table.entry(segment)
        guard isWorthwhile(entry, segmentClass, room: room, slot.geometry) else { return nil }
        keep = true
        return SegmentClaim(
            segment: segment, start: Int(entry.committedLength), isFresh: false, baseGeneration: slot.generation)
    }

    private func isWorthwhile(
        _ entry: SegmentEntry, _ segmentClass: SegmentClass, room: Int, _ geometry: Geometry
    ) -> Bool {
        let left = Int(geometry.segmentSize) - Int(entry.committedLength)
        return entry.isUsed && entry.segmentClass == segmentClass && left >= max(room, worthwhileRoom(geometry))
    }

    /// Where nothing is free any more, all of the table is searched for segments that others left partly filled.
    private func searchPartlyFilled(
        _ slot: Slot, _ segmentClass: SegmentClass, room: Int
    ) throws(StoreError) -> SegmentClaim? {
        guard segmentClass != .catalog else { return nil }
        var table = TableReader(store: self, slot: slot)
        for number in 0..<UInt64(slot.geometry.segmentCount) {
            let entry = try table.entry(SegmentIndex(number))
            guard isWorthwhile(entry, segmentClass, room: room, slot.geometry) else { continue }
            if let claim = try claimPartlyFilled(SegmentIndex(number), segmentClass, room: room) { return claim }
        }
        return nil
    }

    /// A fresh handle knows no partly filled segments: the last ones written are near the hint.
    private func lookAroundHint() throws(StoreError) {
        let slot = try settledSlot()
        state.withLock { $0.cursor = slot.allocationHint }
        var table = TableReader(store: self, slot: slot)
        guard let leaf = try table.leaf(of: slot.allocationHint) else { return }
        let room = worthwhileRoom(slot.geometry)
        var found: [SegmentClass: [SegmentIndex]] = [:]
        for (index, entry) in leaf.entries.enumerated() where entry.isUsed {
            guard let segmentClass = entry.segmentClass,
                Int(slot.geometry.segmentSize) - Int(entry.committedLength) >= room
            else { continue }
            found[segmentClass, default: []].append(SegmentIndex(leaf.firstSegment.rawValue + UInt64(index)))
        }
        state.withLock { $0.partlyFilled = found }
    }

    // MARK: free segments

    private enum Search {
        case found(SegmentClaim)
        case obstacle(SegmentObstacle)
        case none
    }

    /// Goes once round the first `count` segments from the cursor.
    private func searchFree(_ slot: Slot, count: UInt64) throws(StoreError) -> Search {
        var table = TableReader(store: self, slot: slot)
        var outcome = Search.none
        let start = state.withLock { ($0.cursor ?? slot.allocationHint).rawValue } % count
        for step in 0..<count {
            let segment = SegmentIndex((start + step) % count)
            let entry = try table.entry(segment)
            guard !entry.isUsed, state.withLock({ !$0.claims.contains(segment) }) else { continue }
            if let obstacle = try obstacle(to: entry, slot) {
                // A generation more would settle this one; readers may take for ever.
                if case .obstacle(.freedTooRecently) = outcome { continue }
                outcome = .obstacle(obstacle)
                continue
            }
            if let claim = try claimFree(segment, slot) {
                state.withLock { $0.cursor = SegmentIndex((segment.rawValue + 1) % count) }
                return .found(claim)
            }
        }
        return outcome
    }

    /// What keeps a free segment from being used yet; nil when nothing does.
    func obstacle(to entry: SegmentEntry, _ slot: Slot) throws(StoreError) -> SegmentObstacle? {
        let freed = entry.freedGeneration
        guard freed.rawValue > 0, !has(.reusesFreedSegmentsAtOnce) else { return nil }
        guard freed < slot.generation else { return .freedTooRecently }
        if has(.ignoresReaders) { return nil }
        if let oldest = state.withLock({ $0.registrations.keys.min() }), oldest < freed { return .heldByReaders(freed) }
        let free = try onMedium { () throws(MediumError) in
            try medium.locks.isFree(LockLayout.registrations(below: freed), for: .exclusive)
        }
        return free ? nil : .heldByReaders(freed)
    }

    /// Locks a free segment and looks again. Nil when somebody else was faster.
    private func claimFree(_ segment: SegmentIndex, _ seen: Slot) throws(StoreError) -> SegmentClaim? {
        guard try lockClaim(segment) else { return nil }
        var keep = false
        defer { if !keep { unlockClaim(segment) } }
        let slot = try settledSlot()
        var table = TableReader(store: self, slot: slot)
        let entry = try table.entry(segment)
        guard !entry.isUsed, try obstacle(to: entry, slot) == nil else { return nil }
        try reserveSpace(for: segment, slot.geometry)
        state.withLock { $0.freshClaims += 1 }
        keep = true
        return SegmentClaim(segment: segment, start: 0, isFresh: true, baseGeneration: slot.generation)
    }

    /// Reserves the medium's space for a segment, and for those behind it: one call for many segments is much cheaper. Should
    /// another process discard one of these before it is claimed here, writing it may find the medium full: an error as well.
    private func reserveSpace(for segment: SegmentIndex, _ geometry: Geometry) throws(StoreError) {
        if state.withLock({ $0.reserved.contains(segment.rawValue) }) { return }
        let size = UInt64(geometry.segmentSize)
        let ahead = max(1, Self.reservedAheadBytes / size)
        let end = min(segment.rawValue + ahead, UInt64(geometry.segmentCount))
        let offset = geometry.offset(of: segment)
        let many = ByteCount((end - segment.rawValue) * size)
        do {
            try medium.reserve(at: offset, many)
            state.withLock { $0.reserved = segment.rawValue..<end }
        } catch {
            // Too much at once may still leave room for one.
            try onMedium { () throws(MediumError) in try medium.reserve(at: offset, ByteCount(size)) }
        }
    }

    private static let reservedAheadBytes: UInt64 = 16 << 20

    /// Takes the claim of a segment for this handle. False when somebody has it, this handle included.
    func lockClaim(_ segment: SegmentIndex) throws(StoreError) -> Bool {
        try state.withLock { (state) throws(StoreError) in
            guard !state.claims.contains(segment) else { return false }
            let locked = try onMedium { () throws(MediumError) in
                try medium.locks.tryLock(LockLayout.claim(segment), .exclusive)
            }
            if locked { state.claims.insert(segment) }
            return locked
        }
    }

    private func unlockClaim(_ segment: SegmentIndex) {
        state.withLock { state in
            state.claims.remove(segment)
            try? medium.locks.unlock(LockLayout.claim(segment))
        }
    }

    // MARK: errors

    func fullError(_ slot: Slot) -> StoreError {
        StoreError(
            .noSpace,
            "the store is full: \(slot.usedSegments) of \(slot.geometry.segmentCount) segments are used and "
                + "\(slot.reserveSegments) are kept for deleting",
            remedy: "Delete checkpoints (`ckstore delete`) or enlarge the store (`ckstore resize`).", medium: medium.name)
    }

    private func heldError(_ slot: Slot, _ generation: Generation) -> StoreError {
        let holders = medium.locks.holders(of: LockLayout.registrations(below: generation))
        return StoreError(
            .noSpace,
            "all free segments are still being read in older generations, by "
                + (holders.isEmpty ? "this process" : LockHolder.list(holders)),
            remedy: "End those readers, or enlarge the store (`ckstore resize`).", medium: medium.name)
    }
}
