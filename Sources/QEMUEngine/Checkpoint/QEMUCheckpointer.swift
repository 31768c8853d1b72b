// Taking one checkpoint of one running QEMU, from the first question to the last overlay put back.
//
// The order is that of the patent's FIG. 2: disk copy-on-write is prepared while the guest runs; memory is marked copy-on-write;
// device state is captured at the stop; disks are switched at that same instant; the guest runs again; pages go into the store.
//
// Invariants:
// - A guard stands by before anything of the machine is changed.
// - Whatever fails, the guest is left running, its disk chain as it was, and nothing is in the store.
// - The checkpoint is visible only when memory, device state and every disk of it are durable.

import CheckpointCore
import DiskCapture
import QMP
import StoreFormat
import Threading
import Units

/// Takes checkpoints of the machine behind one monitor. `run` once; `cancel` from any thread.
public final class QEMUCheckpointer: Sendable {
    private let request: CheckpointRequest
    private let store: any CheckpointDataStore
    private let progress: @Sendable (CheckpointProgress) -> Void
    private let state = Lock((sink: (any CheckpointSink)?.none, isCancelled: false))

    /// - Parameter progress: called from several threads, often; must be quick.
    public init(
        _ request: CheckpointRequest, store: any CheckpointDataStore,
        progress: @escaping @Sendable (CheckpointProgress) -> Void = { _ in }
    ) {
        self.request = request
        self.store = store
        self.progress = progress
    }

    /// Makes `run` throw `.cancelled` as soon as QEMU has come to a point where the guest is safe.
    public func cancel() {
        let sink = state.withLock { state in
            state.isCancelled = true
            return state.sink
        }
        sink?.cancel()
    }

    /// Takes the checkpoint. Blocks until it is durable and the machine's disks are as they were.
    /// - Throws: what kept it from being taken; the guest then runs, and nothing is in the store. After the commit only what kept
    ///   disks from being put back is thrown, and says so.
    public func run() throws(EngineError) -> CheckpointReport {
        let start = Clock.nowMicroseconds()
        progress(CheckpointProgress(phase: .preparing, done: .zero, total: nil))
        let qmp = try QMPClient.connect(path: request.monitorPath)
        defer { qmp.close() }
        let claim = try MachineClaim(processID: qmp.processID)
        let machine = try MachineState(qmp)
        let disks = try DiskCapture.writableDisks(of: qmp)
        let sink = try store.begin(request.name, parent: request.parent)
        defer { sink.abort() }
        let isCancelled = state.withLock { state in
            state.sink = sink
            return state.isCancelled
        }
        if isCancelled { throw EngineError(.cancelled, "the checkpoint was cancelled") }
        let capabilities = try MigrationCapabilities(of: qmp)
        let engine = try chosenEngine(machine, qmp)
        // From here on the machine is changed, and the guard stands by.
        let guardian = try GuardProcess(command: request.guardCommand, qmp: qmp, claim: claim, capabilities: capabilities)
        let session = CheckpointSession(
            qmp: qmp, machine: machine, capabilities: capabilities, sink: sink,
            disks: disks.isEmpty ? nil : capture(disks, qmp, sink, engine), words: guardian.state,
            parallelism: request.parallelism, progress: progress)
        let report: CheckpointReport
        do throws(EngineError) { report = try take(session, engine, disks, start) } catch {
            sink.abort()
            if let rest = bringBack(session) {
                guardian.takeOver()
                throw error.adding(rest)
            }
            guardian.dismiss()
            throw error
        }
        guardian.dismiss()
        return report
    }

    /// Everything that happens while the guard stands by.
    private func take(
        _ session: CheckpointSession, _ engine: CaptureEngine, _ disks: [WritableDisk], _ start: Int64
    ) throws(EngineError) -> CheckpointReport {
        try session.words.note(overlays: try session.disks?.overlays() ?? [])
        try session.disks?.prepare()
        let captured = try engine == .external ? ExternalSnapshot(session).run() : BackgroundSnapshot(session: session).run()
        try session.capabilities.restore(in: session.qmp)
        session.report(.disks)
        let diskReports = try session.disks?.save(into: session.sink) { session.report(.disks, $0.scanned, of: $0.total) } ?? []
        let record = try record(of: captured, session, disks)
        try session.sink.putBlob(MachineRecord.deviceStateRegionName, captured.deviceState)
        try session.sink.put(record)
        session.report(.finishing)
        let receipt = try session.sink.commit()
        let diskStop = try putDisksBack(session)
        return CheckpointReport(
            machine: record, stopMicroseconds: captured.stop.lengthMicroseconds,
            otherStopsMicroseconds: captured.otherStopsMicroseconds + diskStop,
            totalMicroseconds: Clock.nowMicroseconds() - start, migrationMicroseconds: captured.migrationMicroseconds,
            pages: captured.pages, newPages: receipt.newPages, storedBytes: receipt.storedBytes, disks: diskReports)
    }

