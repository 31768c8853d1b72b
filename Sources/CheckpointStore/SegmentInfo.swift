// What single segments hold, and what could be won by writing anew what is alive in them.
//
// Invariant: no segment has more live bytes than committed ones.

import StoreFormat
import Units

/// A segment that is in use.
public struct SegmentInfo: Sendable, Hashable {
    public var segment: SegmentIndex
    public var segmentClass: SegmentClass
    /// Bytes from its start that have been written; the next writer goes on there.
    public var committedBytes: ByteCount
    /// Bytes of them that checkpoints, or the catalog, reach.
    public var liveBytes: ByteCount
    /// Who wrote here last: the id of a checkpoint, of classes `runs` and `index`; it may have been deleted since.
    public var lastWriter: CheckpointID?
    /// The generation that wrote here last, of class `catalog`.
    public var lastGeneration: Generation?
    /// Whether commits append here now, of class `catalog`: compaction leaves that one as it is.
    public var isAppendedTo: Bool

    /// Committed bytes that nothing reaches; headers, commit records and padding count as such.
    public var deadBytes: ByteCount { committedBytes - liveBytes }
    /// The part of the committed bytes that is alive, 0...1.
    public var livingShare: Double {
        committedBytes > .zero ? Double(liveBytes.rawValue) / Double(committedBytes.rawValue) : 0
    }

    /// - Parameters:
    ///   - reachableBytes: what a walk through the trees found here; not used for the catalog, whose entry counts bytes.
    ///   - catalogSegment: where commits append.
    init(_ segment: SegmentIndex, _ entry: SegmentEntry, reachableBytes: UInt64, catalogSegment: SegmentIndex?) {
        guard let segmentClass = entry.segmentClass else { preconditionFailure("a used segment has a class") }
        self.segment = segment
        self.segmentClass = segmentClass
        committedBytes = ByteCount(UInt64(entry.committedLength))
        let isCatalog = segmentClass == .catalog
        let live = isCatalog ? UInt64(entry.live) * UInt64(blockAlignment) : reachableBytes
        liveBytes = min(ByteCount(live), committedBytes)
        isAppendedTo = segment == catalogSegment
        lastWriter = isCatalog ? nil : CheckpointID(entry.birth.rawValue)
        lastGeneration = isCatalog ? Generation(entry.birth.rawValue) : nil
    }
}

/// The segments of one class together.
public struct SegmentClassInfo: Sendable, Hashable {
    public var segmentClass: SegmentClass
    public var segmentCount: Int
    public var liveBytes: ByteCount
    public var deadBytes: ByteCount
    /// Bytes of these segments that nobody has written to yet.
    public var unwrittenBytes: ByteCount
    /// Segments of which at least `CompactionEstimate.leastDeadShare` is dead.
    public var mostlyDeadSegments: Int
}

/// What compaction would give back, as far as the living shares tell.
public struct CompactionEstimate: Sendable, Hashable {
    /// Segments that would be written anew.
    public var victimSegments: Int
    /// Bytes that would be moved.
    public var movedBytes: ByteCount
    /// Segments that would be free afterwards, and were not before.
    public var gainedSegments: Int
    /// The same in bytes.
    public var gainedBytes: ByteCount

    /// A segment with less dead space than this is left alone.
    public static let leastDeadShare = 0.15
    /// Segments of the catalog are left alone while what is dead in all that are worth it is less than this part of one. (Writing its nodes
    /// anew makes others dead, on the way to them: a small catalog would be written anew each time.)
    public static let leastDeadCatalog = 0.5
}

extension StoreInfo {
    /// The used segments of each class.
    public var classes: [SegmentClassInfo] {
        SegmentClass.allCases.map { segmentClass in
            let members = segments.filter { $0.segmentClass == segmentClass }
            let live = members.reduce(ByteCount.zero) { $0 + $1.liveBytes }
            let committed = members.reduce(ByteCount.zero) { $0 + $1.committedBytes }
            return SegmentClassInfo(
                segmentClass: segmentClass, segmentCount: members.count, liveBytes: live, deadBytes: committed - live,
                unwrittenBytes: ByteCount(UInt64(members.count) * UInt64(geometry.segmentSize)) - committed,
                mostlyDeadSegments: members.count { $0.isWorthMoving })
        }
    }

    /// Bytes kept back so that deleting and compacting work in a full store, as far as they are free.
    public var reserveBytes: ByteCount {
        let unused = UInt64(geometry.segmentCount) - UInt64(segments.count)
        return ByteCount(min(unused, UInt64(reserveSegments)) * UInt64(geometry.segmentSize))
    }

    /// What writing anew what lives in the segments with the most dead space would give back. Classes don't mix, and what was
    /// moved fills whole segments.
    public var compaction: CompactionEstimate {
        var estimate = CompactionEstimate(victimSegments: 0, movedBytes: .zero, gainedSegments: 0, gainedBytes: .zero)
        for segmentClass in SegmentClass.allCases {
            let victims = segments.filter { $0.segmentClass == segmentClass && $0.isWorthMoving }
            let moved = victims.reduce(ByteCount.zero) { $0 + $1.liveBytes }
            let needed = (moved.rawValue + UInt64(geometry.segmentSize) - 1) / UInt64(geometry.segmentSize)
            let dead = victims.reduce(ByteCount.zero) { $0 + $1.deadBytes }
            let isTooLittle =
                segmentClass == .catalog && Double(dead.rawValue) < CompactionEstimate.leastDeadCatalog * Double(geometry.segmentSize)
            guard needed < UInt64(victims.count), !isTooLittle else { continue }
            estimate.victimSegments += victims.count
            estimate.movedBytes += moved
            estimate.gainedSegments += victims.count - Int(needed)
        }
        estimate.gainedBytes = ByteCount(UInt64(estimate.gainedSegments) * UInt64(geometry.segmentSize))
        return estimate
    }
}

extension SegmentInfo {
    fileprivate var isWorthMoving: Bool {
        !isAppendedTo && Double(deadBytes.rawValue) >= CompactionEstimate.leastDeadShare * Double(committedBytes.rawValue)
    }
}
