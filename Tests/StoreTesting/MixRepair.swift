// What a mix is told when a repair could not have everything again.
//
// Invariant: it only takes over what the test has compared with what the repair said.

import CheckpointStore
import Units

extension StoreMix {
    /// Where names that move lead, by the model.
    package var expectedReferences: [String: CheckpointID] { references }

    /// Goes on with the names that move that the store has.
    package mutating func takeReferences(from store: CheckpointStore) throws {
        references = Dictionary(uniqueKeysWithValues: try store.snapshot().references().map { ($0.name, $0.checkpoint) })
    }

    /// Goes on with the lineage that the store has.
    package mutating func takeLineage(from store: CheckpointStore) throws {
        lineage = LineageModel(try store.snapshot().lineage())
    }

    /// Deletes everything, one after the other, in any order.
    package mutating func deleteAll(_ store: CheckpointStore) throws {
        for reference in references.keys.sorted() where reference != Reference.latest {
            try store.removeReference(reference)
            references[reference] = nil
        }
        if !parts.isEmpty { try discard(store) }
        while let name = anyName() { try delete(name, store) }
        try requireEqual(store)
    }
}
