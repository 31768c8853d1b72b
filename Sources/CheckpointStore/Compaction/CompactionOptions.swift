// What compaction is asked to do, and what it says it did.

import StoreFormat
import Threading
import Units

/// How a store is compacted.
public struct CompactionOptions: Sendable {
    /// How much space page runs and the index may take for each byte of them that lives: compaction ends there. At least 1. The same
    /// goes for the catalog (what leads to checkpoints and segments), by itself.
    public var targetAmplification: Double
    /// Segments with a smaller dead share are left alone: moving what lives in them costs more than it frees. Above 0, at most 1. Nil: as
    /// low as the target asks for, 0.15 at most and 0.01 at least.
    public var minimumDeadShare: Double?
    /// About how many bytes are moved for one commit. Nobody waits longer than that commit takes; what is moved is gone when it fails.
    public var batchBytes: ByteCount
    /// The most bytes that are read in a second to be moved, dead ones between those that live included; nil: as fast as the medium takes
    /// them.
    public var bytesPerSecond: ByteCount?
    /// Threads that read, check, compress and write at once; 1 does everything on the calling thread.
    public var parallelism: Int
    /// Only finds out what would be done.
    public var isDryRun: Bool
    /// Segments that are left alone as long as their entries in the segment table are these: the `leftAlone` of the report before this
    /// one, for who compacts a store again and again.
    public var leftAlone: [SegmentIndex: SegmentEntry] = [:]
    /// What the rate is measured with. Tests give their own.
    package var clock = RateClock.monotonic
    /// Called after every piece that was moved, by the working threads; must be quick.
    public var progress: (@Sendable (CompactionProgress) -> Void)?
    /// Asked between pieces, by the working threads: true ends compaction. What has been committed stays, the rest is dropped.
    public var isCancelled: (@Sendable () -> Bool)?

    public init(
        targetAmplification: Double = 1.1, minimumDeadShare: Double? = nil, batchBytes: ByteCount = .mebibytes(64),
        bytesPerSecond: ByteCount? = nil, parallelism: Int = WriterOptions.defaultParallelism, isDryRun: Bool = false,
        progress: (@Sendable (CompactionProgress) -> Void)? = nil, isCancelled: (@Sendable () -> Bool)? = nil
    ) {
        precondition(targetAmplification >= 1, "a store can't take less space than what lives in it")
        precondition(minimumDeadShare.map { $0 > 0 && $0 <= 1 } ?? true, "a share is above 0 and at most 1")
        precondition(batchBytes > .zero && parallelism >= 1)
        precondition(bytesPerSecond != .zero, "a rate is above 0")
        self.targetAmplification = targetAmplification
        self.minimumDeadShare = minimumDeadShare
        self.batchBytes = batchBytes
        self.bytesPerSecond = bytesPerSecond
        self.parallelism = parallelism
        self.isDryRun = isDryRun
        self.progress = progress
        self.isCancelled = isCancelled
    }

    /// When no segment has a larger dead share than the target has, all of them together don't either.
    var leastDeadShare: Double { minimumDeadShare ?? min(CompactionEstimate.leastDeadShare, max(0.01, 1 - 1 / targetAmplification)) }
}

/// How far compaction is.
public struct CompactionProgress: Sendable {
    /// Bytes copied so far. What has to be copied again, since a commit did not come about, counts again.
    public var movedBytes: ByteCount
    /// Bytes that are to be copied in all, as far as that is known.
    public var plannedBytes: ByteCount
    /// Segments freed so far.
    public var freedSegments: Int
}

/// What segments take, and what of that lives.
public struct SpaceUse: Sendable, Equatable {
    /// Bytes up to the end of what was written in each used segment.
    public var usedBytes = ByteCount.zero
    /// About how many of these belong to something that lives: by the counts of the segment table.
    public var liveBytes = ByteCount.zero

    /// Used bytes for each that lives; 1 for an empty store, infinite when nothing lives.
    public var amplification: Double {
        if usedBytes == .zero { return 1 }
        return liveBytes == .zero ? .infinity : Double(usedBytes.rawValue) / Double(liveBytes.rawValue)
    }
}

/// What compaction did; of a dry run, what it would do.
public struct CompactionReport: Sendable {
    /// Nothing was done.
    public init() {}

    /// The segments of page runs and index, before and after.
    public var before = SpaceUse()
    public var after = SpaceUse()
    /// The segments of the catalog, before and after. The one that commits append to is among them, and is never emptied.
    public var catalogBefore = SpaceUse()
    public var catalogAfter = SpaceUse()
    /// Whether page runs and index take more than the target afterwards: what is dead is spread too thinly, or could not be freed.
    public var missedTarget = false
    /// Bytes that were copied for what was committed, and the blocks among them.
    public var movedBytes = ByteCount.zero
    public var movedBlocks = 0
    /// Runs that were written anew without their dead pages; part of `movedBlocks`.
    public var rewrittenRuns = 0
    /// Nodes of the catalog, tables of segments and of moved blocks included, that stood in the catalog's segments; part of
    /// `movedBlocks`.
    public var rewrittenNodes = 0
    /// Segments that became free.
    public var freedSegments = 0
    /// Bytes that the medium got back: of these, and of segments that had become free before and could not be given back then, since
    /// somebody was still reading them. On devices, which don't say what takes space, bytes that were discarded.
    public var givenBackBytes = ByteCount.zero
    /// Commits that were made.
    public var commits = 0
    /// Blocks that could not be moved since they are damaged, as the errors that say where. Their segments are as they were.
    public var damaged: [StoreError] = []
    /// The segments of these, and those that the options named already: trying again would come to the same.
    public internal(set) var leftAlone: [SegmentIndex: SegmentEntry] = [:]
    /// Segments that were left out since somebody was appending to them, or something in them died meanwhile.
    public var skippedSegments = 0
    /// What kept it from going on, when there is more to win; what has been committed stays.
    public var obstacle: StoreError?
    /// Whether it ended because it was told to.
    public var wasCancelled = false

    mutating func leaveAlone(_ segments: [SegmentIndex: SegmentEntry]) { leftAlone.merge(segments) { $1 } }
}
