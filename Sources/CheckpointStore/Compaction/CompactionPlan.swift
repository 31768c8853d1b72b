// Which segments to empty: the deadest first, as few as it takes.
//
// Invariant: every victim gives back more than what lives in it takes.

import StoreFormat
import Units

/// A segment that is to be emptied.
struct Victim: Sendable {
    var segment: SegmentIndex
    /// Its entry when that was last looked at.
    var entry: SegmentEntry

    var deadShare: Double { entry.written == 0 ? 1 : 1 - Double(min(entry.live, entry.written)) / Double(entry.written) }
    /// About how many of its bytes live.
    var liveBytes: ByteCount { entry.liveBytes }
    /// No fewer than the blocks that live in it: runs have a page or more, others some units of 64 bytes.
    var mostBlocks: Int { Int(entry.segmentClass == .runs ? entry.live : entry.live / 2) }
}

extension SegmentEntry {
    /// About how many of the bytes written to a segment live: as large a share of them as of the pages or units that were counted.
    var liveBytes: ByteCount {
        guard written > 0 else { return .zero }
        return ByteCount(UInt64(Double(committedLength) * Double(min(live, written)) / Double(written)))
    }
}

/// What emptying segments can win.
struct CompactionPlan {
    var use = SpaceUse()
    /// The deadest first.
    var victims: [Victim] = []
    /// What will be in use when all victims are free.
    var projected = SpaceUse()

    /// Reads the whole segment table of `slot`.
    init(_ store: CheckpointStore, _ slot: Slot, _ options: CompactionOptions) throws(StoreError) {
        var candidates: [Victim] = []
        try store.forEachUsedSegment(slot) { segment, entry in
            guard entry.segmentClass != .catalog else { return }
            use.usedBytes += ByteCount(UInt64(entry.committedLength))
            use.liveBytes += entry.liveBytes
            let victim = Victim(segment: segment, entry: entry)
            if victim.deadShare >= options.minimumDeadShare { candidates.append(victim) }
        }
        candidates.sort { ($1.deadShare, $0.segment) < ($0.deadShare, $1.segment) }
        projected = use
        for victim in candidates {
            // What is dead as a whole costs nothing: it is freed in any case.
            guard victim.entry.live == 0 || projected.amplification > options.targetAmplification else { continue }
            victims.append(victim)
            projected.usedBytes = projected.usedBytes - ByteCount(UInt64(victim.entry.committedLength)) + victim.liveBytes
        }
    }

    /// Bytes that are to be copied.
    var plannedBytes: ByteCount { victims.reduce(.zero) { $0 + $1.liveBytes } }
}

extension CheckpointStore {
    /// Calls `body` with every used segment of the generation of `slot`, ascending. One read for each leaf of the table.
    func forEachUsedSegment(_ slot: Slot, _ body: (SegmentIndex, SegmentEntry) throws(StoreError) -> Void) throws(StoreError) {
        var table = TableReader(store: self, slot: slot)
        for first in stride(from: UInt64(0), to: UInt64(slot.geometry.segmentCount), by: TableReader.fanOut) {
            guard let leaf = try table.leaf(of: SegmentIndex(first)) else { continue }
            for (index, entry) in leaf.entries.enumerated() where entry.isUsed { try body(SegmentIndex(first + UInt64(index)), entry) }
        }
    }
}
