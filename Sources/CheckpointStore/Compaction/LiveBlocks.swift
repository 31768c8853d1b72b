// What lives in the segments that are to be emptied, found by one walk through all trees.
//
// Invariants:
// - The victims are claimed when the walk's generation is read, so that nobody appends to them from then on.
// - What the walk finds is all that lives there as long as the victims' entries in the segment table stay the same: checkpoints that are
//   committed later only share what lived before, and a deletion changes the counts of the segments that it concerns.

import StoreFormat
import Units

/// A block that lives in a victim.
struct LiveBlock: Sendable {
    /// As trees name it.
    var pointer: BlockPointer
    /// Where it is.
    var block: ResolvedBlock
    /// Runs: the places that leaves list, in the numbers of the run as it was first written.
    var places: UInt16
}

/// What has to be known about the victims of a round.
struct LiveBlocks {
    /// By segment, ascending by place.
    var blocks: [SegmentIndex: [LiveBlock]] = [:]
    /// Entries that lead into a segment though nothing names the block any more.
    var deadEntries: [SegmentIndex: [ForwardingKey]] = [:]

    /// How many blocks are looked at before the walk asks again whether it has been told to end.
    private static let blocksBetweenChecks = 256

    /// Walks through all checkpoints of the generation of `slot`, which the caller keeps registered.
    ///
    /// - Throws: `.cancelled`; what reading throws.
    init(of victims: Set<SegmentIndex>, in slot: Slot, _ store: CheckpointStore, _ pace: Pace) throws(StoreError) {
        let reader = store.blocks(in: slot)
        var found: [SegmentIndex: [LiveBlock]] = [:]
        var visited = 0
        try TreeWalk(blocks: reader).walk(try store.catalogValues(in: slot)) { (reached) throws(StoreError) in
            if visited % Self.blocksBetweenChecks == 0 { try pace.checkNotCancelled() }
            visited += 1
            let block = try reader.resolve(reached.pointer)
            guard victims.contains(block.pointer.segment) else { return }
            found[block.pointer.segment, default: []].append(LiveBlock(pointer: reached.pointer, block: block, places: reached.places))
        }
        for segment in found.keys { found[segment]?.sort { $0.block.pointer.offset < $1.block.pointer.offset } }
        blocks = found
        try store.forEachForwardingTable(slot.forwarding) { (_, table) throws(StoreError) in
            try pace.checkNotCancelled()
            for entry in table.entries where victims.contains(entry.newSegment) {
                guard !Self.contains(found[entry.newSegment] ?? [], entry) else { continue }
                let key = ForwardingKey(segment: table.segment, offset: entry.offset, birth: entry.birth)
                deadEntries[entry.newSegment, default: []].append(key)
            }
        }
    }

    private static func contains(_ blocks: [LiveBlock], _ entry: ForwardingEntry) -> Bool {
        var (low, high) = (0, blocks.count)
        while low < high {
            let middle = (low + high) / 2
            if blocks[middle].block.pointer.offset < entry.newOffset { low = middle + 1 } else { high = middle }
        }
        return low < blocks.count && blocks[low].block.pointer.offset == entry.newOffset
    }
}
