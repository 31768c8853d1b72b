// Requests and checkpoints that fail, and what is left of them: a machine that goes on, and a disk that is right.

import CheckpointCore
import FaultHarness
import MachineMemory
import Testing
import Threading
import Units
import VirtualDisks

@Suite struct FailureTests {
    private static let broken = EngineError(.ioFailed, "broken")

    @Test func `a pending read that fails is told as such, and is not issued again`() throws {
        let bench = try Bench()
        bench.backend.failNext(0, Self.broken)
        let read = bench.submit(.read, 0..<1, page: 0)
        let checkpoint = try bench.checkpoint()
        bench.memory.write(3000, [77])
        bench.backend.complete(bench.backend.held[0])
        #expect(bench.result(read) != nil && !bench.succeeded(read) && bench.backend.held.isEmpty)
        try checkpoint.waitForPendingReads()
        guard case .failure(let error) = checkpoint.pendingRequests[0].outcome else { throw TestFailure("the outcome is recorded") }
        #expect(error.reason == "broken")
    }

    @Test func `a read that can't be issued again fails the checkpoint, not the machine`() throws {
        let bench = try Bench()
        bench.backend.failNext(1, Self.broken)
        let read = bench.submit(.read, 0..<1, page: 0)
        let checkpoint = try bench.checkpoint()
        bench.memory.write(3000, [77])
        bench.backend.complete(bench.backend.held[0])
        bench.backend.complete(bench.backend.held[0])
        #expect(bench.succeeded(read) && bench.memory.ongoing[0] == 1)
        #expect(try engineError { try checkpoint.waitForPendingReads() }.reason == "broken")
        bench.backend.setMode(.immediate)
        bench.submit(.write, 2..<3, page: 4)
        try checkpoint.abort()
        #expect(bench.image[2] == 105 && bench.storage.isRemoved)
    }

    @Test func `a write whose group can't be copied fails alone, and can be tried again`() throws {
        let bench = try Bench(.immediate)
        let checkpoint = try bench.checkpoint()
        bench.backend.failNext(0, Self.broken)
        let failed = bench.submit(.write, 0..<1, page: 0)
        #expect(bench.result(failed) != nil && !bench.succeeded(failed))
        #expect(try bench.ongoing()[0] == 1)
        bench.storage.setFault { operation, _ in operation == .write ? EngineError(.noSpace, "full") : nil }
        #expect(!bench.succeeded(bench.submit(.write, 0..<1, page: 0)))
        #expect(try bench.ongoing()[0] == 1)
        bench.storage.setFault(nil)
        #expect(bench.succeeded(bench.submit(.write, 0..<1, page: 0)))
        try checkpoint.commit(makeHelper: bench.helper)
        #expect(bench.image[..<2] == [101, 2])
    }

    @Test func `a commit that fails at any step leaves the disk as it was, and is tried again`() throws {
        var step = 0
        var failures = 0
        // Fails the n-th operation on the image or on an overlay, until there are no more.
        while failures == step {
            step += 1
            for failsImage in [true, false] {
                let bench = try Bench(.immediate)
                let checkpoint = try bench.checkpoint()
                for group in 0..<3 { bench.submit(.write, group * 8..<group * 8 + 1, page: group) }
                let before = try bench.ongoing()
                let number = step
                if failsImage { bench.backend.failNext(number - 1, Self.broken) }
                // A failed flush of an overlay is final: it can't be repeated, and is not tried here.
                let fault: @Sendable (MemoryStorage.Operation, Int) -> EngineError? = { $0 == .read && $1 == number ? Self.broken : nil }
                if !failsImage { bench.storage.setFault(fault) }
                do {
                    try checkpoint.commit(limits: CommitLimits(heldGroups: 0, rounds: 1), makeHelper: bench.helper)
                } catch {
                    failures = step
                    #expect(error.reason == "broken")
                    #expect(try bench.ongoing() == before)
                    #expect(bench.succeeded(bench.submit(.write, 30..<31, page: 6)))
                    try checkpoint.commit(limits: CommitLimits(heldGroups: 0, rounds: 1), makeHelper: bench.helper)
                    #expect(bench.image[30] == 107)
                }
                #expect(bench.image[..<17].elementsEqual(before[..<17]) && bench.disk.pendingRequests.isEmpty)
            }
        }
        #expect(step > 3)
    }

