// Damages while they are found, numbered, with the checkpoints that each concerns.
//
// Invariant: a damage gets its number once; losses are added to it for each checkpoint, grouped where they are alike.

import StoreFormat
import Units

/// Not thread-safe by itself.
struct DamageLog: Sendable {
    private struct LossKey: Hashable {
        var region: String?
        var pages: [Range<PageIndex>]
        var regionPages: PageCount
    }

    private struct Entry {
        var damage: Damage
        /// A tree leads to it, but behind the end of the region.
        var isOutside = false
        var groups: [LossKey: Int] = [:]
    }

    private var entries: [Entry] = []
    /// Blocks that are damaged whoever uses them.
    private var known: [BlockPointer: Int] = [:]

    var count: Int { entries.count }

    /// Notes a damage and returns its number. `isOfBlock`: the block's own bytes are wrong, so that it need not be read again.
    mutating func note(_ error: StoreError, block: BlockPointer?, isOfBlock: Bool = false) -> Int {
        if isOfBlock, let block, let number = known[block] { return number }
        entries.append(Entry(damage: Damage(block: block, offset: error.offset, reason: error.reason, losses: [])))
        if isOfBlock, let block { known[block] = entries.count - 1 }
        return entries.count - 1
    }

    /// The damage of a block whose own bytes are wrong.
    func number(of block: BlockPointer) -> Int? { known.isEmpty ? nil : known[block] }

    /// Somebody's tree leads there from behind its region's end: by that alone it is nobody's damage.
    mutating func noteOutside(_ number: Int) { entries[number].isOutside = true }

    /// A checkpoint loses pages of a region; `region` nil: it is lost whole.
    mutating func addLoss(
        _ number: Int, _ checkpoint: AffectedCheckpoint, region: String?, pages: PageRanges = PageRanges(),
        regionPages: PageCount = .zero
    ) {
        let key = LossKey(region: region, pages: pages.ranges, regionPages: regionPages)
        if let group = entries[number].groups[key] {
            entries[number].damage.losses[group].checkpoints.append(checkpoint)
            return
        }
        entries[number].groups[key] = entries[number].damage.losses.count
        entries[number].damage.losses.append(
            DamageLoss(checkpoints: [checkpoint], region: region, pages: pages, regionPages: regionPages))
    }

    var damages: [Damage] { entries.filter { !$0.isOutside || !$0.damage.losses.isEmpty }.map(\.damage) }
}
