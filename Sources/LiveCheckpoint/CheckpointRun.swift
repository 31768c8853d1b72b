// One checkpoint of a machine, step by step [system A, FIG. 2].
//
// Invariant: `undo` puts back whatever the steps so far have changed, in the opposite order.

import CheckpointCore
import Glibc
import MachineMemory
import StoreFormat
import Threading
import Units
import VirtualDisks

/// A checkpoint on its way. Used by one thread.
final class CheckpointRun {
    private let owner: LiveCheckpointer
    private let name: String
    private let hasParent: Bool
    private let isFull: Bool
    private let start = monotonicMicroseconds()

    private var sink: (any CheckpointSink)?
    private var disks: [DiskCheckpoint] = []
    private var isPaused = false
    private var isCommitted = false
    private(set) var hasClearedMarks = false
    /// Why an overlay could not be written, if so.
    let overlayFailure = Lock<EngineError?>(nil)
    private var steps: [LiveStep] = []
    private var times = Times()
    private var diskBytesRead: [String: ByteCount] = [:]

    private struct Times {
        var stop: UInt64 = 0
        var mark: UInt64 = 0
        var deviceState: UInt64 = 0
        var switchOver: UInt64 = 0
        var wait: UInt64 = 0
    }

    private var machine: any Machine { owner.machine }
    private var workers: Int { owner.options.workers }

    init(_ owner: LiveCheckpointer, name: String, hasParent: Bool, isFull: Bool) {
        self.owner = owner
        self.name = name
        self.hasParent = hasParent
        self.isFull = isFull
    }

    private func begin(_ step: LiveStep) {
        steps.append(step)
        owner.options.step?(step)
    }

    // MARK: The flow chart

    func take(into sink: any CheckpointSink) throws(EngineError) -> LiveCheckpointReport {
        self.sink = sink
        begin(.createOverlays)
        for disk in machine.disks { disks.append(try beginCheckpoint(of: disk, sink)) }
        let regions = try prepareMemory(sink)

        let deviceState = try stop()

        begin(.saveDeviceState)
        try sink.putBlob(MachineRecord.deviceStateRegionName, deviceState)
        begin(.waitForReads)
        for disk in disks { try disk.waitForPendingReads() }
        begin(.saveMemory)
        for (memory, region) in zip(owner.memory.all, regions) {
            let progress = owner.options.progress
            try memory.save(into: region, hasParent: hasParent, workers: workers) { progress?($0, $1) }
        }
        begin(.clearMarks)
        hasClearedMarks = true
        for memory in owner.memory.all { try memory.finish() }
        let reports = Dictionary(uniqueKeysWithValues: owner.memory.all.map { ($0.memory.name, $0.report) })
        for disk in disks { disk.memoryIsSaved() }
        begin(.copyDisks)
        try saveDisks(sink)
        begin(.recordDisks)
        let settled = try settle(deviceState, sink)
        try sink.put(record(deviceState: settled))
        let receipt = try sink.commit()
        isCommitted = true

        begin(.commitOverlays)
        let (commits, unfinished) = commitOverlays()
        begin(.resumeNormalOperation)
        return LiveCheckpointReport(
            receipt: receipt, stopMicroseconds: times.stop, markMicroseconds: times.mark, deviceStateMicroseconds: times.deviceState,
            switchMicroseconds: times.switchOver, waitMicroseconds: times.wait, totalMicroseconds: monotonicMicroseconds() - start,
            steps: steps, memory: reports, diskBytesRead: diskBytesRead, commits: commits, unfinished: unfinished)
    }

    private func beginCheckpoint(of disk: VirtualDisk, _ sink: any CheckpointSink) throws(EngineError) -> DiskCheckpoint {
        let overlay = try owner.makeOverlay(disk)
        do throws(EngineError) {
            return try disk.beginCheckpoint(overlay: overlay) { [overlayFailure] error in
                // The machine's requests wait from here on: what is under way ends, and the overlays are brought back.
                overlayFailure.withLock { $0 = $0 ?? error }
                sink.cancel()
            }
        } catch {
            do throws(EngineError) { try overlay.remove() } catch let problem { throw error.adding(problem) }
            throw error
        }
    }

    private func prepareMemory(_ sink: any CheckpointSink) throws(EngineError) -> [any RegionSink] {
        var regions: [any RegionSink] = []
        for memory in owner.memory.all {
            let name = MachineRecord.memoryRegion(memory.memory.name)
            let region = try sink.addRegion(name, kind: .memory, byteLength: memory.memory.byteLength)
            try memory.prepare(isFull: isFull, into: region, hasParent: hasParent, workers: workers)
            regions.append(region)
        }
        return regions
    }

