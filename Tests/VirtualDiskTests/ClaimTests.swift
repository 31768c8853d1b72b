// The claims about disks, one by one, each in the order of its steps.

import CheckpointCore
import FaultHarness
import Foundation
import MachineMemory
import Testing
import Threading
import Units
import VirtualDisks

@Suite struct ClaimTests {
    @Test func `claims 1, 19, 21, 27: new writes go to the copy-on-write file, and the parent stays as it was`() throws {
        let bench = try Bench(.immediate)
        let before = bench.image
        let checkpoint = try bench.checkpoint()
        let write = bench.submit(.write, 3..<5, page: 0)
        #expect(bench.succeeded(write) && bench.image == before)
        var after = before
        (after[3], after[4]) = (101, 101)
        #expect(try bench.ongoing() == after)
        try checkpoint.commit(makeHelper: bench.helper)
        #expect(bench.image == after && bench.storage.isRemoved)
    }

    @Test func `claim 2: the copy-on-write file is made while requests are under way, which notice nothing`() throws {
        let bench = try Bench()
        let read = bench.submit(.read, 0..<1, page: 0)
        let checkpoint = try bench.disk.beginCheckpoint(overlay: try bench.overlay())
        let write = bench.submit(.write, 1..<2, page: 1)
        for number in bench.backend.held { bench.backend.complete(number) }
        #expect(bench.succeeded(read) && bench.succeeded(write) && bench.image[1] == 102)
        #expect(checkpoint.pendingRequests.isEmpty)
        try checkpoint.abort()
        #expect(bench.storage.isRemoved)
        #expect(try bench.disk.beginCheckpoint(overlay: try Bench().overlay()).pendingRequests.isEmpty)
    }

    @Test func `claims 3, 6: the checkpoint's disk is the parent once pending writes are done`() throws {
        let bench = try Bench()
        bench.submit(.write, 0..<1, page: 0)
        let checkpoint = try bench.checkpoint()
        bench.submit(.write, 9..<10, page: 1)
        #expect(checkpoint.pendingRequests.map(\.operation) == [.write])
        for number in bench.backend.held { bench.backend.complete(number) }
        checkpoint.waitForPendingWrites()
        bench.backend.setMode(.immediate)
        var bytes = [UInt8](repeating: 0, count: 32 * sectorSize)
        let reader = checkpoint.parentReader
        unsafe try bytes.withUnsafeMutableBytes { unsafe try reader.read(.zero, into: $0) }
        var expected = (0..<32).map { UInt8($0 + 1) }
        expected[0] = 101
        #expect(Bench.sectors(bytes) == expected && reader.changedSince == nil)
        expected[9] = 102
        #expect(try bench.ongoing() == expected)
        #expect(checkpoint.pendingRequests.allSatisfy { if case .success = $0.outcome { true } else { false } })
    }

    @Test func `claim 4: the copy-on-write file is committed into the parent, in rounds that end`() throws {
        let bench = try Bench(.immediate)
        let checkpoint = try bench.checkpoint()
        for group in 0..<4 { bench.submit(.write, group * 8..<group * 8 + 1, page: group) }
        // Every helper is written before the next round.
        let report = try checkpoint.commit(limits: CommitLimits(heldGroups: 0, rounds: 3)) { (parent) throws(EngineError) -> CowFile in
            let helper = try bench.helper(over: parent)
            bench.submit(.write, 31..<32, page: 7)
            return helper
        }
        #expect(report.rounds == 1 && report.mergedGroups == 4)
        #expect([0, 8, 16, 24, 31].map { bench.image[$0] } == [101, 102, 103, 104, 108])
        #expect(bench.disk.pendingRequests.isEmpty)
    }

    @Test func `claim 8: memory is not saved before pending reads are done`() async throws {
        try await onPlainThread {
            let bench = try Bench()
            bench.submit(.read, 0..<1, page: 0)
            let checkpoint = try bench.checkpoint()
            let hasWaited = Lock(false)
            let waiter = PlainThread {
                try? checkpoint.waitForPendingReads()
                hasWaited.withLock { $0 = true }
            }
            usleep(50_000)
            try require(!hasWaited.withLock { $0 }, "it does not wait")
            bench.backend.complete(bench.backend.held[0])
            waiter!.join()
            try require(bench.memory.checkpointed[0] == 1 && bench.memory.ongoing[0] == 1, "the read fills both memories")
        }
    }

    @Test func `claims 15, 26: before a new read is issued the pages that it fills are copied`() throws {
        let bench = try Bench()
        let checkpoint = try bench.checkpoint()
        let read = bench.submit(.read, 0..<12, page: 2)
        #expect((2..<4).allSatisfy { bench.memory.wasCopied(bench.memory.memory, PageIndex($0)) })
        #expect(!bench.memory.wasCopied(bench.memory.memory, PageIndex(4)))
        bench.backend.complete(bench.backend.held[0])
        #expect(bench.succeeded(read) && bench.memory.ongoing[2 * pageSize] == 1 && bench.memory.checkpointed[2 * pageSize] == 103)
        // What has been saved needs no copies.
        checkpoint.memoryIsSaved()
        bench.submit(.read, 0..<1, page: 6)
        #expect(!bench.memory.wasCopied(bench.memory.memory, PageIndex(6)))
    }

