// Which checkpoints there were, by all that is left.
//
// Invariants:
// - With slots and catalog whole, those that the catalog names and no others: deleted ones don't come back.
// - Parents come before their children.
// - What has come of a checkpoint in part is none: who was sending it has all of it.

import StoreFormat
import Units

/// A checkpoint to bring back.
struct SalvageCandidate: Sendable {
    var id: CheckpointID
    /// Nil when it can't be read.
    var record: CheckpointRecord?
    var name: String?

    var isPart: Bool { name.map(Names.isPartial) ?? false }
}

/// The candidates in order, and how sure it is that these are all.
struct SalvageCandidates: Sendable {
    var all: [SalvageCandidate] = []
    var isCatalogWhole = false
    /// Births that have runs but no proof of a checkpoint.
    var unproven: [BlockBirth] = []
    /// How many had come in part only.
    var partCount = 0

    init(_ source: SalvageSource) {
        let (values, names, isWhole) = Self.catalog(source)
        let found = source.inventory
        isCatalogWhole = isWhole && source.layout.isNewest && found.newestGeneration <= source.layout.slot?.generation ?? Generation(UInt64(0))
        var pointers = values
        var nameOf = names
        if !isCatalogWhole {
            for (id, commit) in found.commits {
                nameOf[id] = nameOf[id] ?? commit.name
                pointers[id] = pointers[id] ?? commit.record
            }
            for (id, record) in found.records { pointers[id] = record }
            unproven = found.runCounts.keys.filter { birth in
                let id = CheckpointID(birth.rawValue)
                return pointers[id] == nil && nameOf[id] == nil && !found.committedBirths.contains(birth)
            }.sorted()
        }
        let ids = Set(pointers.keys).union(nameOf.keys)
        var candidates = ids.map { id in
            let record = pointers[id].flatMap { try? source.record($0, id: id) }
            return SalvageCandidate(id: id, record: record, name: record?.name ?? nameOf[id])
        }
        partCount = candidates.count { $0.isPart }
        candidates.removeAll { $0.isPart }
        all = Self.parentsFirst(candidates)
    }

    /// What is left of the catalog, both ways.
    private static func catalog(
        _ source: SalvageSource
    ) -> (values: [CheckpointID: BlockPointer], names: [CheckpointID: String], isWhole: Bool) {
        guard let slot = source.layout.slot else { return ([:], [:], false) }
        var (values, names, isWhole): ([CheckpointID: BlockPointer], [CheckpointID: String], Bool) = ([:], [:], true)
        // Nothing is thrown: what can't be read is skipped, and makes the catalog less than whole.
        try? source.store.forEachInCatalog(slot.catalogByID, tree: .byID, skipping: { _, _, _, _ in isWhole = false }) { key, bytes in
            guard let id = CatalogTree.id(ofKey: key), let value = try? source.store.decodeCatalogValue(bytes) else { return isWhole = false }
            values[id] = value.record
        }
        try? source.store.forEachInCatalog(slot.catalogByName, tree: .byName, skipping: { _, _, _, _ in isWhole = false }) { key, bytes in
            guard let id = try? source.store.decodeCatalogID(bytes) else { return isWhole = false }
            names[id] = String(decoding: key, as: UTF8.self)
        }
        return (values, names, isWhole && UInt64(values.count) == slot.checkpointCount)
    }

    /// By the time of their making, but each behind its parent. Those without a record come last.
    private static func parentsFirst(_ candidates: [SalvageCandidate]) -> [SalvageCandidate] {
        let sorted = candidates.sorted { a, b in
            (a.record?.createdNanoseconds ?? .max, a.id) < (b.record?.createdNanoseconds ?? .max, b.id)
        }
        let byID = Dictionary(sorted.map { ($0.id, $0) }) { first, _ in first }
        var (ordered, placed): ([SalvageCandidate], Set<CheckpointID>) = ([], [])
        for candidate in sorted {
            // From the oldest that is not placed yet down to this one; ids in a circle, which nobody writes, end the climb.
            var chain: [SalvageCandidate] = []
            var next: SalvageCandidate? = candidate
            while let one = next, placed.insert(one.id).inserted {
                chain.append(one)
                next = one.record?.parent.flatMap { byID[$0] }
            }
            ordered += chain.reversed()
        }
        return ordered
    }
}
