// Bugs to order: what shows that the crash and fault programme would notice them.
//
// Invariant: an environment has none of them unless a test of this package puts them in; nothing outside the
// package can.

import Media
import StoreFormat

/// Mistakes that the engine makes when a test asks for them.
package struct EngineDefects: OptionSet, Sendable {
    package var rawValue: UInt32
    package init(rawValue: UInt32) { self.rawValue = rawValue }

    /// Blocks are used without a look at their checksums.
    package static let skipsChecksums = EngineDefects(rawValue: 1 << 0)
    /// A block that is sound in itself is taken for the one that was meant.
    package static let acceptsAnySoundBlock = EngineDefects(rawValue: 1 << 1)
    /// A run is read once to be verified and once more to be used.
    package static let readsTwice = EngineDefects(rawValue: 1 << 2)
    /// The nodes of a commit are not flushed before its slots are written.
    package static let skipsNodeFlush = EngineDefects(rawValue: 1 << 3)
    /// Only the first twin of a slot is written.
    package static let writesOneTwin = EngineDefects(rawValue: 1 << 4)
    /// A failed flush of the slots counts as a good one.
    package static let ignoresFlushFailures = EngineDefects(rawValue: 1 << 5)
    /// A failed flush of the slots is made good by another flush.
    package static let retriesFlushes = EngineDefects(rawValue: 1 << 6)
    /// Freed segments are used again at once.
    package static let reusesFreedSegmentsAtOnce = EngineDefects(rawValue: 1 << 7)
    /// Freed segments are used again while older generations are being read.
    package static let ignoresReaders = EngineDefects(rawValue: 1 << 8)
    /// A checkpoint is committed though its parent is gone.
    package static let skipsParentCheck = EngineDefects(rawValue: 1 << 9)
    /// A checkpoint is committed though its name is taken.
    package static let skipsNameCheck = EngineDefects(rawValue: 1 << 10)
    /// A commit builds on the newest slot this handle knows, not on the newest there is.
    package static let commitsOnStaleBase = EngineDefects(rawValue: 1 << 11)
    /// A writer appends where a segment ended before it had claimed it.
    package static let trustsLengthsFromBeforeTheClaim = EngineDefects(rawValue: 1 << 12)
    /// What only the base of a patch leaf names is taken for dead.
    package static let forgetsPatchBases = EngineDefects(rawValue: 1 << 13)
    /// The newest slot that is left counts, though newer ones must have been there.
    package static let overlooksLostSlots = EngineDefects(rawValue: 1 << 14)
    /// A page's hash is taken from the caller's memory, its stored bytes from a copy.
    package static let hashesTheSource = EngineDefects(rawValue: 1 << 15)
    /// A store whose last flush failed is written to without having been verified.
    package static let trustsPoisonedStores = EngineDefects(rawValue: 1 << 16)
    /// The torn slot of a commit that was cut short stays where the next slot comes.
    package static let leavesRemains = EngineDefects(rawValue: 1 << 17)
    /// A deletion compares with the nearest living ancestor and descendants alone, not with other branches.
    package static let forgetsSiblings = EngineDefects(rawValue: 1 << 18)
    /// A moved block is looked up by its place alone, whoever wrote it.
    package static let forwardsWithoutBirth = EngineDefects(rawValue: 1 << 19)
    /// Pages of a moved run are looked for where they were before.
    package static let movesWithoutRanks = EngineDefects(rawValue: 1 << 20)
    /// What was moved into a segment that is compacted again is still looked for there.
    package static let leavesChains = EngineDefects(rawValue: 1 << 21)
    /// A deletion counts as dead what no neighbour named when it walked, whoever has become one since.
    package static let overlooksNewNeighbours = EngineDefects(rawValue: 1 << 22)
    /// Compaction frees segments that somebody is appending to.
    package static let compactsWithoutClaims = EngineDefects(rawValue: 1 << 23)
    /// Blocks are moved without a look at what was copied.
    package static let movesUnverified = EngineDefects(rawValue: 1 << 24)
    /// A repair takes its first guess of the right length for the block that was committed.
    package static let derivesUnchecked = EngineDefects(rawValue: 1 << 25)
    /// A repair of the lineage makes roots of checkpoints whose entries are lost.
    package static let forgetsDescent = EngineDefects(rawValue: 1 << 28)
}

extension CheckpointStore {
    func has(_ defect: EngineDefects) -> Bool { environment.defects.contains(defect) }

    /// Throws unless `bytes` are those of the block that `pointer` means.
    func check(_ bytes: RawSpan, _ pointer: BlockPointer) throws(FormatError) {
        guard !environment.defects.isEmpty else { return try Block.verify(bytes, pointer: pointer) }
        if has(.skipsChecksums) { return }
        var expected = pointer
        if has(.acceptsAnySoundBlock) {
            let header = try Block.peek(bytes)
            expected.checksum = header.checksum
            expected.birth = header.birth
        }
        try Block.verify(bytes, pointer: expected)
    }
}
