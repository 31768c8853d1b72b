// Damages while they are found, numbered, with the checkpoints that each concerns.
//
// Invariant: a damage gets its number once; losses are added to it for each checkpoint, grouped where they are alike.

import StoreFormat
import Units

/// Not thread-safe by itself.
struct DamageLog: Sendable {
    private struct LossKey: Hashable {
        /// The bytes of its name: texts that Swift takes for equal may differ in those.
        var region: [UInt8]?
        var pages: [Range<PageIndex>]
        var regionPages: PageCount
    }

    private struct UnresolvedKey: Hashable {
        var offset: MediumOffset?
        var reason: String
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
    /// Damages of the forwarding, which runs can't be found for.
    private var unresolved: [UnresolvedKey: Int] = [:]

    var count: Int { entries.count }

    /// Notes a damage and returns its number. `isOfBlock`: the block's own bytes are wrong, so that it need not be read again.
    mutating func note(_ error: StoreError, block: BlockPointer?, isOfBlock: Bool = false) -> Int {
        if isOfBlock, let block, let number = known[block] { return number }
        entries.append(Entry(damage: Damage(block: block, offset: error.offset, reason: error.reason, losses: [])))
        if isOfBlock, let block { known[block] = entries.count - 1 }
        return entries.count - 1
    }

    /// Notes that the forwarding can't be read where a block's place is asked for: once, however many blocks it is asked for.
    mutating func noteUnresolved(_ error: StoreError) -> Int {
        let key = UnresolvedKey(offset: error.offset, reason: error.reason)
        if let number = unresolved[key] { return number }
        let number = note(error, block: nil)
        unresolved[key] = number
        return number
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
        let key = LossKey(region: region.map { Array($0.utf8) }, pages: pages.ranges, regionPages: regionPages)
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
