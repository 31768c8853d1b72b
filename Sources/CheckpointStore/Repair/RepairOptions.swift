// What a repair is asked to do, and what it says it did.
//
// Invariant: what is not listed as remaining was found sound by a verification that came after the last change.

import StoreFormat
public import Units

/// How a store is repaired.
public struct RepairOptions: Sendable {
    /// Repairs only what this checkpoint needs; nil: everything, and counts anew what lives in each segment.
    public var checkpoint: String?
    /// Also unpacks every run and compares every page with its hash, to find damage that checksums don't show.
    public var checksPages: Bool
    /// Threads that verify at once.
    public var parallelism: Int
    /// Only finds out what could be repaired.
    public var isDryRun: Bool
    /// Guesses at one block of the index, at most.
    public var mostGuesses: Int
    /// Called while verifying, by the working threads; must be quick.
    public var progress: (@Sendable (VerifyProgress) -> Void)?
    /// Asked between blocks: true ends the repair. What has been repaired by then stays.
    public var isCancelled: (@Sendable () -> Bool)?

    public init(
        checkpoint: String? = nil, checksPages: Bool = false, parallelism: Int = WriterOptions.defaultParallelism, isDryRun: Bool = false,
        mostGuesses: Int = 1 << 15, progress: (@Sendable (VerifyProgress) -> Void)? = nil, isCancelled: (@Sendable () -> Bool)? = nil
    ) {
        precondition(parallelism >= 1)
        self.checkpoint = checkpoint
        self.checksPages = checksPages
        self.parallelism = parallelism
        self.isDryRun = isDryRun
        self.mostGuesses = mostGuesses
        self.progress = progress
        self.isCancelled = isCancelled
    }
}

/// A block of the index that nobody had a copy of, made again as it was from what stands around it.
public struct DerivedBlock: Sendable {
    /// As trees name it.
    public var block: BlockPointer
    /// Whether it had to be written to another place, which the forwarding tables lead to.
    public var isForwarded: Bool
}

/// Damage that a repair had to leave.
public struct RemainingDamage: Sendable {
    /// As the last verification found it.
    public var damage: Damage
    /// Why it stays, and what to do about it: sentences.
    public var remedy: String
}

/// What a repair found and did; of a dry run, what it would do.
public struct RepairReport: Sendable {
    /// What the first verification found.
    public var found: VerifyReport
    /// Blocks that stand again where they were, byte for byte: copied from the replica, or runs made of its pages.
    public var rewrittenBlocks = 0
    /// Blocks of the index that were derived from others of this store, byte for byte. In the order in which that was done.
    public var derived: [DerivedBlock] = []
    /// Runs that were written anew elsewhere and are led to by the forwarding tables.
    public var forwardedRuns = 0
    /// Pages of runs that were had from the replica.
    public var restoredPages = PageCount.zero
    /// Superblock slots that were written again from their twins.
    public var rewrittenSlots = 0
    /// Segments of which the segment table counted too much or too little as alive.
    public var recountedSegments = 0
    /// Segments in which nothing lives any more, and which are free now.
    public var freedSegments = 0
    /// The trees that the store keeps of itself: which of them were written anew, and what could not be had again.
    public var trees = TreeRepairReport()
    /// Checkpoints that lost something and that the replica does not have. In no order that means something.
    public var missingInReplica: [AffectedCheckpoint] = []
    /// True when the replica has none of the checkpoints that lost something.
    public var isReplicaForeign = false
    /// What stays damaged; of a dry run, everything that was found.
    public var remaining: [RemainingDamage] = []
    /// What kept it from going on, if anything did; what was repaired before stays.
    public var obstacle: StoreError?
    /// Whether it ended because it was told to.
    public var wasCancelled = false

    init(found: VerifyReport) { self.found = found }

    /// Blocks, slots and counts that were put right.
    var changes: Int {
        rewrittenBlocks + derived.count + forwardedRuns + rewrittenSlots + recountedSegments + freedSegments + trees.trees.count
    }
    /// True when nothing stays damaged, and nothing was lost.
    public var isWhole: Bool { trees.losses.isEmpty && remaining.isEmpty && obstacle == nil && !wasCancelled }
}