    @Test func `a helper that can't be made stops a commit, which an abort finishes without one`() throws {
        let bench = try Bench(.immediate)
        let checkpoint = try bench.checkpoint()
        bench.submit(.write, 0..<1, page: 0)
        let full = EngineError(.noSpace, "full")
        #expect(
            try engineError {
                try checkpoint.commit(limits: CommitLimits(heldGroups: 0, rounds: 1)) { (_) throws(EngineError) -> CowFile in throw full }
            }.code == .noSpace)
        #expect(bench.succeeded(bench.submit(.write, 1..<2, page: 1)))
        try checkpoint.abort()
        #expect(bench.image[..<3] == [101, 102, 3])
        #expect(try bench.disk.beginCheckpoint(overlay: try Bench().overlay()).pendingRequests.isEmpty)
    }

    @Test func `an overlay without room keeps requests waiting, fails none, and is brought back by an abort`() throws {
        for operation in [MemoryStorage.Operation.write, .flush] {
            let bench = try Bench(.immediate)
            let told = Lock<[String]>([])
            let checkpoint = try bench.disk.beginCheckpoint(overlay: try bench.overlay()) { error in told.withLock { $0.append(error.reason) } }
            checkpoint.switchOver(memory: bench.memory)
            let first = bench.submit(.write, 0..<1, page: 0)
            bench.storage.setFault { kind, _ in kind == operation ? EngineError(.noSpace, "full") : nil }
            let stuck = [
                bench.submit(operation == .write ? .write : .flush, 8..<18, page: 1), bench.submit(.write, 1..<2, page: 4),
                bench.submit(.read, 0..<1, page: 5),
            ]
            #expect(bench.succeeded(first) && stuck.allSatisfy { bench.result($0) == nil })
            #expect(told.withLock { $0 } == ["full"])
            try checkpoint.abort(makeHelper: bench.helper)
            #expect(stuck.allSatisfy { bench.succeeded($0) } && bench.storage.isRemoved && bench.disk.pendingRequests.isEmpty)
            #expect(bench.image[..<2] == [101, 105] && bench.image[8] == (operation == .write ? 102 : 9))
            #expect(bench.memory.ongoing[5 * pageSize] == 101)
            #expect(try bench.disk.beginCheckpoint(overlay: try Bench().overlay()).pendingRequests.isEmpty)
        }
    }

    @Test func `a merged file that can't be removed is reported, and does no harm`() throws {
        let bench = try Bench(.immediate)
        let checkpoint = try bench.checkpoint()
        bench.submit(.write, 0..<1, page: 0)
        bench.storage.setFault { operation, _ in operation == .remove ? Self.broken : nil }
        let report = try checkpoint.commit(makeHelper: bench.helper)
        #expect(report.unremoved.map(\.reason) == ["broken"])
        bench.submit(.write, 0..<1, page: 3)
        bench.storage.setFault(nil)
        let left = try CowFile.open(on: bench.storage)
        #expect(left.mergeState == .merged)
        try CowFile.recover([left], into: bench.backend)
        #expect(bench.image[0] == 104)
    }

    @Test func `what changed since the last checkpoint is what was written, also when one was given up between`() throws {
        let bench = try Bench(.immediate)
        let first = try bench.checkpoint()
        bench.submit(.write, 8..<9, page: 0)
        try first.commit(makeHelper: bench.helper)
        func next() throws -> DiskCheckpoint {
            let checkpoint = try bench.disk.beginCheckpoint(overlay: CowFile.create(on: MemoryStorage(), geometry: bench.disk.geometry))
            checkpoint.switchOver(memory: bench.memory)
            return checkpoint
        }
        let second = try next()
        #expect(second.parentReader.changedSince == [BlockGroup(1)..<BlockGroup(2)])
        bench.submit(.write, 31..<32, page: 0)
        try second.abort()
        let third = try next()
        #expect(third.parentReader.changedSince == [BlockGroup(1)..<BlockGroup(2), BlockGroup(3)..<BlockGroup(4)])
        try third.commit(makeHelper: bench.helper)
        #expect(try next().parentReader.changedSince == [])
    }

    @Test func `requests that make no sense fail, whatever their numbers`() throws {
        let bench = try Bench(.immediate)
        let memory = bench.memory.memory
        let most = UInt64.max / 512 * 512
        for (offset, address, count) in [
            (1, 0, 512), (0, 0, 0), (0, 0, 511), (16384, 0, 512), (15872, 0, 1024), (most, 0, 512), (0, 32768, 512), (0, 32000, 1024),
            (0, most, 512), (0, 0, most), (most, most, most),
        ] as [(UInt64, UInt64, UInt64)] {
            for operation in [DiskOperation.read, .write] {
                let outcome = Lock<Result<Void, EngineError>?>(nil)
                let buffer = GuestBuffer(memory, offset: ByteCount(address), byteCount: ByteCount(count))
                bench.disk.submit(DiskRequest(operation, at: DiskOffset(offset), buffer) { result in outcome.withLock { $0 = result } })
                guard case .failure(let error) = outcome.withLock({ $0 }) else { throw TestFailure("\(offset) \(address) \(count) is taken") }
                #expect(error.code == .invalidInput)
            }
        }
        #expect(bench.disk.pendingRequests.isEmpty)
    }

    @Test func `overlays of other disks and second checkpoints are refused`() throws {
        let bench = try Bench(.immediate)
        let other = try DiskGeometry(diskLength: .kibibytes(32), groupSize: .kibibytes(4))
        let foreign = try CowFile.create(on: MemoryStorage(), geometry: other)
        #expect(try engineError { _ = try bench.disk.beginCheckpoint(overlay: foreign) }.code == .mismatch)
        let checkpoint = try bench.disk.beginCheckpoint(overlay: try bench.overlay())
        #expect(try engineError { _ = try bench.disk.beginCheckpoint(overlay: try Bench().overlay()) }.code == .busy)
        checkpoint.switchOver(memory: bench.memory)
        bench.submit(.write, 0..<1, page: 0)
        #expect(
            try engineError {
                try checkpoint.commit(limits: CommitLimits(heldGroups: 0, rounds: 1)) { (_) throws(EngineError) -> CowFile in
                    try CowFile.create(on: MemoryStorage(), geometry: other)
                }
            }.code == .mismatch)
    }

    @Test func `files of a chain are recovered in their order, and a chain with a gap is refused`() throws {
        let geometry = try DiskGeometry(diskLength: .kibibytes(16), groupSize: .kibibytes(4))
        let lower = try CowFile.create(on: MemoryStorage(), geometry: geometry)
        let middle = try CowFile.create(on: MemoryStorage(), geometry: geometry, parent: lower.id)
        let upper = try CowFile.create(on: MemoryStorage(), geometry: geometry, parent: middle.id)
        for (version, file) in [(1, lower), (2, middle), (3, upper)] as [(UInt32, CowFile)] {
            try write(SectorHistory.sector(version), at: 0, to: file)
            try write(SectorHistory.sector(version), at: Int(version) * 8 * sectorSize, to: file)
        }
        let image = ManualBackend([UInt8](repeating: 0, count: 16384))
        #expect(try engineError { try CowFile.recover([upper, lower], into: image) }.code == .notFound)
        let twin = try CowFile.create(on: MemoryStorage(), geometry: geometry, parent: lower.id)
        try write(SectorHistory.sector(9), at: 0, to: twin)
        #expect(try engineError { try CowFile.recover([upper, lower, middle, twin], into: image) }.code == .invalidInput)
        let short = ManualBackend([UInt8](repeating: 0, count: 8192))
        #expect(try engineError { try CowFile.recover([lower], into: short) }.code == .mismatch)
        let report = try CowFile.recover([upper, lower, middle], into: image)
        #expect(report.mergedFiles == 3 && report.mergedGroups == 6)
        #expect(Bench.sectors(image.content)[0] == 3 && [8, 16, 24].map { image.content[$0 * sectorSize] } == [1, 2, 3])
        #expect(try CowFile.recover([middle, upper], into: image).mergedFiles == 0)
        // One that was never written is none of the chain, and may have been left behind by somebody.
        let first = try CowFile.create(on: MemoryStorage(), geometry: geometry)
        let empty = try CowFile.create(on: MemoryStorage(), geometry: geometry, parent: first.id)
        let last = try CowFile.create(on: MemoryStorage(), geometry: geometry, parent: empty.id)
        let stray = try CowFile.create(on: MemoryStorage(), geometry: geometry)
        try write(SectorHistory.sector(4), at: 0, to: first)
        try write(SectorHistory.sector(5), at: 0, to: last)
        #expect(try CowFile.recover([stray, last, empty, upper, first], into: image).mergedFiles == 2 && image.content[0] == 5)
    }
}
