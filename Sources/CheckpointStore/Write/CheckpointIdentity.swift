// Who a checkpoint is when it is not a new one: it came from another store, or is kept until the rest of it has come.
//
// Invariant: what was written for a checkpoint carries a random number of its writer as its birth, never an identity that came from
// outside: a checkpoint that is received, deleted and received again writes no place twice under one birth.

import StoreFormat
import Units

/// What the record of a checkpoint is to say instead of what its writer chose.
package struct CheckpointIdentity: Sendable {
    /// Its identity.
    package var id: CheckpointID
    /// Its name.
    package var name: String
    /// The parent that the record names; it need not be in the store.
    package var parent: CheckpointID?
    /// When it was begun, since 1970-01-01 UTC.
    package var createdNanoseconds: UInt64
    /// Keys ascending bytewise, unique.
    package var labels: [Label]
    /// True when the checkpoint that it was begun over is the first part of it: what that stored counts as stored by this one.
    package var continuesBase: Bool
    /// How many pages that are not zero each region must have, in the order of the regions; nil: nobody knows.
    package var storedPages: [PageCount]?

    package init(
        id: CheckpointID, name: String, parent: CheckpointID?, createdNanoseconds: UInt64, labels: [Label], continuesBase: Bool,
        storedPages: [PageCount]? = nil
    ) {
        self.id = id
        self.name = name
        self.parent = parent
        self.createdNanoseconds = createdNanoseconds
        self.labels = labels
        self.continuesBase = continuesBase
        self.storedPages = storedPages
    }

    /// Puts it into a finished record.
    /// - Throws: `.corrupt` when a region does not have the pages that it must have.
    func apply(to record: inout CheckpointRecord, over base: CheckpointRecord?, medium: String) throws(StoreError) {
        (record.id, record.name, record.parent) = (id, name, parent)
        (record.createdNanoseconds, record.labels) = (createdNanoseconds, labels)
        if continuesBase, let base { record.addCounts(of: base) }
        guard let storedPages else { return }
        for (region, expected) in zip(record.regions, storedPages) where region.storedPages != expected {
            throw StoreError(
                .corrupt, "it has \(region.storedPages) pages that are not zero, and should have \(expected)",
                remedy: "Compare the checkpoint that it is built on in both stores, or send it in full.", medium: medium, checkpoint: name,
                region: region.name)
        }
    }
}

extension CheckpointRecord {
    /// Counts what `first`, an earlier part of this checkpoint, stored.
    fileprivate mutating func addCounts(of first: CheckpointRecord) {
        storedBytes += first.storedBytes
        newPages += first.newPages
        for index in regions.indices {
            guard let known = first.regions.first(where: { Names.equal($0.name, regions[index].name) }) else { continue }
            regions[index].newPages += known.newPages
        }
    }
}

extension CheckpointWriter {
    /// Commits it as `identity` says: on return it is durable and visible to everybody.
    ///
    /// - Throws: as `commit`, `.exists` also when there is a checkpoint of that id; `.corrupt` when its pages are not as many as `identity`
    ///   says.
    @discardableResult
    package func commit(as identity: CheckpointIdentity) throws(StoreError) -> CheckpointInfo {
        try store.commit([self], as: [id: identity])[0]
    }

    /// The same, and points names at it that lead to it in another store, in the same commit; see `CheckpointStore.adopt`.
    package func commit(
        as identity: CheckpointIdentity, adopting names: [String], isKnown: @escaping (CheckpointID) throws(StoreError) -> Bool
    ) throws(StoreError) -> (info: CheckpointInfo, names: [ReferenceAdoption]) {
        var adopted: [ReferenceAdoption] = []
        let info = try store.commit([self], as: [id: identity]) { transaction throws(StoreError) in
            adopted = try transaction.adopt(names.map { Reference(name: $0, checkpoint: identity.id) }, isKnown: isKnown)
        }[0]
        return (info, adopted)
    }
}
