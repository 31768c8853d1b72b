// Checkpoint and rollback of one guest.
//
// Invariants:
// - The guest stands still in the whole: no processor runs, nothing is delivered. Devices go on; what they finish meanwhile is delivered after it.
// - The steps that can fail come before those that give the last checkpoint up.

import CheckpointCore
import Glibc
import Threading
import Units

extension RollbackGuest {
    /// Makes the guest's present state its checkpoint, and lets go what it has written to its devices since the one before. Stops the guest for
    /// as long as it takes to protect what was written. The checkpoint is as durable as this process.
    ///
    /// - Throws: what a processor throws; when the system refuses to protect memory. The guest runs, its last checkpoint is whole.
    @discardableResult
    public func checkpoint() throws(EngineError) -> GuestCheckpointReport {
        try saved.withLock { (saved) throws(EngineError) in
            try checkIsOpen()
            guard !saved.isTorn else {
                throw EngineError(.busy, "a rollback has failed half-way", remedy: "Roll it back again.", place: name)
            }
            let start = monotonicMicroseconds()
            pressure.beginStop()
            defer { pressure.endStop() }
            try pauseAll(resumingAfterFailure: true)
            defer { resumeAll() }
            var states: [[UInt8]] = []
            for processor in processors { states.append(try processor.state()) }
            let written = try memory.beginEpoch()
            saved.states = states
            saved.readOnlyPages = memory.readOnlyPages
            let (released, freed) = queues.checkpoint(releasing: !options.releasesWhenSaved)
            return GuestCheckpointReport(
                stopMicroseconds: monotonicMicroseconds() - start, writtenPages: written, releasedRequests: released, freedRequests: freed)
        }
    }

    /// Brings the guest back to its last checkpoint and lets it go on from there. No other guest notices; no request is repeated at a device.
    ///
    /// - Throws: `.invalidInput` before the first checkpoint, or why writes were not tracked: the guest runs on. When a processor does not take its
    ///   state or memory can't be protected: the guest stands still, and this can be tried again.
    @discardableResult
    public func rollBack() throws(EngineError) -> GuestRollbackReport {
        try saved.withLock { (saved) throws(EngineError) in
            try checkIsOpen()
            guard let states = saved.states else {
                throw EngineError(.invalidInput, "no checkpoint has been taken", remedy: "Take one when the guest is started.", place: name)
            }
            try memory.checkIsTracking()
            let start = monotonicMicroseconds()
            pressure.beginStop()
            defer { pressure.endStop() }
            try pauseAll(resumingAfterFailure: !saved.isTorn)
            saved.isTorn = true
            let restored = try memory.rollBack(readOnlyPages: rules.rollbackRestoresReadOnly ? saved.readOnlyPages : nil)
            for (processor, state) in zip(processors, states) { try processor.restore(state) }
            let (discarded, again) = queues.rollBack()
            saved.isTorn = false
            resumeAll()
            return GuestRollbackReport(
                stopMicroseconds: monotonicMicroseconds() - start, restoredPages: restored, discardedRequests: discarded, deliveredAgain: again)
        }
    }

    private func checkIsOpen() throws(EngineError) {
        guard isClosed else { return }
        throw EngineError(.invalidInput, "the guest has been closed", remedy: "Make it again.", place: name)
    }

    /// Stops everything. When one processor does not stop, the others go on, unless the guest is in no state for that.
    private func pauseAll(resumingAfterFailure: Bool) throws(EngineError) {
        // A processor that stands still is told nothing.
        queues.stopDelivery()
        do throws(EngineError) {
            for processor in processors { try processor.pause() }
        } catch {
            if resumingAfterFailure { resumeAll() }
            throw error
        }
    }

    private func resumeAll() {
        for processor in processors { processor.resume() }
        queues.resumeDelivery()
    }
}
