// What verifying finds: damaged places, and what each of them takes away.
//
// Invariants:
// - A damaged block is one entry, however many checkpoints reach it.
// - Pages that no loss names can be read, in every checkpoint.

import Media
public import StoreFormat
public import Units

/// A checkpoint that lost something.
public struct AffectedCheckpoint: Hashable, Sendable {
    public var id: CheckpointID
    /// Its name; the id in hexadecimal digits where its record and the catalog by name can't be read.
    public var name: String
}

/// What one damaged place takes away from one region, or from whole checkpoints, alike for all `checkpoints`.
public struct DamageLoss: Sendable {
    /// Those that lose it, in the order in which they were verified.
    public var checkpoints: [AffectedCheckpoint]
    /// The region; nil: the checkpoints can't be opened at all.
    public var region: String?
    /// The pages of the region that can't be read; empty when `region` is nil.
    public var pages: PageRanges
    /// Pages that the region has in these checkpoints.
    public var regionPages: PageCount
}

/// One damaged place and everything that it takes away.
public struct Damage: Sendable, CustomStringConvertible {
    /// The block that can't be used, as its pointer names it: kind, segment, offset, length, birth, checksum. Nil for what is no
    /// single block: superblock slots, segment headers, counts that disagree.
    public var block: BlockPointer?
    /// Where on the medium, when it has one place.
    public var offset: MediumOffset?
    /// What is wrong, as a phrase.
    public var reason: String
    /// What can't be read because of it. Empty: nothing that a checkpoint needs (the segment table, slots of older generations,
    /// pages that only the base of patch leaves still names).
    public var losses: [DamageLoss]

    /// How many checkpoints lose something by it.
    public var checkpointCount: Int { Set(losses.flatMap { $0.checkpoints.map(\.id) }).count }

    /// True for what concerns the store as a whole: slots, segments, catalog. Checkpoints may be readable all the same; writing is not safe.
    public var concernsStore: Bool {
        guard let block else { return losses.isEmpty || losses.contains { $0.region == nil } }
        return SegmentClass(holding: block.kind) == .catalog
    }

    /// The place and the reason, and the first few losses: one line.
    public var description: String {
        let what = StoreError(.corrupt, place.isEmpty ? reason : "\(place): \(reason)").description
        return losses.isEmpty ? what : what + "; lost: " + losses.prefix(3).map(\.description).joined(separator: "; ") + (losses.count > 3 ? "; …" : "")
    }

    /// Where it is, in words.
    public var place: String {
        var parts: [String] = []
        if let block { parts.append("\(block.kind) at segment \(block.segment) + \(block.offset), \(block.storedLength) bytes") }
        if let offset { parts.append("offset \(offset)") }
        return parts.joined(separator: ", ")
    }
}

extension DamageLoss: CustomStringConvertible {
    /// How many names and ranges `description` has at most.
    private static let listed = 3

    /// "checkpoint a and 9,999 more, region ram, pages 0..<16".
    public var description: String {
        let names = checkpoints.prefix(Self.listed).map(\.name).joined(separator: ", ")
        var text = checkpoints.count == 1 ? "checkpoint \(names)" : "checkpoints \(names)"
        if checkpoints.count > Self.listed { text += " and \(Self.grouped(checkpoints.count - Self.listed)) more" }
        guard let region else { return text + ", whole" }
        let ranges = pages.ranges.prefix(Self.listed).map { "\($0.lowerBound)..<\($0.upperBound)" }.joined(separator: ", ")
        text += ", region \(region), pages \(ranges)"
        if pages.ranges.count > Self.listed { text += " and \(Self.grouped(pages.ranges.count - Self.listed)) more ranges" }
        return text
    }

    /// 9990 as "9,990".
    private static func grouped(_ number: Int) -> String {
        var digits = Array(String(number))
        for place in stride(from: digits.count - 3, to: 0, by: -3) { digits.insert(",", at: place) }
        return String(digits)
    }
}

/// What is left of a region that has lost pages.
public struct DamagedRegion: Sendable {
    public var checkpoint: AffectedCheckpoint
    /// Nil: the whole checkpoint is lost.
    public var region: String?
    /// All pages that damage takes away; the others can be read.
    public var lost: PageRanges
    /// Pages of the region.
    public var pageCount: PageCount
}

/// One lost range of one checkpoint: the list of damages taken apart, for those who want neither groups nor sets.
public struct LostPlace: Sendable {
    /// Nil for what concerns the store as a whole.
    public var checkpoint: String?
    public var region: String?
    public var pages: Range<PageIndex>?
    public var offset: MediumOffset?
    public var reason: String
}

/// What verifying found.
public struct VerifyReport: Sendable {
    public var generation: Generation
    /// Checkpoints that were looked at.
    public var checkpointCount = 0
    /// Blocks and bytes that were read and found sound, each counted once.
    public var blocks = 0
    public var bytes = ByteCount.zero
    /// Pages of runs, and bytes of other blocks, that the segment table counts as alive though nothing reaches them: no damage, but space that
    /// deleting does not give back. Other programs may leave some. Not known (zero) where there is damage, or for a single checkpoint.
    public var lostPages = PageCount.zero
    public var lostBytes = ByteCount.zero
    /// Empty when all is well. In no order that means something.
    public var damages: [Damage] = []
    public var isSound: Bool { damages.isEmpty }

    /// The damages taken apart: one entry for each range of each checkpoint, and one for each damage without a loss. As long as
    /// damages times checkpoints.
    public var lostPlaces: [LostPlace] {
        damages.flatMap { damage -> [LostPlace] in
            guard !damage.concernsStore, !damage.losses.isEmpty else {
                return [LostPlace(offset: damage.offset, reason: damage.reason)]
            }
            return damage.losses.flatMap { loss in
                loss.checkpoints.flatMap { checkpoint in
                    (loss.region == nil ? [nil] : loss.pages.ranges.map { $0 as Range<PageIndex>? }).map { pages in
                        LostPlace(checkpoint: checkpoint.name, region: loss.region, pages: pages, offset: damage.offset, reason: damage.reason)
                    }
                }
            }
        }
    }

    /// What remains: for every checkpoint and region that lost something, all that it lost. What is not listed can be read whole.
    public var damagedRegions: [DamagedRegion] {
        struct Key: Hashable {
            var checkpoint: CheckpointID
            /// The bytes of its name.
            var region: [UInt8]?
        }
        var found: [Key: (checkpoint: AffectedCheckpoint, region: String?, ranges: [Range<PageIndex>], pages: PageCount)] = [:]
        var order: [Key] = []
        for loss in damages.flatMap(\.losses) {
            for checkpoint in loss.checkpoints {
                let key = Key(checkpoint: checkpoint.id, region: loss.region.map { Array($0.utf8) })
                if found[key] == nil { order.append(key) }
                found[key, default: (checkpoint, loss.region, [], loss.regionPages)].ranges += loss.pages.ranges
            }
        }
        return order.compactMap { key in
            found[key].map {
                DamagedRegion(checkpoint: $0.checkpoint, region: $0.region, lost: PageRanges($0.ranges), pageCount: $0.pages)
            }
        }
    }
}