    @Test func `claim 16: the machine waits when a pending read is followed by a pending write to the same block, else it does not`() throws {
        for (first, second, mustWait) in [
            ((DiskOperation.read, 0..<2), (DiskOperation.write, 1..<2), true), ((.write, 0..<2), (.read, 1..<2), false),
            ((.read, 0..<1), (.write, 1..<2), false), ((.read, 0..<2), (.read, 0..<2), false), ((.write, 0..<2), (.write, 0..<2), false),
        ] {
            let bench = try Bench()
            bench.submit(first.0, first.1, page: 0)
            bench.submit(second.0, second.1, page: 1)
            let checkpoint = try bench.checkpoint()
            #expect(checkpoint.mustWaitBeforeResuming == mustWait)
            guard mustWait else { continue }
            while let number = bench.backend.held.first { bench.backend.complete(number) }
            checkpoint.waitForPending()
            checkpoint.memoryIsResumed(waited: true)
            #expect(!checkpoint.mustWaitBeforeResuming && bench.memory.checkpointed == bench.memory.ongoing)
        }
    }

    @Test func `claims 17, 25: a pending read into copied pages is issued again to the parent, then the machine is told`() throws {
        let bench = try Bench()
        let read = bench.submit(.read, 0..<1, page: 0)
        let checkpoint = try bench.checkpoint()
        bench.memory.write(3000, [77])
        #expect(bench.backend.held.count == 1, "it is not issued again before it has completed")
        bench.backend.complete(bench.backend.held[0])
        #expect(bench.backend.held.count == 1 && bench.result(read) == nil, "the machine is not told before it has landed")
        bench.backend.complete(bench.backend.held[0])
        #expect(bench.succeeded(read))
        try checkpoint.waitForPendingReads()
        #expect(bench.memory.checkpointed[0] == 1 && bench.memory.checkpointed[3000] == 101)
        #expect(bench.memory.ongoing[0] == 1 && bench.memory.ongoing[3000] == 77)
    }

    @Test func `claims 18, 28: a write to a group with a pending write is held until that is done, others are not`() throws {
        let bench = try Bench()
        let pending = bench.submit(.write, 0..<1, page: 0)
        let checkpoint = try bench.checkpoint()
        let held = bench.submit(.write, 1..<2, page: 1)
        let other = bench.submit(.write, 8..<9, page: 2)
        #expect(bench.backend.held.count == 2, "the pending write, and the copy of the other group")
        bench.backend.complete(bench.backend.held[1])
        #expect(bench.succeeded(other) && bench.result(held) == nil)
        bench.backend.complete(bench.backend.held[0])
        #expect(bench.succeeded(pending) && bench.backend.held.count == 1, "now its group is copied")
        bench.backend.complete(bench.backend.held[0])
        #expect(bench.succeeded(held))
        #expect(try bench.ongoing()[..<9] == [101, 102, 3, 4, 5, 6, 7, 8, 103])
        #expect(bench.image[..<2] == [101, 2])
        try checkpoint.commit(makeHelper: bench.helper)
    }

    @Test func `the instant takes microseconds, with many requests under way and a disk of 16 TiB`() async throws {
        let microseconds = try await onPlainThread {
            let backend = StuckBackend(byteLength: .gibibytes(16 << 10))
            let memory = try GuestMemory("ram", byteLength: .mebibytes(1))
            let disk = try VirtualDisk("disk", parent: backend, workers: ManualWorkers(isImmediate: true))
            for number in 0..<256 {
                let buffer = GuestBuffer(memory, offset: ByteCount(number * pageSize), byteCount: ByteCount(pageSize))
                disk.submit(DiskRequest(number % 2 == 0 ? .read : .write, at: DiskOffset(number << 30), buffer) { _ in })
            }
            let checkpoint = try disk.beginCheckpoint(overlay: CowFile.create(on: MemoryStorage(), geometry: disk.geometry))
            let start = ContinuousClock.now
            checkpoint.switchOver(memory: UntouchedMemory())
            let wait = checkpoint.mustWaitBeforeResuming
            let elapsed = ContinuousClock.now - start
            try require(!wait && checkpoint.pendingRequests.count == 256, "everything is pending, nothing has to be waited for")
            return Int(elapsed.components.attoseconds / 1_000_000_000_000)
        }
        print("switching over took \(microseconds) us")
        #expect(microseconds < 20_000)
    }
}

/// Never completes anything.
private struct StuckBackend: DiskBackend {
    let name = "stuck"
    let byteLength: ByteCount
    func read(at offset: DiskOffset, into bytes: TransferBytes, _ completion: @escaping DiskCompletion) {}
    func write(at offset: DiskOffset, from bytes: TransferBytes, _ completion: @escaping DiskCompletion) {}
    func flush(_ completion: @escaping DiskCompletion) {}
}
