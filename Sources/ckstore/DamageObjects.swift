// Damages as the commands print them: all of them as JSON, the first few losses of each for people.

import CheckpointStore
import StoreFormat
import Units

/// One damaged place with everything that it takes away.
struct DamageObject: Encodable {
    struct Loss: Encodable {
        /// Absent: the checkpoints are lost whole.
        var region: String?
        var pages: [PageRangeObject]
        var lostPages: UInt64
        var checkpoints: [String]
    }

    /// What should be there; absent for what is no single block.
    var kind: String?
    var segment: UInt64?
    var segmentOffsetBytes: UInt32?
    var lengthBytes: UInt32?
    var offsetBytes: UInt64?
    var message: String
    var checkpointCount: Int
    var losses: [Loss]

    init(_ damage: Damage) {
        kind = damage.block?.kind.name
        segment = damage.block?.segment.rawValue
        segmentOffsetBytes = damage.block?.offset.rawValue
        lengthBytes = damage.block?.storedLength
        offsetBytes = damage.offset?.rawValue
        message = damage.reason
        checkpointCount = damage.checkpointCount
        losses = damage.losses.map { loss in
            Loss(
                region: loss.region, pages: loss.pages.ranges.map(PageRangeObject.init), lostPages: loss.pages.count.rawValue,
                checkpoints: loss.checkpoints.map(\.name))
        }
    }
}

/// What is left of a region, or of a checkpoint, that has lost something.
struct DamagedRegionObject: Encodable {
    var checkpoint: String
    /// Absent: the checkpoint is lost whole.
    var region: String?
    var lostPages: [PageRangeObject]
    var readablePages: UInt64
    var totalPages: UInt64

    init(_ damaged: DamagedRegion) {
        checkpoint = damaged.checkpoint.name
        region = damaged.region
        lostPages = damaged.lost.ranges.map(PageRangeObject.init)
        readablePages = (damaged.pageCount - damaged.lost.count).rawValue
        totalPages = damaged.pageCount.rawValue
    }
}

extension VerifyReport {
    /// How many entries of a list people get to see.
    private static let shown = 10

    /// The damages for people: the first few of each kind of line, and how many more there are.
    var damageText: String {
        var text = ""
        for damage in damages.prefix(Self.shown) {
            text += "ckstore: damaged: \(printable(damage.place.isEmpty ? damage.reason : "\(damage.place): \(damage.reason)"))\n"
            for loss in damage.losses.prefix(Self.shown) { text += "  lost: \(printable(loss.description))\n" }
            text += Self.more(damage.losses.count, "  ")
            if damage.losses.isEmpty { text += "  no checkpoint needs it\n" }
        }
        text += Self.more(damages.count, "")
        let regions = damagedRegions
        for region in regions.prefix(Self.shown) { text += "  \(printable(Self.remains(region)))\n" }
        return text + Self.more(regions.count, "  ")
    }

    /// What may help against the damage, for people.
    var hint: String {
        let kinds = damages.compactMap(\.block?.kind)
        var text = ""
        if kinds.contains(where: { $0 != .run && $0.isForwarded }) {
            text += "ckstore: blocks of the index may be derived from others: `ckstore repair`, best with a replica (--from)\n"
        }
        if kinds.contains(.run) { text += "ckstore: pages come back from a replica: `ckstore repair --from`\n" }
        return text
    }

    private static func remains(_ damaged: DamagedRegion) -> String {
        guard let region = damaged.region else { return "nothing of checkpoint \(damaged.checkpoint.name) can be opened" }
        let rest = damaged.pageCount - damaged.lost.count
        return "of checkpoint \(damaged.checkpoint.name), region \(region), \(rest) of \(damaged.pageCount) pages can still be read"
    }

    private static func more(_ count: Int, _ indent: String) -> String {
        count > shown ? "\(indent)and \(count - shown) more (--json lists all)\n" : ""
    }
}
