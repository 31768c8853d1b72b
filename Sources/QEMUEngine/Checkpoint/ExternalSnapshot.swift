// The engine for machines whose memory is shared with other processes: read and tracked from outside, while the guest runs, until
// little is left to be copied in the stop.
//
// Invariants:
// - Every page that the checkpoint has is the page at the stop: each one that was written after it had been read is read again.
// - What the stop needs is there before it: buffers, page tables, overlays.
// - Device state is saved before the last look at memory, since saving it may write there.

import CLinux
import CheckpointCore
import Glibc
import LiveMemory
import MigrationStream
import QMP
import Threading
import Units

/// Captures a machine by mapping and tracking its memory.
struct ExternalSnapshot {
    let session: CheckpointSession

    /// More rounds than this don't help: what is dirty then is dirtied faster than it is stored.
    private static let mostRounds = 16
    /// A dirty set of so few pages is copied in the stop; a round more would find hardly fewer.
    private static let fewPages = PageCount(256)
    /// So many pages are copied in the stop; more are protected in it, and copied on write.
    private static let copiedInStop = PageCount(6144)
    private static let timeoutMilliseconds = 30_000

    init(_ session: CheckpointSession) { self.session = session }

    /// Refuses a machine that does not fit this engine, before anything is changed.
    static func check(_ machine: MachineState, _ qmp: QMPClient) throws(EngineError) {
        _ = try GuestMemory.find(machine, qmp)
    }

    func run() throws(EngineError) -> Captured {
        let memory = try GuestMemory(session, copyingAtMost: Self.copiedInStop)
        do throws(EngineError) {
            let captured = try capture(memory)
            try memory.release()
            return captured
        } catch {
            // The error that came first counts; tracking ends with this process at the latest.
            try? memory.release()
            throw error
        }
    }

    private func capture(_ memory: GuestMemory) throws(EngineError) -> Captured {
        let begin = Clock.nowMicroseconds()
        try memory.arm()
        try memory.saveAll()
        try settle(memory)
        let (stop, spool) = try stopAndCapture(memory)
        session.guestRuns(again: stop)
        try memory.finish()
        var intake = StreamIntake(
            sink: session.sink, workers: 1, externalBlocks: memory.blockNames, progress: { _ in })
        spool.end()
        try spool.drain(StreamParser(), into: &intake)
        try intake.finish()
        try memory.check(intake.blocks)
        // It was saved while the machine stood still, and is to run when it has been restored.
        var devices = try DeviceState(intake.deviceState)
        try devices.setRunState("running")
        return Captured(
            engine: .external, machineType: intake.machineType, blocks: intake.blocks, deviceState: devices.bytes, stop: stop,
            migrationMicroseconds: Clock.nowMicroseconds() - begin, pages: memory.pagesRead + intake.pageCount)
    }

    /// Rounds of looking and copying, until the dirty set is small or does not shrink any more.
    private func settle(_ memory: GuestMemory) throws(EngineError) {
        var last: PageCount?
        for _ in 0..<Self.mostRounds {
            let dirty = try memory.scan()
            let isStuck = last.map { dirty.rawValue * 5 > $0.rawValue * 4 } ?? false
            // What is not saved now is pending until the stop.
            if isStuck, dirty > Self.fewPages { return try memory.prepareCopyOnWrite() }
            try memory.saveScanned()
            if dirty <= Self.fewPages { return }
            last = dirty
        }
    }

    /// The stop itself.
    private func stopAndCapture(_ memory: GuestMemory) throws(EngineError) -> (Stop, StreamSpool) {
        let qmp = session.qmp
        try session.capabilities.use(["x-ignore-shared"], in: qmp)
        let spool = try StreamSpool()
        try qmp.pass(descriptor: spool.descriptor, named: StreamSpool.passedName)
        let start = qmp.lastEventSequence
        session.words.mayHaveStopped = true
        try qmp.execute("stop")
        try session.disks?.switchAtStop()
        try qmp.execute("migrate", ["uri": .string("fd:\(StreamSpool.passedName)")])
        let end = try qmp.waitForEvent(after: start, timeoutMilliseconds: Self.timeoutMilliseconds) { event in
            event.name == "MIGRATION" && ["completed", "failed", "cancelled"].contains(event.data["status"]?.string ?? "")
        }
        guard end.data["status"]?.string == "completed" else {
            let answer = try qmp.execute("query-migrate")
            throw EngineError(
                .refused, "QEMU could not save its devices: \(answer["error-desc"]?.string ?? "it gives no reason")", place: "QEMU")
        }
        try memory.captureInStop()
        try qmp.execute("cont")
        let began = try qmp.waitForEvent(after: start, timeoutMilliseconds: Self.timeoutMilliseconds) { $0.name == "STOP" }
        let ended = try qmp.waitForEvent(after: began.sequence, timeoutMilliseconds: Self.timeoutMilliseconds) { $0.name == "RESUME" }
        session.words.mayHaveStopped = false
        return (Stop(beganMicroseconds: began.timestampMicroseconds, endedMicroseconds: ended.timestampMicroseconds), spool)
    }
}
