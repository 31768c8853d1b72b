// Strategy 4: a shadow and two bitmaps, one of what was written, one of what is still to be copied [system D].
//
// A checkpoint swaps them, which is its commit, and the writers resume: copying goes on while they run. A page that is still to be copied
// is copied before it is written; without that rule the shadow would get content of the next epoch.
//
// Invariant: a checkpoint begins when the copying for the one before it has ended.

import CheckpointCore
import MachineMemory
import Units

/// Post-image checkpoints with copying in the background.
final class PostImageTwoBitmaps: RollbackStrategy {
    private let parts: RollbackParts
    private let shadow: any Shadow
    private let copies: CopySet
    private let copying: BackgroundWork

    init(_ parts: RollbackParts, _ state: [UInt8]) throws(EngineError) {
        self.parts = parts
        let shadow = try parts.makeShadow(state)
        self.shadow = shadow
        let copies = CopySet(parts, shadow, state)
        self.copies = copies
        do throws(EngineError) {
            copying = try BackgroundWork { () throws(EngineError) in try copies.copyRest(.drained, \.pagesCopiedInBackground) }
        } catch {
            shadow.close()
            throw error
        }
    }

    func firstWrite(_ unit: Range<PageIndex>) -> FirstWrite {
        copies.copyFirst(unit)
        return .noted
    }

    func checkpoint(_ state: [UInt8], _ writes: FirstWrites) throws(EngineError) {
        try copying.finish()
        try parts.rules.step(.begun)
        let written = writes.written
        try writes.protect(written)
        try parts.rules.step(.protected)
        writes.commit { copies.begin(written, state) }
        copying.ask()
        try parts.rules.step(.committed)
    }

    func rollback(_ writes: FirstWrites) throws(EngineError) -> [UInt8] { try copies.restore(writes, parts) }

    func settle() throws(EngineError) { try copying.finish() }

    func describe(_ statistics: inout RollbackStatistics) {
        statistics.shadowBytes = shadow.residentBytes
        statistics.bitmapBytes = PageBitmap.byteLength(of: parts.memory.pageCount) + PageBitmap.byteLength(of: parts.memory.pageCount)
    }

    func close() {
        copying.close()
        shadow.close()
    }
}
