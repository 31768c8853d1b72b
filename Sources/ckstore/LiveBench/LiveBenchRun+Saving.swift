// Whole checkpoints: how fast they are, and what writers get done meanwhile.

import CLiveBench
import CheckpointCore
import CheckpointStore
import Glibc
import LiveCheckpoint
import MachineMemory
import StoreFormat
import Units

extension LiveBenchRun {
    /// The save itself, beside a save of the same pages that nobody writes or protects.
    func saves() throws -> [Row] {
        say("saves")
        var (plain, live): ([Double], [Double]) = ([], [])
        for _ in 0..<rounds {
            plain.append(
                try inNewStore { store in
                    let writer = try store.begin("plain", options: WriterOptions(parallelism: workers))
                    let region = try writer.addRegion("memory", kind: .memory, byteLength: memory.byteLength)
                    unsafe try region.write(UnsafeRawBufferPointer(memory.bytes), at: PageIndex(UInt64(0)), isStable: true)
                    try writer.commit()
                })
            live.append(try inNewStore { store in try checkpoint(into: store, method: .copyOnWrite) { $0() } })
        }
        // The best of each: a save does the same work every time.
        let (best, bestLive) = (plain.min()!, live.min()!)
        let gigabytes = Double(memory.byteLength.rawValue) / 1e9
        return [
            row(
                "whole checkpoint, nobody writes", gigabytes / bestLive, "GB/s", peer: gigabytes / best, of: "plain save of the same pages",
                target: ">= 95 % of it", isMet: bestLive <= best / 0.95)
        ]
    }

    private func inNewStore(_ body: (CheckpointStore) throws -> Void) throws -> Double {
        let store = try scratch.makeStore()
        defer { store.close() }
        return try seconds { try body(store) }
    }

    @discardableResult
    private func checkpoint(
        into store: CheckpointStore, method: InstantMethod, stopping: (MemoryCheckpointer.Instant) -> Void
    ) throws -> MemoryCheckpointReport {
        var options = MemoryCheckpointer.Options()
        options.method = method
        options.workers = workers
        let checkpointer = MemoryCheckpointer(
            StoreBackedDataStore(store, options: WriterOptions(parallelism: workers)), options: options)
        defer { checkpointer.close() }
        try checkpointer.register(memory)
        return try checkpointer.checkpoint("live", stopping: stopping)
    }

    // MARK: Writers

    /// What one writer gets done while a checkpoint is taken, by each method, beside fork with a child that saves.
    func writers() throws -> [Row] {
        var rows: [Row] = []
        for (name, perSecond) in [("full speed", Double?.none), ("20,000 writes/s", 20_000)] {
            say("a writer at \(name)")
            let idle = try perSecond ?? idleRate()
            var forked: [Load] = []
            var taken: [InstantMethod: [Load]] = [:]
            for round in 0..<max(1, rounds / 2) {
                if kind.sharing == .anonymous { forked.append(try forkUnderLoad(perSecond, seed: UInt64(round))) }
                for method in InstantMethod.allCases { taken[method, default: []].append(try checkpointUnderLoad(method, perSecond, seed: UInt64(round))) }
            }
            let fork = forked.isEmpty ? nil : Load(medianOf: forked)
            for method in InstantMethod.allCases {
                rows += self.rows("\(method.rawValue), a writer at \(name)", Load(medianOf: taken[method]!), idle, fork, isDefault: method == .adaptive)
            }
        }
        return rows
    }

    private func rows(_ name: String, _ load: Load, _ idle: Double, _ fork: Load?, isDefault: Bool) -> [Row] {
        let peer = fork == nil ? nil : "fork, child saving"
        let (share, forkShare) = (load.writesPerSecond / idle * 100, fork.map { $0.writesPerSecond / idle * 100 })
        return [
            row(
                "\(name): done", share, "% of idle", peer: forkShare, of: peer, target: isDefault && fork != nil ? ">= fork" : nil,
                isMet: isDefault ? forkShare.map { share >= $0 * 0.98 } : nil),
            row("  stop", load.stopMilliseconds, "ms", peer: fork?.stopMilliseconds, of: peer),
            row("  whole checkpoint", load.seconds * 1e3, "ms", peer: fork.map { $0.seconds * 1e3 }, of: peer),
            row("  memory for copies", load.copiedMebibytes, "MiB", peer: fork?.copiedMebibytes, of: peer),
        ]
    }

    /// One checkpoint or fork with a writer.
    private struct Load {
        var writesPerSecond: Double
        var stopMilliseconds: Double
        var seconds: Double
        var copiedMebibytes: Double

        init(writesPerSecond: Double, stopMilliseconds: Double, seconds: Double, copiedMebibytes: Double) {
            self.writesPerSecond = writesPerSecond
            self.stopMilliseconds = stopMilliseconds
            self.seconds = seconds
            self.copiedMebibytes = copiedMebibytes
        }

        init(medianOf loads: [Load]) {
            self.init(
                writesPerSecond: quantile(loads.map(\.writesPerSecond)), stopMilliseconds: quantile(loads.map(\.stopMilliseconds)),
                seconds: quantile(loads.map(\.seconds)), copiedMebibytes: quantile(loads.map(\.copiedMebibytes)))
        }
    }

    private func idleRate() throws -> Double {
        let writer = try LiveBenchWriter(memory, seed: 1)
        defer { writer.stop() }
        usleep(50_000)
        let (start, before) = (monotonicSeconds(), writer.writes)
        usleep(500_000)
        return Double(writer.writes - before) / (monotonicSeconds() - start)
    }

    private func forkUnderLoad(_ perSecond: Double?, seed: UInt64) throws -> Load {
        let file = try Self.temporaryFile()
        defer { close(file) }
        let writer = try LiveBenchWriter(memory, seed: seed, perSecond: perSecond)
        defer { writer.stop() }
        usleep(50_000)
        var nanoseconds: UInt64 = 0
        let (start, before) = (monotonicSeconds(), writer.writes)
        var child: pid_t = 0
        writer.stopping { child = unsafe ckb_fork_save(memory.bytes.baseAddress!, memory.bytes.count, file, &nanoseconds) }
        guard child > 0 else { throw systemError("start", "a child", -child) }
        guard ckb_wait(child) == 0 else { throw systemError("save", "the memory in a child", EIO) }
        let (time, writes) = (monotonicSeconds() - start, writer.writes - before)
        // Pages that random writes hit at least once: each has been copied.
        let pages = Double(memory.pageCount.rawValue)
        let copied = pages * (1 - exp(-Double(writes) / pages))
        return Load(
            writesPerSecond: Double(writes) / time, stopMilliseconds: Double(nanoseconds) / 1e6, seconds: time,
            copiedMebibytes: copied * Double(pageSize) / Double(1 << 20))
    }

    private func checkpointUnderLoad(_ method: InstantMethod, _ perSecond: Double?, seed: UInt64) throws -> Load {
        let store = try scratch.makeStore()
        defer { store.close() }
        let writer = try LiveBenchWriter(memory, seed: seed, perSecond: perSecond)
        defer { writer.stop() }
        usleep(50_000)
        let (start, before) = (monotonicSeconds(), writer.writes)
        let report = try checkpoint(into: store, method: method, stopping: writer.stopping)
        let (time, writes) = (monotonicSeconds() - start, writer.writes - before)
        return Load(
            writesPerSecond: Double(writes) / time, stopMilliseconds: Double(report.stopMicroseconds) / 1e3, seconds: time,
            copiedMebibytes: report.regions.values.reduce(0) { $0 + Double($1.mostCopies.bytes.rawValue) } / Double(1 << 20))
    }
}
