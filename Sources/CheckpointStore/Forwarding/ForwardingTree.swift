// Reading the forwarding tree: which tables a segment has (format, 7.3).

import StoreFormat
import Units

/// A table as the forwarding tree names it.
struct ForwardingTableRef: Sendable {
    var key: ForwardingKey
    var pointer: BlockPointer
}

extension CheckpointStore {
    /// The tables of one segment in the tree below `root`, ascending. O(log n) reads.
    func forwardingTables(of segment: SegmentIndex, root: BlockPointer) throws(StoreError) -> [ForwardingTableRef] {
        let first = ForwardingKey(segment: segment, offset: .zero, birth: BlockBirth(UInt64(0))).bytes
        let end = ForwardingKey(segment: SegmentIndex(segment.rawValue + 1), offset: .zero, birth: BlockBirth(UInt64(0))).bytes
        var found: [ForwardingTableRef] = []
        var pending: [(pointer: BlockPointer, level: UInt8?)] = [(root, nil)]
        while let (pointer, level) = pending.popLast() {
            let node = try readCatalogNode(pointer, tree: .forwarding, level: level)
            for (index, entry) in node.entries.enumerated() {
                switch entry.payload {
                case .leaf(let value):
                    let isWithin = !entry.key.lexicographicallyPrecedes(first) && entry.key.lexicographicallyPrecedes(end)
                    if isWithin { found.append(try forwardingTable(entry.key, value)) }
                case .child(let child):
                    let next = index + 1 < node.entries.count ? node.entries[index + 1].key : nil
                    // The first key of a node may be lower than any below it.
                    let isBefore = next.map { !first.lexicographicallyPrecedes($0) } ?? false
                    let isBehind = index > 0 && !entry.key.lexicographicallyPrecedes(end)
                    if !isBefore, !isBehind { pending.append((child, node.level - 1)) }
                }
            }
        }
        return found.sorted { $0.key.bytes.lexicographicallyPrecedes($1.key.bytes) }
    }

    /// Calls `body` with every table of the tree below `root`, ascending by segment and place. Reads every table.
    func forEachForwardingTable(
        _ root: BlockPointer?, visiting: (BlockPointer) -> Void = { _ in }, _ body: (ForwardingTableRef, ForwardingTable) throws(StoreError) -> Void
    ) throws(StoreError) {
        try forEachInCatalog(root, tree: .forwarding, visiting: visiting) { (key, value) throws(StoreError) in
            let named = try forwardingTable(key, value)
            try body(named, try readForwardingTable(named))
        }
    }

    /// Reads a table and checks that it is the one its key says.
    func readForwardingTable(_ named: ForwardingTableRef) throws(StoreError) -> ForwardingTable {
        let table = try decodeInPlace(named.pointer) { bytes throws(FormatError) in try ForwardingTable.decode(bytes) }
        guard table.key == named.key else {
            throw misplaced(named.pointer, "it is the table from segment \(table.segment) + \(table.key.offset) on")
        }
        return table
    }

    /// An entry of the tree.
    func forwardingTable(_ key: [UInt8], _ value: [UInt8]) throws(StoreError) -> ForwardingTableRef {
        guard let key = ForwardingKey(key), let pointer = unsafe try? BlockPointer.decode(value.span.bytes) else {
            preconditionFailure("decoding a node checks its keys and values")
        }
        return ForwardingTableRef(key: key, pointer: pointer)
    }
}
