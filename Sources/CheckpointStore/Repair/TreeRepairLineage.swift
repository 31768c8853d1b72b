// The lineage when nodes of it can't be read.
//
// What is sought is a tree in which what checkpoints share hangs together (format, 6.3 rule 4), for deleting frees what no neighbour
// names. Five sources, the safest first:
// 1. Entries that can be read. A member's entry and the edge from its parent say the same, so that either will do.
// 2. The record of a checkpoint that was saved here: its parent is the one that its trees were built over. Whoever wrote a root of its
//    regions itself was saved here; what is received has another writer's births.
// 3. Older copies of its entry: the oldest one of its life names the one that it was made over, or an ancestor of that.
// 4. A record that names no region's root: it shares nothing, and can stand anywhere.
// 5. Nothing. Then any member whose edge to it may have been lost can be its parent.
//
// The lineage is what is left of "made over" when deleted members with fewer than two children are taken out, whatever the order. So it
// is enough to know who was made over whom: deleted members that are put in only to lead upwards go again where they join nothing. One
// too many would do no harm: ways lead through tombstones freely.
//
// Members of the fifth kind must not become roots, nor be joined above their trees: their lost parent may be a living checkpoint
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
    /// A checkpoint in one of its lives: one that is received, deleted and received again has several. The last one has the greatest number.
    private struct Person: Hashable, Comparable {
        var id: CheckpointID
        var life = Int.max

        static func < (a: Person, b: Person) -> Bool { (a.id, a.life) < (b.id, b.life) }
    }
    private struct Relation {
        var parent: Person?
        var isLiving: Bool
    }

    private let store: CheckpointStore
    private let survey: TreeSurvey
    private let scan: TreeScan
    private let blocks: BlockReader
    private let catalog: CatalogRecovery
    private var values: [CheckpointID: CatalogValue] { catalog.values }
    private var people: [Person: Relation] = [:]
    /// Those whose parent nothing tells.
    private var unknown: [Person] = []
    private(set) var references: [[UInt8]: CheckpointID] = [:]
    private(set) var losses: [String] = []

    init(
        _ store: CheckpointStore, _ survey: TreeSurvey, _ scan: TreeScan, _ blocks: BlockReader, _ catalog: CatalogRecovery,
        replica: CheckpointStore?
    ) throws(StoreError) {
        self.store = store
        self.survey = survey
        self.scan = scan
        self.blocks = blocks
        self.catalog = catalog
        var pending = (Array(values.keys) + survey.members.keys + survey.edges.keys).map { Person(id: $0) }
        while let person = pending.popLast() {
            guard people[person] == nil else { continue }
            let parent = parent(of: person)
            people[person] = Relation(parent: parent, isLiving: person.life == .max && values[person.id] != nil)
            if let parent { pending.append(parent) }
        }
        breakCircles()
        if !store.has(.forgetsDescent) { gather() }
        contract()
        try recoverReferences(replica)
    }

    // MARK: parents

    private mutating func parent(of person: Person) -> Person? {
        if person.life == .max {
            if let known = survey.members[person.id] { return known.parent.map { Person(id: $0) } }
            if let parent = survey.edges[person.id] { return Person(id: parent) }
        }
        if store.has(.forgetsDescent) { return nil }
        if let (parent, time) = savedOver(person) ?? copiedParent(person) ?? placeOfEmpty(person) {
            return parent.map { self.person($0, at: time) }
        }
        unknown.append(person)
        return nil
    }

    /// The lives of an id begin with these generations, as far as copies of the catalog tell.
    private func lives(_ id: CheckpointID) -> [UInt64] {
        var lives = scan.lives[id] ?? []
        if let value = values[id], !catalog.estimated.contains(id) { lives.insert(value.generation.rawValue) }
        return lives.sorted()
    }

    /// Who had that id in a generation.
    private func person(_ id: CheckpointID, at time: UInt64) -> Person {
        let lives = lives(id)
        let begun = lives.count { $0 <= time }
        return Person(id: id, life: begun == lives.count ? .max : begun)
    }

    /// The parent that the record of a checkpoint names which was saved here, and when that was so; nil when that is not known.
    private func savedOver(_ person: Person) -> (parent: CheckpointID?, time: UInt64)? {
        let id = person.id
        var record: CheckpointRecord?
        if person.life == .max, let value = values[id] {
            record = try? blocks.readRecord(value, id: id)
        } else {
            // Of a deleted one, as long as its record has not been overwritten.
            for pointer in scan.records[id] ?? [] where record == nil {
                record = try? store.decodeInPlace(pointer) { bytes throws(FormatError) in try CheckpointRecord.decode(bytes) }
            }
        }
        guard let record, record.id == id, record.regions.contains(where: { $0.root?.birth == BlockBirth(id) }) else { return nil }
        return (record.parent, record.baseGeneration.rawValue)
    }

    /// Whoever names no block can stand anywhere: below the parent that its record names, if that is there, or as a root.
    private func placeOfEmpty(_ person: Person) -> (parent: CheckpointID?, time: UInt64)? {
        guard person.life == .max, let value = values[person.id], let record = try? blocks.readRecord(value, id: person.id),
            record.regions.allSatisfy({ $0.root == nil })
        else { return nil }
        let time = record.baseGeneration.rawValue
        guard let parent = record.parent, values[parent] != nil, self.person(parent, at: time).life == .max else { return (nil, time) }
        return (parent, time)
    }

    /// The parent by the oldest copy of its entry.
    private func copiedParent(_ person: Person) -> (parent: CheckpointID?, time: UInt64)? {
        let lives = lives(person.id)
        let number = min(person.life, lives.count)
        let begin = number > 0 ? lives[number - 1] : 0
        let end = number < lives.count ? lives[number] : .max
        let copies = (scan.members[person.id] ?? []).filter { $0.birth.rawValue >= begin && $0.birth.rawValue < end }
        return copies.min { $0.birth < $1.birth }.map { ($0.parent, $0.birth.rawValue) }
    }

    private mutating func breakCircles() {
        for start in people.keys.sorted() {
            var (seen, next): (Set<Person>, Person?) = ([], start)
            while let person = next {
                guard seen.insert(person).inserted else {
                    people[person]?.parent = nil
                    unknown.append(person)
                    break
                }
                next = people[person]?.parent
            }
        }
    }

    // MARK: members of unknown descent

    /// Puts all living members of the trees concerned below one new tombstone.
    private mutating func gather() {
        guard !unknown.isEmpty else { return }
        let lost = survey.lostKeys(.lineage)
        var roots = Set(unknown.map(root))
        for person in people.keys where person.life == .max && !roots.contains(root(person)) {
            // Some edge of it may have been lost: to one of unknown descent, or to a deleted member that nothing else tells of.
            if lost.mayHold(keysWith: CatalogTree.key(person.id)) { roots.insert(root(person)) }
        }
        let gathered = people.filter { roots.contains(root($0.key)) }
        let living = gathered.filter(\.value.isLiving)
        // An only tree of unknown descent: there is nobody else that it could descend from.
        guard roots.count > 1, living.count > 1 else { return }
        let tombstone = freshID { CheckpointID.gathering($0) }
        for person in gathered.keys { people[person] = nil }
        for person in living.keys { people[person] = Relation(parent: Person(id: tombstone), isLiving: true) }
        people[Person(id: tombstone)] = Relation(parent: nil, isLiving: false)
        losses.append("of \(living.count) checkpoints it is not known any more who descends from whom")
    }

    private func freshID(_ make: (UInt64) -> CheckpointID) -> CheckpointID {
        while true {
            let id = make(store.environment.random())
            if id.rawValue != 0, people[Person(id: id)] == nil { return id }
        }
    }

    private func root(_ person: Person) -> Person {
        var root = person
        while let parent = people[root]?.parent { root = parent }
        return root
    }

    /// Takes out deleted members that join no branches.
    private mutating func contract() {
        var children: [Person: Set<Person>] = [:]
        for (person, relation) in people { if let parent = relation.parent { children[parent, default: []].insert(person) } }
        var pending = people.filter { !$0.value.isLiving }.map(\.key)
        while let person = pending.popLast() {
            guard let relation = people[person], !relation.isLiving, children[person]?.count ?? 0 < 2 else { continue }
            let only = children[person]?.first
            people[person] = nil
            if let only { people[only]?.parent = relation.parent }
            guard let parent = relation.parent else { continue }
            children[parent]?.remove(person)
            if let only { children[parent]?.insert(only) }
            pending.append(parent)
        }
    }

    /// The members by the ids that they are to have: a life that was not the last keeps its id only where nobody else has it.
    private var members: [CheckpointID: LineageTree.Node] {
        var idOf: [Person: CheckpointID] = [:]
        var taken: Set<CheckpointID> = []
        for person in people.keys.sorted(by: >) {
            let id = taken.contains(person.id) ? freshID { CheckpointID($0) } : person.id
            taken.insert(id)
            idOf[person] = id
        }
        var members: [CheckpointID: LineageTree.Node] = [:]
        for (person, id) in idOf {
            guard let relation = people[person] else { continue }
            members[id] = LineageTree.Node(parent: relation.parent.flatMap { idOf[$0] }, state: relation.isLiving ? .living : .tombstone)
        }
        return members
    }

    // MARK: names that move

    private mutating func recoverReferences(_ replica: CheckpointStore?) throws(StoreError) {
        references = survey.references.filter { values[$0.value] != nil && catalog.names[$0.key] == nil }
        for (key, _) in survey.references where references[key] == nil { noteLost(key, "the checkpoint that it led to is lost") }
        let lost = survey.lostKeys(.lineage)
        guard !lost.isEmpty else { return }
        let had = (try? replica?.snapshot().references()) ?? []
        for reference in had where reference.name != Reference.latest {
            let key = CatalogTree.key(reference.name)
            guard lost.contains(LineageKey.reference(reference.name).bytes), values[reference.checkpoint] != nil, catalog.names[key] == nil
            else { continue }
            references[key] = reference.checkpoint
        }
        let latest = CatalogTree.key(Reference.latest)
        for (key, _) in scan.references where references[key] == nil && key != latest && lost.contains(CheckpointID.zeroKey + key) {
            noteLost(key, "set it again, if it is still wanted (`ckstore name set`)")
        }
        noteUnknownNames(lost)
        if references[latest] == nil, lost.contains(LineageKey.reference(Reference.latest).bytes) { references[latest] = newest() }
    }

    /// A name whose only copy was in the lost node is known by nobody. A commit that added a checkpoint has hardly added a name too.
    private mutating func noteUnknownNames(_ lost: LostKeys) {
        guard let written = lost.birth(of: LineageKey.reference(Reference.latest).bytes) else { return }
        let wasSave = values.contains { !catalog.estimated.contains($0.key) && BlockBirth($0.value.generation) == written }
        let copied = scan.references.values.map(\.birth).max()
        if copied == nil || (copied.map { $0 < written } ?? false && !wasSave) {
            losses.append("names that move which were set last, in generation \(written.rawValue), may be lost")
        }
    }

    private mutating func noteLost(_ key: [UInt8], _ reason: String) {
        losses.append("the name that moves '\(String(decoding: key, as: UTF8.self))' is lost: \(reason)")
    }

    /// The checkpoint that was committed last.
    private func newest() -> CheckpointID? {
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
