// The catalogs when nodes of them can't be read: each from the other, from older copies, from records.
//
// Invariants:
// - A checkpoint is put back only when something that can be read says that it lives: the other catalog, the lineage, or the count of
//   checkpoints in the superblock. What is merely found on the medium may have been deleted: where that is all there is, nothing is
//   changed.
// - Its record has been read, and is that of its id.

import StoreFormat
import Units

/// The catalogs as they are to be. Confined to one thread.
struct CatalogRecovery {
    private let store: CheckpointStore
    private let survey: TreeSurvey
    private let scan: TreeScan
    private let blocks: BlockReader
    private(set) var values: [CheckpointID: CatalogValue]
    private(set) var names: [[UInt8]: CheckpointID]
    /// Of whom the generation of the commit is not known for certain.
    private(set) var estimated: Set<CheckpointID> = []
    /// Whether the trees must be written anew.
    private(set) var changesIDs: Bool
    private(set) var changesNames: Bool
    /// Sentences.
    private(set) var losses: [String] = []

    init(_ store: CheckpointStore, _ survey: TreeSurvey, _ scan: TreeScan, _ blocks: BlockReader) throws(StoreError) {
        self.store = store
        self.survey = survey
        self.scan = scan
        self.blocks = blocks
        (values, names) = (survey.values, survey.names)
        changesIDs = survey.damaged[.byID] != nil
        changesNames = survey.damaged[.byName] != nil
        guard changesIDs || changesNames else { return }
        let living = living()
        for id in living.subtracting(values.keys).sorted() { try findRecord(id) }
        try findNames()
        for (name, id) in names where values[id] == nil {
            names[name] = nil
            changesNames = true
        }
    }

    // MARK: who lives

    private func living() -> Set<CheckpointID> {
        if survey.damaged[.byID] == nil { return Set(survey.values.keys) }
        if survey.damaged[.byName] == nil { return Set(survey.names.values) }
        let members = survey.members.filter { $0.value.state == .living }.map(\.key)
        return Set(members).union(survey.values.keys).union(survey.names.values)
    }

    /// Those that nothing but their records speaks for.
    private mutating func addUncertain() throws(StoreError) {
        guard survey.damaged[.byID] != nil, survey.damaged[.byName] != nil, survey.damaged[.lineage] != nil else { return }
        let missing = Int(survey.slot.checkpointCount) - values.count
        guard missing > 0 else { return }
        var found: [(id: CheckpointID, value: CatalogValue, name: String)] = []
        for id in Set(scan.values.keys).union(scan.records.keys).subtracting(values.keys).sorted() {
            let keys = (CatalogTree.key(id), LineageKey.node(id).bytes)
            guard survey.lostKeys(.byID).contains(keys.0), survey.lostKeys(.lineage).contains(keys.1), let (value, record) = try record(of: id),
                survey.lostKeys(.byName).contains(CatalogTree.key(record.name))
            else { continue }
            found.append((id, value, record.name))
        }
        if found.count == missing {
            for one in found { values[one.id] = one.value }
            return
        }
        // To leave some out would give their blocks away for ever; to take all in would bring deleted ones back.
        let names = found.prefix(5).map(\.name).joined(separator: ", ")
        throw StoreError(
            .corrupt,
            "the catalogs and the lineage can't be read, and it can't be told which \(missing) of \(found.count) checkpoints that were found "
                + "(\(names)\(found.count > 5 ? ", …" : "")) have not been deleted",
            remedy: "Save what can be read into a new store (`ckstore salvage`), or repair from a copy of the medium.",
            medium: store.medium.name)
    }

    // MARK: records

    private mutating func findRecord(_ id: CheckpointID) throws(StoreError) {
        if let (value, _) = try record(of: id) {
            values[id] = value
            if scan.values[id] != value { estimated.insert(id) }
            return
        }
        let name = survey.names.first { $0.value == id }.map { String(decoding: $0.key, as: UTF8.self) } ?? scan.names[id]
        losses.append("checkpoint \(name.map { "\($0) (\(id))" } ?? id.description) is lost: its record was not found")
    }

    /// The record of the last checkpoint of that id, and what the catalog should say of it. An id may have been received, deleted and
    /// received again.
    private func record(of id: CheckpointID) throws(StoreError) -> (CatalogValue, CheckpointRecord)? {
        let moved = (survey.moves.merging(scan.moves.mapValues(\.entry)) { first, _ in first })
            .filter { $0.value.kind == .checkpointRecord && $0.key.birth == BlockBirth(id) }
        // A record is the same byte for byte wherever it is: the pointer to where it was first is known from where it went.
        let first = moved.map { key, entry in
            var pointer = entry.target
            (pointer.segment, pointer.offset) = (key.segment, key.offset)
            return pointer
        }
        let known = scan.values[id]
        var best: (value: CatalogValue, record: CheckpointRecord)?
        let targets = Set(moved.values.map(\.target))
        for pointer in [known?.record].compactMap(\.self) + first + (scan.records[id] ?? []) where !targets.contains(pointer) {
            let isKnown = pointer == known?.record
            guard let read = try? blocks.readRecord(CatalogValue(record: pointer, generation: survey.slot.generation), id: id) else { continue }
            let generation = isKnown ? known?.generation : nil
            let value = CatalogValue(record: pointer, generation: generation ?? self.generation(of: read))
            if best.map({ $0.record.baseGeneration < read.baseGeneration }) ?? true { best = (value, read) }
        }
        return best
    }

    /// When a checkpoint was committed of which no copy of the catalog tells: at the latest when the lost node was written.
    private func generation(of record: CheckpointRecord) -> Generation {
        let written = survey.lostKeys(.byID).birth(of: CatalogTree.key(record.id))?.rawValue ?? survey.slot.generation.rawValue
        return Generation(min(survey.slot.generation.rawValue, max(record.baseGeneration.rawValue + 1, written)))
    }

    // MARK: names

    private mutating func findNames() throws(StoreError) {
        try addUncertain()
        let named = Set(names.values)
        for (id, value) in values.sorted(by: { $0.key < $1.key }) where !named.contains(id) {
            changesNames = true
            let record = try? blocks.readRecord(value, id: id)
            let survivor = record?.name ?? scan.names[id]
            let name = survivor ?? "recovered-\(id)"
            if survivor == nil { losses.append("the name of checkpoint \(id) is lost with its record: it is called \(name) now") }
            names[CatalogTree.key(name)] = id
        }
    }
}
