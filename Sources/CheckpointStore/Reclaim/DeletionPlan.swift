// What a deletion will take away, found out before anybody has to wait for it.
//
// A walk needs no commit lock: with the reclaim lock held, checkpoints are added meanwhile, and nothing else changes what its result depends
// on. Blocks are not moved or repaired, and nobody else deletes. A checkpoint that is added can only name what its parent names, at the same
// place. What died therefore stays dead, unless the set of neighbours has grown when the commit lock is held: then the walk is repeated beside
// all of them. (Walking beside the new ones alone, to take what they name off the result, would read all that they share, mostly nearly
// everything, and would need the result block by block. Beside them the walk ends where sharing begins.)
//
// Invariants:
// - What is applied was found out with the very neighbours that the state has which the commit builds on, and with its forwarding tree.
// - Memory is bounded by the segments in which something dies, and by blocks that were moved.

import StoreFormat
import Units

/// A checkpoint that is to be deleted.
struct Doomed {
    var id: CheckpointID
    var name: String
}

/// What dies with a checkpoint, as the segment table and the forwarding tables count it.
private struct Losses {
    /// Units of blocks that are where pointers say.
    var units: [SegmentIndex: UInt32] = [:]
    /// Blocks that were moved, and the places in them.
    var moved: [(block: BlockPointer, places: UInt16)] = []

    mutating func add(_ block: BlockPointer, _ places: UInt16) {
        let (sum, overflow) = units[block.segment, default: 0].addingReportingOverflow(CommitTransaction.liveUnits(of: block, places: places))
        // More than a segment can count: taking it off will say that the store is corrupt.
        units[block.segment] = overflow ? .max : sum
    }
}

/// Finds out what dies with some checkpoints, and takes it away in a commit. Confined to one thread; the reclaim lock is held.
final class DeletionPlan {
    private struct Member {
        var doomed: Doomed
        var record: BlockPointer
        var neighbours: Set<LineageTree.Neighbour>
        var losses = Losses()
        /// Damage, by what was said about it: each once.
        var damages: [String: StoreError] = [:]
    }
    private let store: CheckpointStore
    private var members: [Member] = []
    /// The forwarding tree that the walks went by.
    private var forwarding: BlockPointer?
    /// Index blocks that were read.
    private(set) var nodesRead = 0

    init(_ store: CheckpointStore) { self.store = store }

    /// The names of those that go.
    var names: [String] { members.map(\.doomed.name) }

    /// What could not be read, ascending by place: what stands below it still counts as alive.
    var damages: [StoreError] {
        let each = members.reduce(into: [String: StoreError]()) { $0.merge($1.damages) { first, _ in first } }
        return each.values.sorted { ($0.offset?.rawValue ?? 0, $0.reason) < ($1.offset?.rawValue ?? 0, $1.reason) }
    }

    /// Walks for those of `doomed` that have other neighbours in `slot` than when they were walked for, or were not yet. One is deleted after
    /// the other: each has the neighbours that are left then.
    ///
    /// - Parameter slot: registered, or the base of a commit whose lock is held.
    func update(_ doomed: [Doomed], in slot: Slot) throws(StoreError) {
        let lineage = LineageTree(store: store, slot: slot)
        let reader = NodeReader(store.blocks(in: slot))
        defer { nodesRead += reader.count }
        let known = Dictionary(forwarding == slot.forwarding ? members.map { ($0.doomed.id, $0) } : []) { first, _ in first }
        members = []
        forwarding = slot.forwarding
        for doomed in doomed {
            let neighbours = try lineage.neighbours(of: doomed.id)
            guard let value = try store.catalogValue(of: doomed.id, in: slot) else { throw store.treesDisagree(doomed.name) }
            if let member = known[doomed.id], member.record == value.record, member.neighbours == Set(neighbours) {
                members.append(member)
            } else {
                members.append(try walk(doomed, value, neighbours, slot, reader))
            }
            try lineage.bury(doomed.id)
        }
    }

    private func walk(
        _ doomed: Doomed, _ value: CatalogValue, _ neighbours: [LineageTree.Neighbour], _ slot: Slot, _ reader: NodeReader
    ) throws(StoreError) -> Member {
        var member = Member(doomed: doomed, record: value.record, neighbours: Set(neighbours))
        let store = store
        let deletion = Deletion(
            of: doomed.id, neighbours: neighbours, slot: slot, reader: reader,
            release: { block, places throws(StoreError) in
                if let root = slot.forwarding, block.kind.isForwarded, try store.forwardingMap.entry(of: block, root: root, store: store) != nil {
                    member.losses.moved.append((block, places))
                } else {
                    member.losses.add(block, places)
                }
            }, skip: { member.damages[$0.description] = $0 })
        try deletion.run(value, id: doomed.id)
        return member
    }

    /// Takes `doomed`, and what dies with them, out of the state of a commit.
    ///
    /// - Returns: false when that state has other neighbours than were walked for: the transaction must be given up then, and the plan updated.
    func apply(_ doomed: [Doomed], to transaction: CommitTransaction) throws(StoreError) -> Bool {
        guard doomed.map(\.id) == members.map(\.doomed.id), transaction.base.forwarding == forwarding else { return false }
        for index in members.indices {
            let member = members[index]
            guard try isCurrent(member, transaction) else { return false }
            do throws(StoreError) { try release(member.losses, transaction) } catch {
                guard error.isDamage else { throw error }
                members[index].damages[error.description] = error
            }
            try transaction.remove(member.doomed.id, name: member.doomed.name)
        }
        return true
    }

    private func isCurrent(_ member: Member, _ transaction: CommitTransaction) throws(StoreError) -> Bool {
        guard try store.catalogValue(of: member.doomed.id, in: transaction.base)?.record == member.record else { return false }
        if store.has(.overlooksNewNeighbours) { return true }
        return Set(try transaction.lineageTree.neighbours(of: member.doomed.id)) == member.neighbours
    }

    private func release(_ losses: Losses, _ transaction: CommitTransaction) throws(StoreError) {
        for (segment, units) in losses.units.sorted(by: { $0.key < $1.key }) { try transaction.lowerLive(of: segment, by: units) }
        for (block, places) in losses.moved { try transaction.release(block, places: places) }
    }
}

extension CheckpointStore {
    func treesDisagree(_ name: String) -> StoreError {
        StoreError(.corrupt, "the catalog's trees disagree", remedy: "Run `ckstore verify`.", medium: medium.name, checkpoint: name)
    }
}
