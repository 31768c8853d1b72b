// The engine that needs nothing of the machine: QEMU's own background snapshot.
//
// QEMU stops the guest, saves its devices, write-protects its memory and lets it run again; then it writes the memory out while
// the guest goes on, a page that the guest wants to write first. Its sink must neither fail nor stall (see StreamSpool).
//
// Invariants:
// - From `migrate` on nothing is cancelled: QEMU comes to its end, whatever becomes of the checkpoint.
// - Memory for the whole stream was free before the start.

import CLinux
import CheckpointCore
import LiveMemory
import MigrationStream
import QMP
import StoreFormat
import Threading
import Units

/// Captures a machine by QEMU's background snapshot.
struct BackgroundSnapshot {
    let session: CheckpointSession

    /// What a stream adds to a page, and what all devices may add.
    private static let bytesPerPageAdded: UInt64 = 9
    private static let deviceBytes = ByteCount.mebibytes(256)

    /// Refuses a machine that does not fit this engine, before anything is changed.
    static func check(_ machine: MachineState, _ qmp: QMPClient) throws(EngineError) {
        let pages = machine.memoryLength.rawValue / UInt64(pageSize)
        let worstCase = machine.memoryLength + ByteCount(pages * bytesPerPageAdded) + deviceBytes
        let available = try HostMemory.available(to: qmp.processID)
        guard available > worstCase else {
            throw EngineError(
                .noMemory,
                "QEMU's snapshot may need \(worstCase.rawValue >> 20) MiB of this host's memory until it is stored, and \(available.rawValue >> 20) MiB are free",
                remedy: "Free memory, or give the guest shared memory (-object memory-backend-memfd,share=on) and use --engine external.")
        }
    }

    func run() throws(EngineError) -> Captured {
        let qmp = session.qmp
        try session.capabilities.use(["background-snapshot"], in: qmp)
        let spool = try StreamSpool()
        let threads = PoliteThreads()
        try qmp.pass(descriptor: spool.descriptor, named: StreamSpool.passedName)
        let start = qmp.lastEventSequence
        let intake = StreamIntake(
            sink: session.sink, workers: session.parallelism, prepareThread: threads.join, progress: session.reportPages)
        let drain = try Drain(spool, intake, threads)
        var hasStarted = false
        do throws(EngineError) {
            try session.checkStillRunning()
            // A snapshot that fails between its stop and its resume leaves the guest stopped.
            session.words.mayHaveStopped = true
            try qmp.execute("migrate", ["uri": .string("fd:\(StreamSpool.passedName)")])
            hasStarted = true
            let stop = try waitForStop(after: start)
            session.words.mayHaveStopped = false
            // The disks' writes of before the stop are told from those of after it.
            try session.disks?.cut(resume: stop.endedMicroseconds)
            session.guestRuns(again: stop)
            try waitForEnd(after: start)
            threads.stopGivingWay()
            let taken = try drain.finish()
            return try captured(taken, stop: stop, migrationMicroseconds: migrationTime(after: start))
        } catch {
            // What the stream's own fate was says more than what followed from it.
            threads.stopGivingWay()
            // QEMU goes on writing whatever has become of the checkpoint, and is drained until it ends.
            if hasStarted, error.code != .exited { try? waitForEnd(after: start) }
            let cause = drain.giveUp()
            throw error.code == .refused ? error : cause ?? error
        }
    }

    private func waitForStop(after start: Int) throws(EngineError) -> Stop {
        let began = try wait(for: "STOP", after: start)
        let ended = try wait(for: "RESUME", after: began.sequence)
        return Stop(beganMicroseconds: began.timestampMicroseconds, endedMicroseconds: ended.timestampMicroseconds)
    }

    /// An event of the snapshot, or the error that it ended with.
    private func wait(for name: String, after start: Int) throws(EngineError) -> QMPEvent {
        let event = try session.qmp.waitForEvent(after: start, timeoutMilliseconds: nil) { event in
            event.name == name || Self.hasEnded(event)
        }
        guard event.name == name else { throw try refusal(withoutStop: true) }
        return event
    }

    private func waitForEnd(after start: Int) throws(EngineError) {
        let event = try session.qmp.waitForEvent(after: start, timeoutMilliseconds: nil, where: Self.hasEnded)
        guard event.data["status"]?.string == "completed" else { throw try refusal() }
    }

    private static func hasEnded(_ event: QMPEvent) -> Bool {
        event.name == "MIGRATION" && ["completed", "failed", "cancelled"].contains(event.data["status"]?.string ?? "")
    }

    private func refusal(withoutStop: Bool = false) throws(EngineError) -> EngineError {
        let answer = try session.qmp.execute("query-migrate")
        if withoutStop, answer["status"]?.string == "completed" {
            return CheckpointSession.stoppedByOthers
        }
        let reason = answer["error-desc"]?.string ?? "it gives no reason"
        return EngineError(
            .refused, "QEMU's background snapshot ended with status \(answer["status"]?.string ?? "unknown"): \(reason)",
            remedy: "If somebody cancelled it, try again.", place: "QEMU")
    }

    private func migrationTime(after start: Int) throws(EngineError) -> Int64 {
        let events = session.qmp.events(after: start).filter { $0.name == "MIGRATION" }
        guard let first = events.first, let last = events.last else { return 0 }
        return last.timestampMicroseconds - first.timestampMicroseconds
    }

    private func captured(_ taken: StreamIntake, stop: Stop, migrationMicroseconds: Int64) throws(EngineError) -> Captured {
        Captured(
            engine: .background, machineType: taken.machineType, blocks: taken.blocks, deviceState: taken.deviceState, stop: stop,
            otherStopsMicroseconds: 0,
            migrationMicroseconds: migrationMicroseconds, pages: taken.pageCount)
    }
}

/// A spool being drained into a checkpoint by a thread of its own.
final class Drain: Sendable {
    private let spool: StreamSpool
    private let outcome = Lock<Result<StreamIntake, EngineError>?>(nil)
    private let thread: PlainThread
    private let isJoined = Lock(false)

    init(_ spool: StreamSpool, _ intake: StreamIntake, _ threads: PoliteThreads) throws(EngineError) {
        self.spool = spool
        let handed = Handed(intake)
        let thread = PlainThread { [outcome] in
            threads.join()
            var intake = handed.value
            do throws(EngineError) {
                try spool.drain(StreamParser(), into: &intake)
                try intake.finish()
                let done = Handed(intake)
                outcome.withLock { $0 = .success(done.value) }
            } catch { outcome.withLock { $0 = .failure(error) } }
        }
        guard let thread else { throw EngineError(.noMemory, "the system has no thread to give") }
        self.thread = thread
    }

    /// The writer has ended: waits for the rest of its stream.
    func finish() throws(EngineError) -> StreamIntake {
        end()
        switch outcome.withLock({ $0 }) {
        case .success(let intake)?: return intake
        case .failure(let error)?: throw error
        case nil: preconditionFailure("a thread that has ended has left its outcome")
        }
    }

    /// The writer has ended without success, or will never write: what is there is thrown away.
    /// - Returns: an error of the checkpoint's own, met before.
    func giveUp() -> EngineError? {
        end()
        if case .failure(let error)? = outcome.withLock({ $0 }), error.code != .corrupt { return error }
        return nil
    }

    private func end() {
        spool.end()
        let isFirst = isJoined.withLock { isJoined in
            defer { isJoined = true }
            return !isJoined
        }
        if isFirst { thread.join() }
    }
}
