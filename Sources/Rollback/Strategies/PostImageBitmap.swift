// Strategy 3: a shadow, and a bit for each page that was written [system D].
//
// The commit point is the moment in which what was written counts as *to be copied*: memory has it, and nobody writes. Whatever comes
// between two copies, the rest can be copied later: a rollback after the commit point finishes the copying, one before it takes what was
// written back from the shadow. On a medium, which has to survive this process, the old content stays until all has been copied.
//
// Invariant: exactly what was written is copied, while writers stand still.

import CheckpointCore
import MachineMemory
import Units

/// Post-image checkpoints by a bitmap.
final class PostImageBitmap: RollbackStrategy {
    private let parts: RollbackParts
    private let shadow: any Shadow
    private let copies: CopySet

    init(_ parts: RollbackParts, _ state: [UInt8]) throws(EngineError) {
        self.parts = parts
        shadow = try parts.makeShadow(state)
        copies = CopySet(parts, shadow, state)
    }

    /// There is nothing to keep when all went well: what was copied is in the shadow. After a checkpoint that has thrown in its copying,
    /// writers may run all the same.
    func firstWrite(_ unit: Range<PageIndex>) -> FirstWrite {
        copies.copyFirst(unit)
        return .noted
    }

    func checkpoint(_ state: [UInt8], _ writes: FirstWrites) throws(EngineError) {
        // What an earlier one may have left.
        try copies.copyRest(.copied, \.pagesCopiedAtCheckpoint)
        try parts.rules.step(.begun)
        let written = writes.written
        try writes.protect(written)
        try parts.rules.step(.protected)
        parts.counters.add { $0.pagesCopiedAtCheckpoint = .zero }
        writes.commit { copies.begin(written, state) }
        try parts.rules.step(.committed)
        try copies.copyRest(.copied, \.pagesCopiedAtCheckpoint)
    }

    func rollback(_ writes: FirstWrites) throws(EngineError) -> [UInt8] { try copies.restore(writes, parts) }

    func settle() throws(EngineError) { try copies.copyRest(.copied, \.pagesCopiedAtCheckpoint) }

    func describe(_ statistics: inout RollbackStatistics) {
        statistics.shadowBytes = shadow.residentBytes
        statistics.bitmapBytes = PageBitmap.byteLength(of: parts.memory.pageCount)
    }

    func close() { shadow.close() }
}

extension CopySet {
    /// Brings what was written since the checkpoint back. What is still to be copied has not been written, or was copied first.
    func restore(_ writes: FirstWrites, _ parts: RollbackParts) throws(EngineError) -> [UInt8] {
        parts.counters.add { $0.pagesRestored = .zero }
        try unsafe writes.restore(writes.written) { piece, target throws(EngineError) in
            try unsafe read(piece, into: target)
            parts.counters.add { $0.pagesRestored += piece.upperBound - piece.lowerBound }
            try parts.rules.step(.restored)
        }
        writes.commit {}
        return device
    }
}
