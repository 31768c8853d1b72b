// Checking the catalog, both ways.
//
// Invariant: a damaged node takes away the checkpoints whose keys are in its range, and no others: the other tree names them.

import StoreFormat
import Units

/// What could be read of the catalog.
struct CatalogFindings {
    /// A node that can't be read, and the keys that are below it.
    struct Gap {
        var damage: Int
        var low: [UInt8]
        var high: [UInt8]?

        func contains(_ key: [UInt8]) -> Bool {
            !key.lexicographicallyPrecedes(low) && (high.map { key.lexicographicallyPrecedes($0) } ?? true)
        }
    }

    var names: [(name: String, id: CheckpointID)] = []
    var values: [(id: CheckpointID, value: CatalogValue)] = []
    /// Whether `forget` left some out.
    private(set) var isCut = false
    var gapsByName: [Gap] = []
    var gapsByID: [Gap] = []

    /// Leaves out checkpoints that have been deleted since.
    mutating func forget(_ ids: Set<CheckpointID>) {
        isCut = isCut || !ids.isEmpty
        names.removeAll { ids.contains($0.id) }
        values.removeAll { ids.contains($0.id) }
    }

    /// Work for each checkpoint of the tree by id.
    var jobs: [CheckpointJob] {
        let nameOf = Dictionary(names.map { ($0.id, $0.name) }) { first, _ in first }
        return values.map { CheckpointJob(id: $0.id, name: nameOf[$0.id], value: $0.value) }
    }
}

extension Verifier {
    /// Reads both trees as far as they can be read.
    func catalog() throws(StoreError) -> CatalogFindings {
        var found = CatalogFindings()
        found.gapsByName = try walk(slot.catalogByName, .byName) { (key, bytes) throws(StoreError) in
            found.names.append((String(decoding: key, as: UTF8.self), try store.decodeCatalogID(bytes)))
        }
        found.gapsByID = try walk(slot.catalogByID, .byID) { (key, bytes) throws(StoreError) in
            guard let id = CatalogTree.id(ofKey: key) else { preconditionFailure("decoding checks the keys of the catalog") }
            found.values.append((id, try store.decodeCatalogValue(bytes)))
        }
        return found
    }

    private func walk(
        _ root: BlockPointer?, _ tree: CatalogTree, _ body: ([UInt8], [UInt8]) throws(StoreError) -> Void
    ) throws(StoreError) -> [CatalogFindings.Gap] {
        var gaps: [CatalogFindings.Gap] = []
        try store.forEachInCatalog(
            root, tree: tree, visiting: { self.trees.countSound($0) },
            skipping: { [trees] (error, pointer, low, high) throws(StoreError) in
                gaps.append(CatalogFindings.Gap(damage: try trees.note(error, block: pointer, isOfBlock: true), low: low, high: high))
            }
        ) { (key, bytes) throws(StoreError) in
            do throws(StoreError) { try body(key, bytes) } catch { _ = try trees.note(error, block: nil) }
        }
        return gaps
    }

    /// Both trees name the same checkpoints; what a damaged node hides of one, the other names.
    func checkCatalog(_ found: CatalogFindings) throws(StoreError) {
        let nameOf = trees.recordNames
        for (name, id) in found.names {
            let known = nameOf[id]
            if let known, !Names.equal(known, name) {
                try noteStore("the catalog by name leads from \(name) to \(known)")
            } else if known == nil, !trees.jobsSeen.contains(id) {
                guard let gap = found.gapsByID.first(where: { $0.contains(CatalogTree.key(id)) }) else {
                    try noteStore("the catalog by name leads from \(name) to \(id), which is not in the catalog by id")
                    continue
                }
                trees.addLoss(gap.damage, AffectedCheckpoint(id: id, name: name))
            }
        }
        let named = Set(found.names.map(\.id))
        for (id, _) in found.values where !named.contains(id) {
            let name = nameOf[id]
            if let name, let gap = found.gapsByName.first(where: { $0.contains(CatalogTree.key(name)) }) {
                trees.addLoss(gap.damage, AffectedCheckpoint(id: id, name: name))
            } else if name != nil || found.gapsByName.isEmpty {
                try noteStore("checkpoint \(id) (\(name ?? "its record can't be read")) is not in the catalog by name")
            }
        }
        guard found.gapsByID.isEmpty, found.gapsByName.isEmpty else { return }
        guard found.names.count == found.values.count, found.isCut || UInt64(found.values.count) == slot.checkpointCount else {
            return try noteStore(
                "\(found.names.count) names, \(found.values.count) ids and a count of \(slot.checkpointCount) don't agree")
        }
    }
}
