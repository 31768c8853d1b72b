// The lineage when nodes of it can't be read.
//
// What is sought is a tree in which what checkpoints share hangs together (format, 6.3 rule 4), for deleting frees what no neighbour
// names. Four sources, the safest first:
// 1. Entries that can be read. A member's entry and the edge from its parent say the same, so that either will do.
// 2. The record of a checkpoint that was saved here: its parent is the one that its trees were built over. Whoever wrote a root of its
//    regions itself was saved here; what is received has another writer's births.
// 3. Older copies of its entry: the oldest one of its life names the one that it was made over, or an ancestor of that.
// 4. Nothing. Then any member whose edge to it may have been lost can be its parent.
//
// The lineage is what is left of "made over" when deleted members with fewer than two children are taken out, whatever the order. So it
// is enough to know who was made over whom: deleted members that are put in only to lead upwards go again where they join nothing. One
// too many would do no harm: ways lead through tombstones freely.
//
// Members of the fourth kind must not become roots, nor be joined above their trees: their lost parent may be a living checkpoint
// anywhere in another tree, and between that and the root may stand some that don't name what both name. So all living members of the
// trees concerned become children of one new tombstone: between any two of them there is nothing but that, and each is every other's
// neighbour. Deletions find more neighbours to ask than they had to, and free nothing that one of these names. Such a tombstone gathers
// (`CheckpointID.isGathering`): those below it are asked about everything, also about blocks that can only be in descendants' trees.
//
// Invariant: what is built keeps the rules 1 to 3 of 6.3.

import StoreFormat
import Units

extension CheckpointID {
    /// The upper half of ids that repairs give to tombstones which gather members of unknown descent ("CKRP"). Others have one by chance
    /// once in four thousand million, and deletions take a little longer for it.
    private static let gatheringPrefix: UInt64 = 0x434B_5250

    var isGathering: Bool { rawValue >> 32 == Self.gatheringPrefix }

    static func gathering(_ random: UInt64) -> CheckpointID { CheckpointID(gatheringPrefix << 32 | random >> 32) }
}

/// The lineage as it is to be. Confined to one thread.
struct LineageRecovery {
    private let store: CheckpointStore
    private let survey: TreeSurvey
    private let scan: TreeScan
    private let blocks: BlockReader
    private let values: [CheckpointID: CatalogValue]
    private(set) var members: [CheckpointID: LineageTree.Node] = [:]
    private(set) var references: [[UInt8]: CheckpointID] = [:]
    private(set) var losses: [String] = []
    /// Members whose parent nothing tells.
    private var unknown: [CheckpointID] = []

    init(
        _ store: CheckpointStore, _ survey: TreeSurvey, _ scan: TreeScan, _ blocks: BlockReader, _ catalog: CatalogRecovery,
        replica: CheckpointStore?
    ) throws(StoreError) {
        self.store = store
        self.survey = survey
        self.scan = scan
        self.blocks = blocks
        values = catalog.values
        var pending = Array(values.keys) + survey.members.keys + survey.edges.keys
        while let id = pending.popLast() {
            guard members[id] == nil else { continue }
            let parent = parent(of: id)
            members[id] = LineageTree.Node(parent: parent, state: values[id] == nil ? .tombstone : .living)
            if let parent { pending.append(parent) }
        }
        breakCircles()
        if !store.has(.forgetsDescent) { gather() }
        contract()
        try recoverReferences(catalog, replica)
    }

    // MARK: parents

    private mutating func parent(of id: CheckpointID) -> CheckpointID? {
        if let known = survey.members[id] { return known.parent }
        if let parent = survey.edges[id] { return parent }
        if store.has(.forgetsDescent) { return nil }
        if let parent = savedOver(id) { return parent }
        // Copies are of this life of the id only from its commit on.
        let since = values[id].map { BlockBirth($0.generation) } ?? BlockBirth(UInt64(0))
        let copies = (scan.members[id] ?? []).filter { $0.birth >= since }
        if let copy = values[id] == nil ? copies.max(by: { $0.birth < $1.birth }) : copies.min(by: { $0.birth < $1.birth }) {
            return copy.parent
        }
        unknown.append(id)
        return nil
    }

    /// The parent that the record of a checkpoint names which was saved here; nil when that is not known.
    private func savedOver(_ id: CheckpointID) -> CheckpointID?? {
        var record: CheckpointRecord?
        if let value = values[id] {
            record = try? blocks.readRecord(value, id: id)
        } else {
            // Of a deleted one, as long as its record has not been overwritten.
            for pointer in scan.records[id] ?? [] where record == nil {
                record = try? store.decodeInPlace(pointer) { bytes throws(FormatError) in try CheckpointRecord.decode(bytes) }
            }
        }
        guard let record, record.id == id else { return nil }
        let roots = record.regions.compactMap(\.root)
        if roots.contains(where: { $0.birth == BlockBirth(id) }) { return .some(record.parent) }
        // Whoever names no block can stand anywhere.
        return roots.isEmpty ? .some(record.parent.flatMap { values[$0] == nil ? nil : $0 }) : nil
    }