    /// The checkpoint is durable. Answers how long the guest stood still.
    private func putDisksBack(_ session: CheckpointSession) throws(EngineError) -> Int64 {
        do throws(EngineError) { return try session.disks?.retire(committed: true) ?? 0 } catch {
            guard error.code != .exited else { throw putBackFailed(error) }
            do throws(EngineError) { return try session.disks?.retire(committed: true) ?? 0 } catch { throw putBackFailed(error) }
        }
    }

    private func putBackFailed(_ error: EngineError) -> EngineError {
        EngineError(
            error.code, "the checkpoint is taken and in the store, but the machine's disks were not put back: \(error.reason)",
            remedy: error.remedy, place: error.place)
    }

    /// Puts the machine back after a failure. Returns what could not be put back.
    private func bringBack(_ session: CheckpointSession) -> EngineError? {
        let rescue = GuestRescue(
            processID: session.qmp.processID, mayContinue: session.words.mayHaveStopped, capabilities: session.capabilities,
            disks: session.disks)
        do throws(EngineError) {
            _ = try rescue.run { () throws(EngineError) in session.qmp }
            return nil
        } catch where error.code == .exited {
            do throws(EngineError) { try LostMachine.commit(try session.words.overlays()) } catch { return error }
            return nil
        } catch { return error }
    }

    private func record(
        of captured: Captured, _ session: CheckpointSession, _ disks: [WritableDisk]
    ) throws(EngineError) -> MachineRecord {
        let machine = session.machine
        let blocks = captured.blocks.map { block in
            MachineRecord.MemoryBlock(
                name: block.name, region: MachineRecord.memoryRegion(block.name), byteLength: block.byteLength.rawValue,
                hostPageBytes: machine.hostPageBytes[block.name] ?? UInt64(pageSize))
        }
        let known = Set(blocks.map(\.name))
        return MachineRecord(
            engine: captured.engine, hypervisor: "qemu", hypervisorVersion: session.qmp.version, machineType: captured.machineType,
            architecture: machine.architecture, virtualCPUs: machine.virtualCPUs, memoryBlocks: blocks,
            physicalRanges: machine.physicalRanges.filter { known.contains($0.block) },
            disks: disks.map { disk in
                MachineRecord.Disk(
                    name: disk.name, region: MachineRecord.diskRegion(disk.name), byteLength: disk.byteLength.rawValue,
                    imageFormat: disk.imageFormat, imageName: disk.imageName)
            },
            deviceStateRegion: MachineRecord.deviceStateRegionName, deviceStateBytes: UInt64(captured.deviceState.count),
            wasRunning: true, stopMicroseconds: UInt64(max(0, captured.stop.lengthMicroseconds)),
            takenMicroseconds: UInt64(max(0, captured.stop.beganMicroseconds)))
    }

    private func capture(
        _ disks: [WritableDisk], _ qmp: QMPClient, _ sink: any CheckpointSink, _ engine: CaptureEngine
    ) -> DiskCapture {
        var options = DiskCapture.Options()
        options.overlayFolder = request.overlayFolder
        options.keepsBitmap = request.tracksDisks
        return DiskCapture(
            qmp: qmp, disks: disks, mode: engine == .external ? .atStop : .logged, checkpoint: sink.id, parent: sink.parentID,
            options: options)
    }

    private func chosenEngine(_ machine: MachineState, _ qmp: QMPClient) throws(EngineError) -> CaptureEngine {
        switch request.engine {
        case .external:
            try ExternalSnapshot.check(machine, qmp)
            return .external
        case .background: break
        case .auto:
            guard machine.backends.contains(where: \.isShared) else { break }
            // What keeps this engine off says so when it is asked for by name.
            do throws(EngineError) {
                try ExternalSnapshot.check(machine, qmp)
                return .external
            } catch where error.code != .exited {}
        }
        try BackgroundSnapshot.check(machine, qmp)
        return .background
    }
}
