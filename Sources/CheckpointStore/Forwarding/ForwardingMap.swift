// Where moved blocks are, as far as a handle has looked it up.
//
// Invariants:
// - What is kept is a copy of blocks that never change: it is right as long as the generation that it was read for is.
// - Memory is bounded: by tables, by segments whose tables are listed, by generations.

import StoreFormat
import Threading
import Units

/// Looks up moved blocks for all readers of a handle. Thread-safe.
final class ForwardingMap: Sendable {
    /// Which tables there are, in one generation.
    private struct Listing {
        var root: BlockPointer
        var segments: [SegmentIndex: [ForwardingTableRef]] = [:]
        var lastUse: UInt64 = 0
    }
    private struct CachedTable {
        var table: ForwardingTable
        var lastUse: UInt64
    }
    private struct State {
        var listings: [Listing] = []
        /// By their pointers: generations share tables that did not change.
        var tables: [BlockPointer: CachedTable] = [:]
        var clock: UInt64 = 0
    }
    /// Generations that are being read at once without listing again.
    private static let keptListings = 4
    /// Segments listed for one generation: about 100 bytes each.
    private static let keptSegments = 1 << 16
    /// Tables kept decoded: at most 32 KiB each.
    private static let keptTables = 512

    private let state = Lock(State())

    /// Where `pointer` leads by the tree below `root`. One step: what was moved twice has an entry for its last place.
    func resolve(_ pointer: BlockPointer, root: BlockPointer, store: CheckpointStore) throws(StoreError) -> ResolvedBlock {
        guard let entry = try entry(of: pointer, root: root, store: store) else { return ResolvedBlock(pointer: pointer, kept: nil) }
        let isSame = entry.newStoredLength == pointer.storedLength && entry.newChecksum == pointer.checksum
        guard entry.kind == pointer.kind, pointer.kind == .run || isSame else {
            throw store.misplaced(pointer, "the forwarding tables take it for another block")
        }
        return ResolvedBlock(pointer: entry.target, kept: entry.kind == .run ? entry.kept : nil)
    }

    /// The entry of the block that `pointer` names; nil: it is where the pointer says.
    func entry(of pointer: BlockPointer, root: BlockPointer, store: CheckpointStore) throws(StoreError) -> ForwardingEntry? {
        let named: ForwardingTableRef
        switch state.withLock({ Self.find(pointer, root, &$0) }) {
        case .some(.nowhere): return nil
        case .some(.table(let table)): return Self.entry(of: pointer, in: table, store)
        case .some(.unread(let reference)): named = reference
        case nil:
            let tables = try store.forwardingTables(of: pointer.segment, root: root)
            state.withLock { Self.note(tables, of: pointer.segment, root, &$0) }
            guard let reference = Self.table(for: pointer, among: tables) else { return nil }
            named = reference
        }
        let table = try store.readForwardingTable(named)
        state.withLock { Self.keep(table, named.pointer, &$0) }
        return Self.entry(of: pointer, in: table, store)
    }

    private static func entry(of pointer: BlockPointer, in table: ForwardingTable, _ store: CheckpointStore) -> ForwardingEntry? {
        if store.has(.forwardsWithoutBirth) { return table.entries.first { $0.offset == pointer.offset } }
        return table.entry(pointer.offset, pointer.birth)
    }

    // MARK: what is kept

    private enum Found {
        case nowhere
        case table(ForwardingTable)
        case unread(ForwardingTableRef)
    }

    /// Nil when the tables of the segment are not listed.
    private static func find(_ pointer: BlockPointer, _ root: BlockPointer, _ state: inout State) -> Found? {
        guard let listing = state.listings.firstIndex(where: { $0.root == root }),
            let tables = state.listings[listing].segments[pointer.segment]
        else { return nil }
        state.clock += 1
        state.listings[listing].lastUse = state.clock
        guard let named = table(for: pointer, among: tables) else { return .nowhere }
        guard let index = state.tables.index(forKey: named.pointer) else { return .unread(named) }
        state.tables.values[index].lastUse = state.clock
        return .table(state.tables.values[index].table)
    }

    /// The last table that starts at or before the pointer's place.
    private static func table(for pointer: BlockPointer, among tables: [ForwardingTableRef]) -> ForwardingTableRef? {
        tables.last { ($0.key.offset, $0.key.birth.rawValue) <= (pointer.offset, pointer.birth.rawValue) }
    }

    private static func note(
        _ tables: [ForwardingTableRef], of segment: SegmentIndex, _ root: BlockPointer, _ state: inout State
    ) {
        state.clock += 1
        if !state.listings.contains(where: { $0.root == root }) {
            if state.listings.count >= keptListings, let oldest = state.listings.indices.min(by: { state.listings[$0].lastUse < state.listings[$1].lastUse }) {
                state.listings.remove(at: oldest)
            }
            state.listings.append(Listing(root: root))
        }
        guard let index = state.listings.firstIndex(where: { $0.root == root }) else { return }
        state.listings[index].lastUse = state.clock
        if state.listings[index].segments.count >= keptSegments { state.listings[index].segments = [:] }
        state.listings[index].segments[segment] = tables
    }

    private static func keep(_ table: ForwardingTable, _ pointer: BlockPointer, _ state: inout State) {
        state.clock += 1
        if state.tables.count >= keptTables, let oldest = state.tables.min(by: { $0.value.lastUse < $1.value.lastUse }) {
            state.tables[oldest.key] = nil
        }
        state.tables[pointer] = CachedTable(table: table, lastUse: state.clock)
    }
}
