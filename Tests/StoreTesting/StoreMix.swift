// Random mixes of every operation that a store has, with the model of what they must leave.
//
// Invariants:
// - A seed and the sizes decide everything, so that a run is replayed by its seed.
// - The model knows bytes, names and who was made over whom; nothing of trees, runs and segments.

import CheckpointStore
import CheckpointStream
import FaultHarness
import Media
import StoreFormat
import Units

/// What a mix must have done often enough for it to mean something.
package enum MixOperation: String, CaseIterable, Sendable {
    case save, saveGroup, inherit, abort, delete, deleteReferenced, prune, point, unpoint, compact, receive, receiveChange, receiveCut, resume
    case discard, diff, hold, compareHeld, grow, verify
}

/// Random operations on one store and on its model.
package struct StoreMix {
    /// A checkpoint as the model has it.
    package struct Entry: Sendable {
        package var id: CheckpointID
        package var createdNanoseconds: UInt64
        package var isLabelled: Bool
        package var regions: ModelCheckpoint
    }

    /// A reader that is kept over other operations, and what it must show.
    private struct Held {
        let reader: CheckpointReader
        let regions: ModelCheckpoint
    }

    package var random: SeededGenerator
    package internal(set) var entries: [String: Entry] = [:]
    package internal(set) var counts: [MixOperation: Int] = [:]
    var lineage = LineageModel()
    var references: [String: CheckpointID] = [:]
    /// Checkpoints of which a part has come, by the id of the part.
    var parts: Set<CheckpointID> = []
    let parallelism: Int
    let maximumPages: Int
    private var held: [Held] = []
    private var serial = 0
    var source: MixSource

    package init(seed: UInt64, parallelism: Int = 1, maximumPages: Int) throws {
        random = SeededGenerator(seed: seed)
        self.parallelism = parallelism
        self.maximumPages = maximumPages
        // Not the numbers of those who save into the store: ids must differ.
        source = try MixSource(seed: seed ^ 0x5EED_0000_0000, maximumPages: maximumPages)
    }

    mutating func count(_ operation: MixOperation) { counts[operation, default: 0] += 1 }

    /// The contents alone.
    package var model: [String: ModelCheckpoint] { entries.mapValues(\.regions) }

    /// Readers must not hold a handle that is closed.
    package mutating func letGo() { held = [] }

    /// One random operation. A full store is answered by deleting.
    package mutating func step(_ store: CheckpointStore) throws {
        do { try operate(store) } catch let error as StoreError where error.code == .noSpace {
            held = []
            guard !entries.isEmpty || !parts.isEmpty else { throw error }
            // What came in part may be what fills it.
            if !parts.isEmpty { try discard(store) }
            if !entries.isEmpty { try delete(store) }
        }
    }

    private mutating func operate(_ store: CheckpointStore) throws {
        switch random.below(100) {
        case 0..<34: try save(store, count: 1)
        case 34..<40: try save(store, count: 2 + random.below(2))
        case 40..<55: try delete(store)
        case 55..<58: try prune(store)
        case 58..<64: try point(store)
        case 64..<66: try unpoint(store)
        case 66..<75: try compact(store)
        case 75..<84: try receive(store)
        case 84..<86: try discard(store)
        case 86..<91: try diff(store)
        case 91..<96: try hold(store)
        case 96: try grow(store)
        default:
            count(.verify)
            try requireEqual(store)
        }
        if random.chance(1, in: 3), let one = held.first { try compare(one) }
        if held.count > 3 { held.removeFirst() }
    }

    // MARK: saving

    private mutating func save(_ store: CheckpointStore, count: Int) throws {
        var writers: [CheckpointWriter] = []
        var saved: [(name: String, parent: CheckpointID?, entry: Entry)] = []
        defer { for writer in writers { writer.abort() } }
        for _ in 0..<count {
            serial += 1
            let parent = random.chance(1, in: 5) ? nil : anyName()
            let isLabelled = random.chance(1, in: 5)
            let writer = try store.begin(
                "c\(serial)", parent: parent,
                options: WriterOptions(parallelism: parallelism, labels: isLabelled ? ["keep": "yes"] : [:]))
            writers.append(writer)
            let old = parent.flatMap { entries[$0] }
            var changes = MixChanges(random: random, maximumPages: maximumPages)
            let (regions, inherited) = try changes.fill(writer, over: old?.regions ?? [:])
            random = changes.random
            if inherited > 0 { self.count(.inherit) }
            saved.append(
                ("c\(serial)", old?.id, Entry(id: CheckpointID(1), createdNanoseconds: 0, isLabelled: isLabelled, regions: regions)))
        }
        if random.chance(1, in: 12) { return self.count(.abort) }
        let infos = try store.commit(writers)
        writers = []
        self.count(count > 1 ? .saveGroup : .save)
        for (info, one) in zip(infos, saved) {
            var entry = one.entry
            (entry.id, entry.createdNanoseconds) = (info.id, info.createdNanoseconds)
            add(one.name, entry, over: one.parent)
        }
    }

    mutating func add(_ name: String, _ entry: Entry, over parent: CheckpointID?) {
        entries[name] = entry
        lineage.add(entry.id, over: parent)
        references[Reference.latest] = entry.id
    }

    /// Any checkpoint's name.
    mutating func anyName() -> String? {
        let names = entries.keys.sorted()
        return names.isEmpty ? nil : names[random.below(names.count)]
    }

    // MARK: deleting

    private func isReferenced(_ id: CheckpointID) -> Bool { references.contains { $0.key != Reference.latest && $0.value == id } }

    private mutating func remove(_ name: String) {
        guard let entry = entries.removeValue(forKey: name) else { return }
        if references[Reference.latest] == entry.id { references[Reference.latest] = lineage.livingAncestor(of: entry.id) }
        lineage.remove(entry.id)
    }

    private mutating func delete(_ store: CheckpointStore) throws {
        let doomed = Array(entries.keys.sorted().shuffled(using: &random).prefix(1 + random.below(3)))
        guard !doomed.isEmpty else { return }
        if doomed.contains(where: { entries[$0].map { isReferenced($0.id) } ?? false }) {
            count(.deleteReferenced)
            do throws(StoreError) { try store.delete(doomed) } catch {
                guard error.code == .referenced else { throw error }
                return
            }
            throw Mismatch("a checkpoint that a name leads to was deleted")
        }
        count(.delete)
        if let obstacle = try store.delete(doomed).obstacle { throw obstacle }
        for name in doomed { remove(name) }
    }

    /// Deletes one that no name keeps.
    mutating func delete(_ name: String, _ store: CheckpointStore) throws {
        if let obstacle = try store.delete([name]).obstacle { throw obstacle }
        remove(name)
    }

    private mutating func prune(_ store: CheckpointStore) throws {
        count(.prune)
        var policy = RetentionPolicy()
        policy.last = 1 + random.below(6)
        policy.labels = [.init(key: "keep")]
        let oldestFirst = entries.sorted { ($0.value.createdNanoseconds, $0.value.id) < ($1.value.createdNanoseconds, $1.value.id) }
        let named = Set(references.values)
        let doomed = oldestFirst.dropLast(policy.last).filter { !$0.value.isLabelled && !named.contains($0.value.id) }.map(\.key)
        let result = try store.prune(policy)
        if let obstacle = result.deletion?.obstacle { throw obstacle }
        guard result.deletion?.deleted == doomed else {
            throw Mismatch("pruning deleted \(result.deletion?.deleted ?? []), should have deleted \(doomed)")
        }
        for name in doomed { remove(name) }
    }

    // MARK: names that move

    private mutating func point(_ store: CheckpointStore) throws {
        guard let name = anyName(), let id = entries[name]?.id else { return }
        count(.point)
        let reference = ["golden", "good"][random.below(2)]
        try store.setReference(reference, to: name)
        references[reference] = id
    }

    private mutating func unpoint(_ store: CheckpointStore) throws {
        guard let reference = references.keys.filter({ $0 != Reference.latest }).min() else { return }
        count(.unpoint)
        try store.removeReference(reference)
        references[reference] = nil
    }

    // MARK: the rest

    private mutating func compact(_ store: CheckpointStore) throws {
        let options = CompactionOptions(
            targetAmplification: 1, minimumDeadShare: [0.01, 0.1, 0.3][random.below(3)],
            batchBytes: .kibibytes(UInt64(50 + random.below(400))), parallelism: parallelism)
        let report = try store.compact(options)
        if report.movedBlocks > 0 { count(.compact) }
        if let obstacle = report.obstacle, obstacle.code != .noSpace { throw obstacle }
        if let damage = report.damaged.first { throw damage }
    }

    private mutating func grow(_ store: CheckpointStore) throws {
        guard store.medium.size < .mebibytes(48), store.medium.traits.kind != .ram else { return }
        count(.grow)
        try store.resize(to: store.medium.size + .kibibytes(256))
    }

    private mutating func diff(_ store: CheckpointStore) throws {
        guard let older = anyName(), let newer = anyName(), let a = entries[older]?.regions, let b = entries[newer]?.regions else { return }
        count(.diff)
        let snapshot = try store.snapshot()
        let changes = ChangeSet(from: try snapshot.reader(named: older), to: try snapshot.reader(named: newer))
        guard changes.regions.map(\.name) == Set(a.keys).union(b.keys).sorted() else { throw Mismatch("diff: other regions") }
        for change in changes.regions {
            var found: [Int: PageDifference] = [:]
            try changes.forEachDifference(of: change) { (pages, kind) throws(StoreError) in
                for page in pages.lowerBound.rawValue..<pages.upperBound.rawValue { found[Int(page)] = kind }
            }
            guard found == modelDifferences(a[change.name] ?? [], b[change.name] ?? []) else {
                throw Mismatch("diff of \(older) and \(newer): another one in \(change.name)")
            }
        }
    }

    private mutating func hold(_ store: CheckpointStore) throws {
        guard let name = anyName(), let regions = entries[name]?.regions else { return }
        count(.hold)
        held.append(Held(reader: try store.snapshot().reader(named: name), regions: regions))
    }

    private mutating func compare(_ held: Held) throws {
        count(.compareHeld)
        for (name, bytes) in held.regions where try held.reader.region(name).bytes(parallelism: parallelism) != bytes {
            throw Mismatch("\(held.reader.info.name)/\(name) reads otherwise through a view from before")
        }
    }

    /// Throws unless the store is as the model says, `live` and lineage included.
    package func requireEqual(_ store: CheckpointStore) throws {
        try store.requireEqual(model, parallelism: parallelism)
        let snapshot = try store.snapshot()
        try lineage.requireEqual(snapshot)
        let found = Dictionary(uniqueKeysWithValues: try snapshot.references().map { ($0.name, $0.checkpoint) })
        guard found == references else { throw Mismatch("names \(found), expected \(references)") }
    }
}

/// How pages of two regions differ, by their bytes.
private func modelDifferences(_ older: [UInt8], _ newer: [UInt8]) -> [Int: PageDifference] {
    var found: [Int: PageDifference] = [:]
    for page in 0..<(max(older.count, newer.count) + pageSize - 1) / pageSize {
        let (a, b) = (padded(older, page), padded(newer, page))
        guard a != b else { continue }
        found[page] = nonZeroPages(a) == 0 ? .onlyInNewer : nonZeroPages(b) == 0 ? .onlyInOlder : .changed
    }
    return found
}

/// A page of `bytes`, with zeros behind their end.
private func padded(_ bytes: [UInt8], _ page: Int) -> [UInt8] {
    let piece = bytes.dropFirst(page * pageSize).prefix(pageSize)
    return Array(piece) + [UInt8](repeating: 0, count: pageSize - piece.count)
}
