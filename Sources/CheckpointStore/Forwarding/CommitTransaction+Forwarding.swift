// What a commit does to moved blocks: releases what died, forwards what was moved.

import StoreFormat
import Units

extension CommitTransaction {
    /// Takes what nothing names any more off what the segment table counts, wherever the block is now.
    ///
    /// - Parameters:
    ///   - pointer: the block, as trees named it.
    ///   - places: runs: the places in the run, as trees listed them, that nothing lists any more. Others: not looked at.
    /// - Throws: `.corrupt` when the table counts less than that.
    func release(_ pointer: BlockPointer, places: UInt16) throws(StoreError) {
        guard let entry = try moves.entry(of: pointer) else {
            return try lowerLive(of: pointer.segment, by: Self.liveUnits(of: pointer, places: places))
        }
        let lost = pointer.kind == .run ? places & entry.live : entry.live
        guard lost != 0 else { return }
        try lowerLive(of: entry.newSegment, by: Self.liveUnits(of: entry.target, places: lost))
        if entry.live == lost {
            try moves.remove(ForwardingKey(segment: pointer.segment, offset: pointer.offset, birth: pointer.birth))
        } else {
            var rest = entry
            rest.live &= ~lost
            try moves.set(rest, of: pointer.segment)
        }
    }

    /// Forwards the block that trees name by `pointer` to where it was copied. The new segment counts it already.
    func forward(_ pointer: BlockPointer, to copy: BlockPointer, kept: UInt16, live: UInt16) throws(StoreError) {
        if store.has(.leavesChains), try moves.entry(of: pointer) != nil { return }
        try moves.set(ForwardingEntry(from: pointer, to: copy, kept: kept, live: live), of: pointer.segment)
    }

    /// Takes out the entries that lead into `segments`, in which nothing lives. Reads every table.
    func forgetMoves(into segments: Set<SegmentIndex>) throws(StoreError) {
        guard !segments.isEmpty else { return }
        try store.forEachForwardingTable(base.forwarding) { (_, table) throws(StoreError) in
            for entry in table.entries where segments.contains(entry.newSegment) {
                try moves.remove(ForwardingKey(segment: table.segment, offset: entry.offset, birth: entry.birth))
            }
        }
    }

    /// Takes `units` off what the table counts as live in `segment`.
    func lowerLive(of segment: SegmentIndex, by units: UInt32) throws(StoreError) {
        let entry = try table.entry(segment)
        guard entry.isUsed, entry.segmentClass != .catalog, entry.live >= units else {
            throw StoreError(
                .corrupt, "the segment table counts less than is live in segment \(segment)", remedy: "Run `ckstore verify`.",
                medium: store.medium.name)
        }
        try table.update(segment) { $0.live -= units }
        lowered.insert(segment)
    }
}