    /// Steps 804 to 814.
    private func stop() throws(EngineError) -> [UInt8] {
        begin(.stop)
        let stopped = monotonicMicroseconds()
        try machine.pause()
        isPaused = true
        for disk in disks { disk.machineHasStopped(memory: owner.memory) }
        begin(.markMemory)
        times.mark = try timed { () throws(EngineError) in
            // Reads under way have had their pages noted when they were issued.
            for memory in owner.memory.all { try memory.mark(pending: PageRanges()) }
        }
        begin(.captureDeviceState)
        var deviceState: [UInt8] = []
        times.deviceState = try timed { () throws(EngineError) in deviceState = try machine.deviceState() }
        begin(.switchDisks)
        times.switchOver = try timed { () throws(EngineError) in
            for disk in disks { disk.switchOver(memory: owner.memory) }
        }
        let waits = disks.contains { $0.mustWaitBeforeResuming }
        if waits {
            begin(.waitForAllRequests)
            times.wait = try timed { () throws(EngineError) in
                for disk in disks { disk.waitForPending() }
            }
        }
        begin(.resume)
        try machine.resume()
        isPaused = false
        times.stop = monotonicMicroseconds() - stopped
        if !waits { begin(.reissueReads) }
        for disk in disks { disk.memoryIsResumed(waited: waits) }
        return deviceState
    }

    private func timed(_ body: () throws(EngineError) -> Void) throws(EngineError) -> UInt64 {
        let start = monotonicMicroseconds()
        try body()
        return monotonicMicroseconds() - start
    }

    private func saveDisks(_ sink: any CheckpointSink) throws(EngineError) {
        for disk in disks {
            disk.waitForPendingWrites()
            let reader = disk.parentReader
            let region = try sink.addRegion(
                MachineRecord.diskRegion(disk.disk.name), kind: .disk, byteLength: reader.geometry.diskLength)
            diskBytesRead[disk.disk.name] = try DiskRegion(reader: reader, region: region).save(isFull: isFull, workers: workers)
        }
    }

    /// The device state with the outcomes of what was under way: known only now.
    private func settle(_ state: [UInt8], _ sink: any CheckpointSink) throws(EngineError) -> [UInt8] {
        for disk in disks { disk.waitForOutcomes() }
        let settled = try machine.settledDeviceState(state)
        precondition(settled.count == state.count, "outcomes don't change the length of a state")
        if settled != state { try sink.putBlob(MachineRecord.deviceStateRegionName, settled) }
        return settled
    }

    private func record(deviceState: [UInt8]) -> MachineRecord {
        let identity = machine.identity
        return MachineRecord(
            engine: .copyOnWrite, hypervisor: identity.hypervisor, hypervisorVersion: identity.version, machineType: identity.machineType,
            architecture: identity.architecture, virtualCPUs: machine.virtualCPUCount,
            memoryBlocks: machine.memory.map {
                .init(
                    name: $0.name, region: MachineRecord.memoryRegion($0.name), byteLength: $0.byteLength.rawValue,
                    hostPageBytes: $0.unit.rawValue)
            }, physicalRanges: machine.physicalRanges,
            disks: machine.disks.map {
                .init(
                    name: $0.name, region: MachineRecord.diskRegion($0.name), byteLength: $0.geometry.diskLength.rawValue, imageFormat: "raw",
                    imageName: $0.name)
            }, deviceStateRegion: MachineRecord.deviceStateRegionName, deviceStateBytes: UInt64(deviceState.count), wasRunning: true,
            stopMicroseconds: times.stop, takenMicroseconds: UInt64(max(0, wallClockMicroseconds())))
    }

    private func commitOverlays() -> (commits: [String: CommitReport], unfinished: [EngineError]) {
        var commits: [String: CommitReport] = [:]
        var unfinished: [EngineError] = []
        for disk in disks {
            do throws(EngineError) {
                commits[disk.disk.name] = try disk.commit { (parent) throws(EngineError) in try owner.makeOverlay(disk.disk, over: parent) }
            } catch {
                unfinished.append(error)
                owner.state.withLock { $0.unfinished.append(disk) }
            }
        }
        return (commits, unfinished)
    }

    // MARK: Giving up

    /// Puts back what was changed; answers what could not be.
    func undo() -> [EngineError] {
        var problems: [EngineError] = []
        if !isCommitted { sink?.abort() }
        // Memory first: nobody may have to wait for room when the machine goes on.
        for memory in owner.memory.all { memory.cancel() }
        if isPaused {
            do throws(EngineError) { try machine.resume() } catch { problems.append(error) }
        }
        for disk in disks {
            do throws(EngineError) {
                try disk.abort { (parent) throws(EngineError) in try self.owner.makeOverlay(disk.disk, over: parent) }
            } catch {
                problems.append(error)
                owner.state.withLock { $0.unfinished.append(disk) }
            }
        }
        return problems
    }
}

/// Microseconds since 1970.
private func wallClockMicroseconds() -> Int64 {
    var time = timespec()
    unsafe clock_gettime(CLOCK_REALTIME, &time)
    return Int64(time.tv_sec) * 1_000_000 + Int64(time.tv_nsec) / 1000
}
