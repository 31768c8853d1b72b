// The forwarding tables, edited as a copy for a commit.
//
// Invariants:
// - A block has at most one entry, which leads to where it is now: setting it anew is how chains collapse.
// - The tables of a segment ascend and don't overlap; one without entries goes.

import StoreFormat
import Units

/// A forwarding table that a commit may write.
final class EditedForwardingTable: CommitNode {
    let segment: SegmentIndex
    var entries: [ForwardingEntry]
    let origin: BlockPointer?
    /// The key that it is stored under; nil: it is new.
    let originKey: ForwardingKey?
    var isChanged: Bool
    var stored: BlockPointer?

    init(_ table: ForwardingTable, origin: ForwardingTableRef?) {
        segment = table.segment
        entries = table.entries
        self.origin = origin?.pointer
        originKey = origin?.key
        isChanged = origin == nil
    }

    var table: ForwardingTable { ForwardingTable(segment: segment, entries: entries) }
    var encodedLength: Int { table.encodedLength }
    func encoded(birth: BlockBirth) -> [UInt8] { table.encoded(birth: birth) }

    /// The pointer to the table as a value of its tree. The table must have been stored.
    var pointerBytes: [UInt8] {
        guard let stored else { preconditionFailure("tables are stored before the nodes that name them") }
        return stored.encoded()
    }
}

/// The tables below a forwarding tree that is being edited. Not thread-safe.
final class ForwardingEditor {
    private let store: CheckpointStore
    private let tree: CatalogEditor
    private let root: BlockPointer?
    /// The tables of each segment that was looked at, ascending.
    private var segments: [SegmentIndex: [EditedForwardingTable]] = [:]
    /// Stored tables that nothing replaces.
    private(set) var dropped: [BlockPointer] = []
    /// The tables that the commit writes; known when all is settled.
    private(set) var changedTables: [EditedForwardingTable] = []

    init(store: CheckpointStore, tree: CatalogEditor, root: BlockPointer?) {
        self.store = store
        self.tree = tree
        self.root = root
    }

    /// The entry of the block that `pointer` names; nil: it is where the pointer says.
    func entry(of pointer: BlockPointer) throws(StoreError) -> ForwardingEntry? {
        guard pointer.kind.isForwarded, root != nil || !segments.isEmpty else { return nil }
        let tables = try tables(of: pointer.segment)
        guard let index = Self.index(in: tables, pointer.offset, pointer.birth) else { return nil }
        return tables[index].table.entry(pointer.offset, pointer.birth)
    }

    /// Sets where a block of `segment` is now, whether it has been moved before or not.
    func set(_ entry: ForwardingEntry, of segment: SegmentIndex) throws(StoreError) {
        let tables = try tables(of: segment)
        guard let index = Self.index(in: tables, entry.offset, entry.birth) ?? tables.indices.first else {
            segments[segment] = [EditedForwardingTable(ForwardingTable(segment: segment, entries: [entry]), origin: nil)]
            return
        }
        let table = tables[index]
        table.isChanged = true
        let place = table.table.firstIndex(from: entry.offset, entry.birth)
        if place < table.entries.count, (table.entries[place].offset, table.entries[place].birth) == (entry.offset, entry.birth) {
            table.entries[place] = entry
        } else {
            table.entries.insert(entry, at: place)
        }
        if table.entries.count > ForwardingTable.maximumEntries { split(index, of: segment) }
    }

    /// Takes an entry out; harmless when there is none.
    func remove(_ key: ForwardingKey) throws(StoreError) {
        let tables = try tables(of: key.segment)
        guard let index = Self.index(in: tables, key.offset, key.birth) else { return }
        let table = tables[index]
        let place = table.table.firstIndex(from: key.offset, key.birth)
        guard place < table.entries.count, (table.entries[place].offset, table.entries[place].birth) == (key.offset, key.birth) else { return }
        table.entries.remove(at: place)
        table.isChanged = true
        guard table.entries.isEmpty else { return }
        segments[key.segment]?.remove(at: index)
        emptied.append(table)
    }

    /// Has tables that stand in the wanted segments written anew. Reads the leaves of the tree, and those tables.
    func rewrite(_ wanted: inout NodeRewriting) throws(StoreError) {
        try tree.forEach(from: []) { key, value throws(StoreError) in
            let named = try store.forwardingTable(key, value)
            guard wanted.segments.contains(named.pointer.segment) else { return true }
            guard let tables = try wanted.unlessDamaged({ _ throws(StoreError) in try tables(of: named.key.segment) }) else { return true }
            for table in tables where table.origin == named.pointer { table.isChanged = true }
            wanted.take(named.pointer)
            return !wanted.isFull
        }
    }

    /// Tables whose last entry went.
    private var emptied: [EditedForwardingTable] = []

    /// Brings the tree up to date with its tables; called once, before anything gets its place.
    func settle() throws(StoreError) {
        for table in emptied {
            if let key = table.originKey { try tree.remove(key.bytes) }
            if let origin = table.origin { dropped.append(origin) }
        }
        for (_, tables) in segments.sorted(by: { $0.key < $1.key }) {
            for table in tables where table.isChanged {
                if let key = table.originKey, key != table.table.key { try tree.remove(key.bytes) }
            }
            for table in tables where table.isChanged {
                try tree.insert(table.table.key.bytes, .table(table))
                changedTables.append(table)
            }
        }
    }

    private func split(_ index: Int, of segment: SegmentIndex) {
        guard let table = segments[segment]?[index] else { return }
        let cut = table.entries.count / 2
        let right = EditedForwardingTable(ForwardingTable(segment: segment, entries: Array(table.entries[cut...])), origin: nil)
        table.entries.removeSubrange(cut...)
        segments[segment]?.insert(right, at: index + 1)
    }

    private func tables(of segment: SegmentIndex) throws(StoreError) -> [EditedForwardingTable] {
        if let known = segments[segment] { return known }
        var tables: [EditedForwardingTable] = []
        if let root {
            for named in try store.forwardingTables(of: segment, root: root) {
                tables.append(EditedForwardingTable(try store.readForwardingTable(named), origin: named))
            }
        }
        segments[segment] = tables
        return tables
    }

    /// The last table that starts at or before the place; nil when all start behind it.
    private static func index(in tables: [EditedForwardingTable], _ offset: SegmentOffset, _ birth: BlockBirth) -> Int? {
        tables.lastIndex { table in
            table.entries.first.map { ($0.offset, $0.birth.rawValue) <= (offset, birth.rawValue) } ?? false
        }
    }
}