    private mutating func breakCircles() {
        for start in members.keys.sorted() {
            var (seen, next): (Set<CheckpointID>, CheckpointID?) = ([], start)
            while let id = next {
                guard seen.insert(id).inserted else {
                    members[id]?.parent = nil
                    unknown.append(id)
                    break
                }
                next = members[id]?.parent
            }
        }
    }

    // MARK: members of unknown descent

    /// Puts all living members of the trees concerned below one new tombstone.
    private mutating func gather() {
        guard !unknown.isEmpty else { return }
        let lost = survey.lostKeys(.lineage)
        var roots = Set(unknown.map(root))
        for id in members.keys where !roots.contains(root(id)) {
            // Some edge of it may have been lost: to one of unknown descent, or to a deleted member that nothing else tells of.
            if lost.mayHold(keysWith: CatalogTree.key(id)) { roots.insert(root(id)) }
        }
        // An only tree whose root is the one of unknown descent: there is nobody else that it could descend from.
        guard roots.count > 1 else { return }
        let gathered = members.filter { roots.contains(root($0.key)) }
        var tombstone = CheckpointID.gathering(store.environment.random())
        while members[tombstone] != nil { tombstone = CheckpointID.gathering(store.environment.random()) }
        for (id, member) in gathered {
            members[id] = member.state == .living ? LineageTree.Node(parent: tombstone, state: .living) : nil
        }
        members[tombstone] = LineageTree.Node(parent: nil, state: .tombstone)
        losses.append("of \(gathered.count { $0.value.state == .living }) checkpoints it is not known any more who descends from whom")
    }

    private func root(_ id: CheckpointID) -> CheckpointID {
        var root = id
        while let parent = members[root]?.parent { root = parent }
        return root
    }

    /// Takes out deleted members that join no branches.
    private mutating func contract() {
        var children: [CheckpointID: Set<CheckpointID>] = [:]
        for (id, member) in members { if let parent = member.parent { children[parent, default: []].insert(id) } }
        var pending = members.filter { $0.value.state == .tombstone }.map(\.key)
        while let id = pending.popLast() {
            guard let member = members[id], member.state == .tombstone, children[id]?.count ?? 0 < 2 else { continue }
            let only = children[id]?.first
            members[id] = nil
            if let only { members[only]?.parent = member.parent }
            guard let parent = member.parent else { continue }
            children[parent]?.remove(id)
            if let only { children[parent]?.insert(only) }
            pending.append(parent)
        }
    }

    // MARK: names that move

    private mutating func recoverReferences(_ catalog: CatalogRecovery, _ replica: CheckpointStore?) throws(StoreError) {
        references = survey.references.filter { values[$0.value] != nil && catalog.names[$0.key] == nil }
        for (key, _) in survey.references where references[key] == nil { noteLost(key, "the checkpoint that it led to is lost") }
        let lost = survey.lostKeys(.lineage)
        guard !lost.isEmpty else { return }
        let had = (try? replica?.snapshot().references()) ?? []
        for reference in had where reference.name != Reference.latest {
            let key = CatalogTree.key(reference.name)
            guard lost.contains(LineageKey.reference(reference.name).bytes), values[reference.checkpoint] != nil, catalog.names[key] == nil else { continue }
            references[key] = reference.checkpoint
        }
        let latest = CatalogTree.key(Reference.latest)
        for (key, _) in scan.references where references[key] == nil && key != latest && lost.contains(CheckpointID.zeroKey + key) {
            noteLost(key, "set it again, if it is still wanted (`ckstore name set`)")
        }
        if references[latest] == nil, lost.contains(LineageKey.reference(Reference.latest).bytes) { references[latest] = newest(catalog) }
    }

    private mutating func noteLost(_ key: [UInt8], _ reason: String) {
        losses.append("the name that moves '\(String(decoding: key, as: UTF8.self))' is lost: \(reason)")
    }

    /// The checkpoint that was committed last.
    private func newest(_ catalog: CatalogRecovery) -> CheckpointID? {
        let partial = Set(catalog.names.filter { Names.isPartial(String(decoding: $0.key, as: UTF8.self)) }.values)
        let last = values.filter { !partial.contains($0.key) }.max { a, b in
            (a.value.generation, created(a), a.key) < (b.value.generation, created(b), b.key)
        }
        return last?.key
    }

    private func created(_ checkpoint: (key: CheckpointID, value: CatalogValue)) -> UInt64 {
        (try? blocks.readRecord(checkpoint.value, id: checkpoint.key))?.createdNanoseconds ?? 0
    }

    // MARK: the tree's entries

    /// Ascending by key.
    var entries: [(key: [UInt8], value: [UInt8])] {
        var all: [LineageEntry] = []
        for (id, member) in members {
            all.append(.node(id, parent: member.parent, member.state))
            if let parent = member.parent { all.append(.edge(parent: parent, child: id)) }
        }
        let named = references.map { key, id in (key: CheckpointID.zeroKey + key, value: CatalogTree.value(id)) }
        return (named + all.map { (key: $0.key.bytes, value: $0.value) }).sorted { $0.key.lexicographicallyPrecedes($1.key) }
    }
}

extension CheckpointID {
    /// What keys of references begin with.
    fileprivate static var zeroKey: [UInt8] { LineageKey.referencePrefix }
}
