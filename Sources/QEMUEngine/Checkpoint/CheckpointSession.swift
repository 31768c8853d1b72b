// What all steps of one checkpoint share.
//
// Invariant: from `begin` of the guard on, whatever throws is followed by a rescue, in this process or the guard's.

import CheckpointCore
import DiskCapture
import QMP
import Threading
import Units

/// One checkpoint being taken of one machine.
struct CheckpointSession: Sendable {
    let qmp: QMPClient
    let machine: MachineState
    let capabilities: MigrationCapabilities
    let sink: any CheckpointSink
    let disks: DiskCapture?
    let words: GuardState
    let parallelism: Int
    let progress: @Sendable (CheckpointProgress) -> Void

    /// Told by engines how many pages they have looked at.
    func reportPages(_ pages: PageCount) {
        progress(CheckpointProgress(phase: .memory, done: pages.bytes, total: machine.memoryLength))
    }

    func report(_ phase: CheckpointProgress.Phase, _ done: ByteCount = .zero, of total: ByteCount? = nil) {
        progress(CheckpointProgress(phase: phase, done: done, total: total))
    }

    /// Lets all I/O that is in flight come to its end: the guest is stopped and runs on at once. Answers how long it stood still.
    func drain() throws(EngineError) -> Int64 {
        let start = qmp.lastEventSequence
        words.mayHaveStopped = true
        try stop(after: start)
        try qmp.execute("cont")
        words.mayHaveStopped = false
        return try Stop.after(start, qmp).lengthMicroseconds
    }

    /// Stops the guest, unless it stands still already: then somebody else has stopped it, and `.busy` is thrown with nothing done.
    func stop(after sequence: Int) throws(EngineError) {
        try qmp.execute("stop")
        // QEMU sends the event before it answers.
        guard qmp.events(after: sequence).contains(where: { $0.name == "STOP" }) else {
            words.mayHaveStopped = false
            throw Self.stoppedByOthers
        }
    }

    /// Throws `.busy` when the guest does not run any more.
    func checkStillRunning() throws(EngineError) {
        guard try qmp.execute("query-status")["status"]?.string == "running" else { throw Self.stoppedByOthers }
    }

    static let stoppedByOthers = EngineError(
        .busy, "somebody stopped the machine while its checkpoint was being taken", remedy: "Let it run (`cont`) and try again.")

    /// The guest has stood still and runs again.
    func guestRuns(again stop: Stop) {
        progress(CheckpointProgress(phase: .resumed(stopMicroseconds: stop.lengthMicroseconds), done: .zero, total: nil))
    }
}

/// How far a checkpoint is.
public struct CheckpointProgress: Sendable {
    /// What is being done.
    public enum Phase: Sendable, Equatable {
        /// The machine is asked what it is; disks are prepared.
        case preparing
        /// The guest ran again after it had stood still that long.
        case resumed(stopMicroseconds: Int64)
        /// Memory goes into the store.
        case memory
        /// Disks go into the store.
        case disks
        /// Everything is being made durable; overlays are committed back.
        case finishing
    }
    public var phase: Phase
    /// Bytes done in this phase.
    public var done: ByteCount
    /// Of so many; nil: nobody knows.
    public var total: ByteCount?
}
