// What salvage brought back, and what it could not.
//
// Invariant: a page of a checkpoint is read, listed as lost, or of a region whose other pages are said to be unknown; never silently zero.

import Media
public import StoreFormat
public import Units

/// How much of a checkpoint salvage has found.
public enum SalvageState: String, Sendable, CaseIterable {
    /// Everything: it is as it was.
    case whole
    /// Its record, but not all pages.
    case partial
    /// No record, but its index: regions with all that the index names. Regions that it took over unchanged are not known.
    case index
    /// Runs alone: the pages that it stored itself.
    case runs
    /// Nothing that could be read.
    case lost
}

/// A region that salvage brought back.
public struct SalvagedRegion: Sendable {
    /// Its name, or `region-` and its key where the name is not known.
    public var name: String
    public var isNameKnown: Bool
    public var kind: RegionKind
    /// Where the record is gone: up to the last page that was found.
    public var byteLength: ByteCount
    /// Pages with content that was read, those shared with the parent included.
    public var readPages: PageCount
    /// Pages that can't be read; zero in the new checkpoint.
    public var lost: PageRanges
    /// True where nothing is known of the pages that are neither read nor lost, since the record is gone; else those are zero.
    public var hasUnknownPages: Bool
}

/// A checkpoint that salvage found.
public struct SalvagedCheckpoint: Sendable {
    public var id: CheckpointID
    /// Its name in the damaged store; nil: not known.
    public var oldName: String?
    /// Its name in the new store (with a dry run: the one it would have); nil: nothing of it could be read.
    public var name: String?
    /// Its parent in the new store.
    public var parent: String?
    public var state: SalvageState
    public var regions: [SalvagedRegion]

    /// Pages that can't be read, in all regions.
    public var lostPages: PageCount { regions.reduce(.zero) { $0 + $1.lost.count } }
}

/// What salvage found and did.
public struct SalvageReport: Sendable {
    /// The damaged store's identity and layout.
    public var uuid: StoreUUID
    public var segmentSize: ByteCount
    public var segmentCount: UInt32
    /// The newest generation whose superblock slot is left; nil: none, the layout is that of the segments' headers.
    public var slotGeneration: Generation?
    /// True when slots and catalog are whole: what they name is all there was.
    public var isCatalogWhole: Bool
    /// Segments with blocks, and segments of an earlier store, which were left out.
    public var scannedSegments: Int
    public var foreignSegments: Int
    /// Bytes that the medium failed to read while it was scanned.
    public var unreadableBytes: ByteCount
    /// False when the slots are gone, and with them the seed of page hashes: pages are covered by the checksums of their runs alone.
    public var checksPageHashes: Bool
    /// Births of runs that nothing proves to be of a committed checkpoint: left out unless asked for.
    public var unprovenCheckpoints: Int
    /// Checkpoints that were still being received: left out, since their senders have all of them.
    public var partialCheckpoints: Int
    /// In the order in which they were copied: parents first.
    public var checkpoints: [SalvagedCheckpoint]

    /// What ended the work before its end: a target that is full, or can't be written to. What had been copied by then stays.
    public var obstacle: StoreError?

    /// True when all that the store had is there again, for sure.
    public var isWhole: Bool { isCatalogWhole && obstacle == nil && checkpoints.allSatisfy { $0.state == .whole } }
}

/// How far salvage is.
public struct SalvageProgress: Sendable {
    public enum Step: String, Sendable { case scanning, copying }
    public var step: Step
    /// Scanning: bytes of the medium; copying: bytes of pages.
    public var done: ByteCount
    public var total: ByteCount?
}

/// How to salvage.
public struct SalvageOptions: Sendable {
    /// Threads that copy at once.
    public var parallelism: Int
    /// Also bring back runs of checkpoints that may never have been committed.
    public var includesUnproven: Bool
    /// Called by the working threads; must be quick.
    public var progress: (@Sendable (SalvageProgress) -> Void)?

    public init(
        parallelism: Int = WriterOptions.defaultParallelism, includesUnproven: Bool = false,
        progress: (@Sendable (SalvageProgress) -> Void)? = nil
    ) {
        precondition(parallelism >= 1)
        self.parallelism = parallelism
        self.includesUnproven = includesUnproven
        self.progress = progress
    }
}
