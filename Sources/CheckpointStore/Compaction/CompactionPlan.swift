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

    var deadShare: Double {
        guard entry.segmentClass != .catalog else { return 1 - Double(liveBytes.rawValue) / Double(max(1, entry.committedLength)) }
        return entry.written == 0 ? 1 : 1 - Double(min(entry.live, entry.written)) / Double(entry.written)
    }
    /// About how many of its bytes live.
    var liveBytes: ByteCount { entry.liveBytes }
    /// No fewer than the blocks that live in it: runs have a page or more, others some units of 64 bytes.
    var mostBlocks: Int { Int(entry.segmentClass == .runs ? entry.live : entry.live / 2) }
}

extension SegmentEntry {
    /// About how many of the bytes written to a segment live: as large a share of them as of the pages or units that were counted. Of
    /// the catalog's: just how many, since commits pad what they write there to whole units, and what is moved is packed closely.
    var liveBytes: ByteCount {
        if segmentClass == .catalog { return ByteCount(min(UInt64(live) * UInt64(blockAlignment), UInt64(committedLength))) }
        guard written > 0 else { return .zero }
        return ByteCount(UInt64(Double(committedLength) * Double(min(live, written)) / Double(written)))
    }
}

/// What emptying segments can win.
struct CompactionPlan {
    /// Page runs and index.
    private(set) var content = Part()
    /// The catalog: segments of class 3.
    private(set) var catalog = Part()

    /// Segments that are emptied by one rule.
    struct Part {
        var use = SpaceUse()
        /// The deadest first.
        var victims: [Victim] = []
        /// What will be in use when all victims are free.
        var projected = SpaceUse()

        fileprivate var candidates: [Victim] = []

        /// Bytes that are to be copied.
        var plannedBytes: ByteCount { victims.reduce(.zero) { $0 + $1.liveBytes } }

        /// Dead bytes of the victims.
        fileprivate var gain: ByteCount { use.usedBytes - projected.usedBytes }

        fileprivate mutating func leaveAlone() {
            victims = []
            projected = use
        }

        fileprivate mutating func add(_ victim: Victim, isFixed: Bool, _ options: CompactionOptions) {
            use.usedBytes += ByteCount(UInt64(victim.entry.committedLength))
            use.liveBytes += victim.liveBytes
            if !isFixed, victim.deadShare >= options.leastDeadShare { candidates.append(victim) }
        }

        fileprivate mutating func choose(_ options: CompactionOptions) {
            candidates.sort { ($1.deadShare, $0.segment) < ($0.deadShare, $1.segment) }
            projected = use
            for victim in candidates {
                // What is dead as a whole costs nothing: it is freed in any case.
                guard victim.entry.live == 0 || projected.amplification > options.targetAmplification else { continue }
                victims.append(victim)
                projected.usedBytes = projected.usedBytes - ByteCount(UInt64(victim.entry.committedLength)) + victim.liveBytes
            }
            candidates = []
        }
    }

    /// Reads the whole segment table of `slot`.
    ///
    /// - Parameter leftAlone: segments that are no victims while their entries are these.
    init(
        _ store: CheckpointStore, _ slot: Slot, _ options: CompactionOptions, leftAlone: [SegmentIndex: SegmentEntry]
    ) throws(StoreError) {
        try store.forEachUsedSegment(slot) { segment, entry in
            let victim = Victim(segment: segment, entry: entry)
            let isFixed = leftAlone[segment] == entry
            if entry.segmentClass == .catalog {
                catalog.add(victim, isFixed: isFixed || segment == slot.catalogSegment, options)
            } else {
                content.add(victim, isFixed: isFixed, options)
            }
        }
        content.choose(options)
        catalog.choose(options)
        if Double(catalog.gain.rawValue) < CompactionEstimate.leastDeadCatalog * Double(slot.geometry.segmentSize) { catalog.leaveAlone() }
    }
}

extension CheckpointStore {
    /// Calls `body` with every used segment of the generation of `slot`, ascending. Reads the way down to each leaf of the table.
    func forEachUsedSegment(_ slot: Slot, _ body: (SegmentIndex, SegmentEntry) throws(StoreError) -> Void) throws(StoreError) {
        var table = TableReader(store: self, slot: slot)
        for first in stride(from: UInt64(0), to: UInt64(slot.geometry.segmentCount), by: TableReader.fanOut) {
            guard let leaf = try table.leaf(of: SegmentIndex(first)) else { continue }
            for (index, entry) in leaf.entries.enumerated() where entry.isUsed { try body(SegmentIndex(first + UInt64(index)), entry) }
        }
    }
}
