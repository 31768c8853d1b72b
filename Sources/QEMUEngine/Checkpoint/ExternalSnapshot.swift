// The engine for machines whose memory is shared with other processes: read and tracked from outside, while the guest runs, until
// little is left to be copied in the stop.
//
// Invariants:
// - Every page that the checkpoint has is the page at the stop: each one that was written after it had been read is read again.
// - What the stop needs is there before it: buffers, page tables, overlays.
// - Device state is saved before the last look at memory, since saving it may write there.
// - A disk read by direct I/O marks its pages when it is issued and fills them when it ends. What was in flight when pages were protected has
//   ended before they are read: where a disk of the machine uses direct I/O, it is drained in between.

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
    /// Each round costs a moment's stop where disks have to be drained.
    private static let mostDrainedRounds = 2
    /// A dirty set of so few pages is copied in the stop; a round more would find hardly fewer.
    private static let fewPages = PageCount(256)
    /// So many pages are copied in the stop; more are protected in it, and copied on write.
    private static let copiedInStop = PageCount(6144)
    /// Pages that are written again in this time are hot.
    private static let hotMicroseconds: UInt32 = 20_000
    private static let timeoutMilliseconds = 30_000

    init(_ session: CheckpointSession) { self.session = session }

    /// Refuses a machine that does not fit this engine, before anything is changed.
    static func check(_ machine: MachineState, _ qmp: QMPClient) throws(EngineError) {
        for (_, mapping, process) in try GuestMemory.find(machine, qmp) {
            // Whether the kernel, and our rights, allow it shows only when it is tried.
            _ = try WriteTracker(SharedMemoryBlock(process, mapping), avoiding: try GuestMemory.guestThreads(qmp))
        }
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
        let usesDirectReads = try DirectReads.arePossible(session.qmp)
        try memory.arm()
        var drains = usesDirectReads ? try session.drain() : 0
        try memory.saveAll()
        try settle(memory, mostRounds: usesDirectReads ? Self.mostDrainedRounds : Self.mostRounds) { () throws(EngineError) in
            if usesDirectReads { drains += try session.drain() }
        }
        try memory.makeRoomForStop()
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
            otherStopsMicroseconds: drains,
            migrationMicroseconds: Clock.nowMicroseconds() - begin, pages: memory.pagesRead + intake.pageCount)
    }

    /// Rounds of looking and copying, until the dirty set is small or does not shrink any more.
    private func settle(
        _ memory: GuestMemory, mostRounds: Int, settleReads: () throws(EngineError) -> Void
    ) throws(EngineError) {
        var last: PageCount?
        for _ in 0..<mostRounds {
            var dirty = try memory.scan()
            if dirty > Self.copiedInStop {
                // What is written again within a moment will be protected in the stop: it needs no copying now.
                usleep(Self.hotMicroseconds)
                _ = try memory.scan()
                dirty = try memory.prepareCopyOnWrite()
            }
            try settleReads()
            try memory.saveScanned()
            let isStuck = last.map { dirty.rawValue * 5 > $0.rawValue * 4 } ?? false
            if isStuck || dirty <= Self.fewPages { return }
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
        try session.stop(after: start)
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
        try qmp.continueGuest()
        let stop = try Stop.after(start, qmp)
        session.words.mayHaveStopped = false
        return (stop, spool)
    }
}

/// Reads that fill memory later than they mark it.
enum DirectReads {
    /// Whether any drive of the machine bypasses the host's page cache, so that its reads are filled in by the host's hardware.
    static func arePossible(_ qmp: QMPClient) throws(EngineError) -> Bool {
        try qmp.execute("query-block").array?.contains { $0["inserted"]?["cache"]?["direct"]?.bool == true } ?? false
    }
}
