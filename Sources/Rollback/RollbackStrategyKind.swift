// Which of the six strategies keeps a checkpoint of memory, and how it is set up.
//
// Invariant: a kind's raw value is its name on command lines and in records, and never changes.

import CheckpointCore
import Media
import Units

/// The six ways to keep a checkpoint of memory that can be rolled back to [system D].
public enum RollbackStrategyKind: String, Sendable, Codable, CaseIterable {
    /// A shadow holds the checkpoint. What was written is gathered in a buffer at the checkpoint; sealing the buffer commits, and it drains
    /// into the shadow while writers run.
    case postImageLocal
    /// As before, but buffer and shadow are in a backup process, which survives this one.
    case postImageRemote
    /// A shadow and one bit for each page: what was written is copied to the shadow while writers stand still.
    case postImageBitmap
    /// A shadow and two bits for each page: swapping the bitmaps commits, and copying goes on while writers run.
    case postImageTwoBitmaps
    /// Two locations for each page and states that say which of them holds the checkpoint: nothing is copied at a checkpoint.
    case postImageBlockStates
    /// A log of what was overwritten: no shadow, nothing is copied at a checkpoint.
    case preImageLog
}

/// How memory's checkpoints are kept. Unused fields of a strategy are passed over.
public struct RollbackOptions: Sendable {
    /// Where a copy of the checkpoint outlives this process: any medium, opened for writing and not used for anything else; it grows to the size
    /// that `RollbackImage.requiredSize` says where it can. Nil: memory only. The remote strategy takes none: its backup process has it.
    public var medium: (any Medium)?
    /// The longest device state that a checkpoint on a medium has room for.
    public var stateCapacity = ByteCount.kibibytes(64)
    /// True when whatever the medium holds may be lost: something that is no image of this memory's size.
    public var replacesContent = false
    /// How many pages one epoch may write before the buffer (postImageLocal) or the log (preImageLog) is full; nil: all of them. At least
    /// one unit of the memory. The backup process has its own limit.
    public var capacity: PageCount?
    /// Called on a thread of its own when a buffer or log is full: has to stop the writers and take a checkpoint. Writers of further pages
    /// wait until it has been taken (or memory has been rolled back), so that nothing is lost. One that waits in a write counts as stopped.
    /// Needed when anything can overflow: `make` says so.
    public var forceCheckpoint: (@Sendable () -> Void)?
    /// The remote strategy's way to its backup: called for the first connection, and again when that has broken.
    public var connect: (@Sendable () throws(EngineError) -> BackupSocket)?
    /// Who this is to the backup: random, or that of the `TakenOverImage` that memory comes from.
    public var identity = BackupIdentity.random()
    /// The longest wait for an answer of the backup process.
    public var answerMilliseconds = 30_000

    public init() {}
}

/// What a strategy has done and what it takes. Page counts are of 4 KiB.
public struct RollbackStatistics: Sendable, Equatable {
    /// First writes of an epoch to a unit of memory, those announced for devices included.
    public var firstWrites = 0
    public var checkpoints = 0
    public var rollbacks = 0
    /// Checkpoints that were asked for because a buffer or log was full.
    public var forcedCheckpoints = 0
    /// Pages copied while writers stood still for the last checkpoint.
    public var pagesCopiedAtCheckpoint = PageCount.zero
    /// Pages copied, for all checkpoints, while writers ran.
    public var pagesCopiedInBackground = PageCount.zero
    /// Pages copied before their first write: into the log, the other location, or the shadow.
    public var pagesCopiedFirst = PageCount.zero
    /// Pages brought back by the last rollback.
    public var pagesRestored = PageCount.zero
    /// Memory for shadows and second locations, of this process.
    public var shadowBytes = ByteCount.zero
    /// Memory that buffer or log takes when it is full.
    public var bufferBytes = ByteCount.zero
    /// The most of it that was used so far.
    public var usedBufferBytes = ByteCount.zero
    /// Memory for bits and states.
    public var bitmapBytes = ByteCount.zero

    public init() {}
}
