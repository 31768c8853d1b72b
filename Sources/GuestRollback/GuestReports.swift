// What guests are made with, and what is told of their checkpoints and rollbacks.
//
// Invariant: times are of the monotonic clock.

import Units

/// Bounds of a guest.
public struct GuestOptions: Sendable {
    /// Old content that the log holds before it forces a checkpoint.
    public var logLimit: PageCount
    /// Bytes of I/O buffers that are kept before they force a checkpoint.
    public var keptLimit: ByteCount
    /// Requests that a guest may have unfinished or held.
    public var queueDepth: Int
    /// Bytes of one request.
    public var largestTransfer: ByteCount
    /// How often a checkpoint is taken by itself, from the first one on, when there is anything since the last one: what a guest writes to its
    /// devices is held for about so long. nil: its owner takes them all.
    public var intervalMilliseconds: Int?
    /// Held requests are let go when the checkpoint that knows of them has been saved, and not when it is taken: a guest that is brought back
    /// elsewhere from its last saved checkpoint then finds its devices as that checkpoint knows them.
    public var releasesWhenSaved: Bool

    public init(
        logLimit: PageCount = PageCount(covering: .gibibytes(1)), keptLimit: ByteCount = .mebibytes(64), queueDepth: Int = 256,
        largestTransfer: ByteCount = .mebibytes(1), intervalMilliseconds: Int? = nil, releasesWhenSaved: Bool = false
    ) {
        self.logLimit = logLimit
        self.keptLimit = keptLimit
        self.queueDepth = queueDepth
        self.largestTransfer = largestTransfer
        self.intervalMilliseconds = intervalMilliseconds
        self.releasesWhenSaved = releasesWhenSaved
    }
}

/// What a checkpoint of a guest came to.
public struct GuestCheckpointReport: Sendable, Equatable {
    /// How long the guest stood still.
    public var stopMicroseconds: UInt64
    /// Pages written since the checkpoint before, protected again.
    public var writtenPages: PageCount
    /// Held requests that went to their devices.
    public var releasedRequests: Int
    /// Completed requests whose buffers were kept until now.
    public var freedRequests: Int
}

/// What a rollback of a guest came to.
public struct GuestRollbackReport: Sendable, Equatable {
    /// How long the guest stood still.
    public var stopMicroseconds: UInt64
    /// Pages whose old content was put back.
    public var restoredPages: PageCount
    /// Held requests that were forgotten: the guest issues them again, or not.
    public var discardedRequests: Int
    /// Completed requests that the guest is told of again, from kept buffers.
    public var deliveredAgain: Int
}

/// A guest's present I/O.
public struct GuestQueueReport: Sendable, Equatable {
    /// Issued and not yet let go.
    public var held: [RequestID]
    /// Let go and not finished.
    public var unfinished: [RequestID]
    /// Finished since the checkpoint, kept.
    public var completed: [RequestID]
    /// Bytes of all their buffers.
    public var keptBytes: ByteCount
}
