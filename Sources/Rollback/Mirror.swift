// The copy of a checkpoint on a medium, for the strategies that keep the checkpoint within memory itself.
//
// Invariant: the medium's image is the last checkpoint that `copy` has returned for. After a failed flush it may be the one that failed:
// from then on nothing more is copied.

import CheckpointCore
import MachineMemory
import Units

/// A shadow beside a strategy that needs none.
final class Mirror: Sendable {
    private let parts: RollbackParts
    private let shadow: MediumShadow

    init(_ parts: RollbackParts, _ shadow: MediumShadow) {
        self.parts = parts
        self.shadow = shadow
    }

    var residentBytes: ByteCount { shadow.residentBytes }

    /// Copies what has changed and makes it durable, with its state. Writers stand still.
    func copy(_ changed: PageRanges, _ state: [UInt8]) throws(EngineError) {
        // What one that failed may have left does not count.
        shadow.discard()
        try changed.forEachPiece(parts.memory.pagesPerUnit) { piece throws(EngineError) in
            try unsafe shadow.put(piece, parts.memory.content(of: piece))
        }
        try shadow.commit(state)
    }

    func close() { shadow.close() }
}

extension RollbackParts {
    /// The copy on a medium that the options ask for, with memory and `state` as its checkpoint; nil: they ask for none.
    func makeMirror(_ state: [UInt8]) throws(EngineError) -> Mirror? {
        guard let shadow = try makeMediumShadow() else { return nil }
        do throws(EngineError) { try shadow.fill(from: memory, state: state) } catch {
            shadow.close()
            throw error
        }
        return Mirror(self, shadow)
    }
}
