// Checking the forwarding tables: where they lead, and that they know all that leaves list.
//
// Invariant: a table that can't be read is damage of the store as a whole here; the blocks that it stands for are reported with their
// checkpoints.

import StoreFormat
import Units

extension Verifier {
    /// Every table, with the places that its entries lead to. False when part of it can't be read.
    func forwarding() throws(StoreError) -> Bool {
        var previous: ForwardingTableRef?
        var targets = Set<UInt64>()
        do throws(StoreError) {
            try store.forEachForwardingTable(slot.forwarding, visiting: { self.trees.countSound($0) }) { (named, table) throws(StoreError) in
                trees.countSound(named.pointer)
                try check(table, named, behind: previous)
                let last = table.entries[table.entries.count - 1]
                let end = ForwardingKey(segment: table.segment, offset: last.offset, birth: last.birth)
                previous = ForwardingTableRef(key: end, pointer: named.pointer)
                for entry in table.entries where !targets.insert(entry.target.placeNumber).inserted {
                    try noteStore("two forwarding entries lead to segment \(entry.newSegment) + \(entry.newOffset)")
                }
            }
        } catch {
            _ = try trees.noteUnresolved(error)
            return false
        }
        return true
    }

    /// Whether the tables, which can be read, know all pages that leaves list; asked when the leaves have been read.
    func checkForwardedPlaces() throws(StoreError) {
        try store.forEachForwardingTable(slot.forwarding) { (named, table) throws(StoreError) in try checkPlaces(table, named) }
    }

    private func check(
        _ table: ForwardingTable, _ named: ForwardingTableRef, behind previous: ForwardingTableRef?
    ) throws(StoreError) {
        let place = slot.geometry.position(of: named.pointer)
        if let previous, !previous.key.bytes.lexicographicallyPrecedes(named.key.bytes) {
            try noteStore("two forwarding tables of segment \(table.segment) overlap", at: place)
        }
        let entries = trees.state.withLock { $0.entries }
        guard !entries.isEmpty else { return }
        for entry in table.entries {
            let target = entries[entry.newSegment]
            let isThere =
                target?.segmentClass == SegmentClass(holding: entry.kind)
                && UInt64(entry.newOffset.rawValue) + UInt64(entry.newStoredLength) <= UInt64(target?.committedLength ?? 0)
            if !isThere {
                try noteStore("the forwarding of segment \(table.segment) + \(entry.offset) leads to where nothing is written", at: place)
            }
        }
    }

    private func checkPlaces(_ table: ForwardingTable, _ named: ForwardingTableRef) throws(StoreError) {
        let listed = trees.state.withLock { state in table.entries.map { state.runs[$0.target.placeNumber]?.claims.places ?? 0 } }
        for (entry, listed) in zip(table.entries, listed) where listed & ~entry.live != 0 {
            try noteStore(
                "the forwarding of segment \(table.segment) + \(entry.offset) counts fewer pages than leaves list",
                at: slot.geometry.position(of: named.pointer))
        }
    }
}
