// What a commit does to the lineage, to names that move, and to the count of what is alive.
//
// Invariants:
// - Catalog and lineage name the same checkpoints after every change.
// - `live` of a segment is counted down once for each block, or page of a run, that dies, by `release` (CommitTransaction+Forwarding.swift) alone.

import Media
import StoreFormat
import Units

extension CommitTransaction {
    /// The lineage as this commit leaves it so far.
    var lineageTree: LineageTree { LineageTree(store: store, editing: lineage) }

    /// Points a moving name at a checkpoint of the new generation.
    func point(_ name: String, to id: CheckpointID) throws(StoreError) {
        guard try byName.value(of: CatalogTree.key(name)) == nil else {
            throw StoreError(
                .exists, "there is a checkpoint of that name, so it can't be a name that moves", remedy: "Choose another name.",
                medium: store.medium.name, checkpoint: name)
        }
        try lineageTree.point(name, to: id)
    }

    /// Takes a checkpoint out of the catalog and the lineage; `latest` goes to its nearest living ancestor if it led there. What it alone names
    /// must have been released before.
    func remove(_ id: CheckpointID, name: String) throws(StoreError) {
        let lineage = lineageTree
        if try lineage.reference(Reference.latest) == id {
            if let ancestor = try wholeAncestor(of: id) {
                try lineage.point(Reference.latest, to: ancestor)
            } else {
                try lineage.removeReference(Reference.latest)
            }
        }
        try lineage.bury(id)
        guard try byID.remove(CatalogTree.key(id)), try byName.remove(CatalogTree.key(name)) else {
            throw StoreError(.corrupt, "the catalog's trees disagree", medium: store.medium.name, checkpoint: name)
        }
        try lower(&slot.checkpointCount)
    }

    /// The nearest living ancestor that is no part of a checkpoint that is being received.
    private func wholeAncestor(of id: CheckpointID) throws(StoreError) -> CheckpointID? {
        var next = try lineageTree.livingAncestor(of: id)
        while let ancestor = next {
            // One whose record can't be read is told to be damaged by whoever reads it.
            guard let value = try store.catalogValue(of: ancestor, in: base),
                let record = try? store.blocks(in: base).readRecord(value, id: ancestor), Names.isPartial(record.name)
            else { return ancestor }
            next = try lineageTree.livingAncestor(of: ancestor)
        }
        return nil
    }

    /// Frees the segments from which the last block has been released, where nobody is writing to them. Returns those; this handle
    /// holds their claims.
    func freeEmptied() throws(StoreError) -> [SegmentIndex] {
        var freed: [SegmentIndex] = []
        do {
            for segment in lowered.sorted() where try table.entry(segment).live == 0 {
                guard try store.lockClaim(segment) else { continue }
                freed.append(segment)
                try free(segment)
            }
        } catch {
            store.unclaim(freed)
            throw error
        }
        return freed
    }
}
