// Repair: what is damaged comes back as it was, or is named; nothing wrong ever comes back.

import CheckpointStore
import CheckpointStream
import FaultHarness
import Foundation
import Media
import StoreFormat
import StoreTesting
import Testing
import Threading
import Units

/// A store that holds the same checkpoints as another, in a layout of its own.
private func replica(of history: History) throws -> ScratchStore {
    let copy = try ScratchStore(.mebibytes(32))
    let source = try history.open()
    defer { source.close() }
    _ = try source.copyCheckpoints(to: copy.store, options: SyncOptions(parallelism: 1))
    return copy
}

/// Repairs the store of a history on one thread.
private func repair(
    _ history: History, from replica: CheckpointStore? = nil, _ options: RepairOptions = RepairOptions(parallelism: 1)
) throws -> RepairReport {
    let store = try history.open(.readWrite)
    defer { store.close() }
    return try store.repair(from: replica, options: options)
}

private func requireEqual(_ history: History, deep: Bool = true) throws {
    let store = try history.open()
    defer { store.close() }
    try store.requireEqual(history.model, deep: deep)
}

/// Reads everything: each page is as the model has it, or can't be read. Returns how many regions can't be read whole.
private func requireNothingWrong(_ history: History) throws -> Int {
    let store = try history.open()
    defer { store.close() }
    let snapshot = try store.snapshot()
    var unreadable = 0
    var page = [UInt8](repeating: 0, count: pageSize)
    for (name, regions) in history.model {
        for (regionName, expected) in regions {
            guard let region = try? snapshot.reader(named: name).region(regionName), (try? region.bytes()) != expected else { continue }
            unreadable += 1
            for number in 0..<region.info.pageCount.int {
                guard (try? unsafe page.withUnsafeMutableBytes({ try unsafe region.read(page: PageIndex(number), into: $0) })) != nil else { continue }
                guard page.starts(with: expected[number * pageSize..<min((number + 1) * pageSize, expected.count)]) else {
                    throw Mismatch("\(name)/\(regionName) page \(number) reads as something else")
                }
            }
        }
    }
    return unreadable
}

private func smallMemory(_ number: Int) -> [UInt8] { [UInt8](repeating: UInt8(number + 1), count: 8 * pageSize) }

private func saveSmall(_ number: Int, _ store: CheckpointStore) throws {
    let writer = try store.begin("new\(number)", parent: nil, options: WriterOptions(parallelism: 1))
    try writer.addRegion("ram", kind: .memory, byteLength: ByteCount(8 * pageSize)).write(smallMemory(number))
    try writer.commit()
}

@Suite struct RepairTests {
    @Test(arguments: [UInt64(7), 8]) func `every run that is broken comes back from a synced replica`(seed: UInt64) async throws {
        try await onPlainThread {
            let history = try History(seed: seed)
            if seed == 8 {
                // Runs with pages that nothing lists any more.
                let store = try history.open(.readWrite)
                try history.delete(["c0", "c3", "c5"], from: store)
                store.close()
            }
            let copy = try replica(of: history)
            var (rewritten, forwarded, dead) = (0, 0, 0)
            // Runs of which only pages are listed that no checkpoint reads: a replica need not have these.
            var unneeded = Set<BlockPointer>()
            for (number, block) in try history.blocks().enumerated() where block.header.kind == .run {
                let all = try history.bytes()
                let place = block.range.lowerBound + number * 37 % block.range.count
                if number % 3 == 0 { try history.zero(block.range) } else { try history.overwrite(at: place, [all[place] ^ 0x20]) }
                let report = try repair(history, from: copy.store)
                unneeded.formUnion(report.remaining.compactMap { $0.damage.losses.isEmpty ? $0.damage.block : nil })
                guard report.remaining.count == unneeded.count, report.obstacle == nil, report.missingInReplica.isEmpty else {
                    throw Mismatch("seed \(seed), run at \(block.range): \(report)")
                }
                if report.found.isSound { dead += 1 }
                rewritten += report.rewrittenBlocks
                forwarded += report.forwardedRuns
                if number % 8 == 0 { try requireEqual(history, deep: unneeded.isEmpty) }
            }
            try requireEqual(history, deep: unneeded.isEmpty)
            print("seed \(seed): \(rewritten) runs in place, \(forwarded) forwarded, \(dead) dead, \(unneeded.count) unneeded")
            #expect(rewritten > 20 && unneeded.count < rewritten)
            if seed == 7 { #expect(unneeded.isEmpty) }
            if seed == 8 { #expect(forwarded > 0) }
        }
    }

    @Test func `all runs at once come back, batch by batch`() async throws {
        try await onPlainThread {
            let history = try History(seed: 11, checkpoints: 12)
            let copy = try replica(of: history)
            for block in try history.blocks() where block.header.kind == .run { try history.zero(block.range) }
            let dry = try repair(history, from: copy.store, RepairOptions(parallelism: 1, isDryRun: true))
            #expect(!dry.remaining.isEmpty && dry.rewrittenBlocks > 20)
            let report = try repair(history, from: copy.store)
            #expect(report.isWhole && report.rewrittenBlocks + report.forwardedRuns == dry.rewrittenBlocks + dry.forwardedRuns, "\(report.remaining)")
            try requireEqual(history)
        }
    }

    @Test func `a replica with other pages under the same ids gives nothing`() async throws {
        try await onPlainThread {
            let history = try History(seed: 7)
            let wrong = try History(seed: 7, content: 1234)
            let other = try wrong.open()
            defer { other.close() }
            var unreadable = 0
            for (number, block) in try history.blocks().enumerated() where block.header.kind == .run && number % 12 == 0 {
                try history.zero(block.range.lowerBound + 40..<block.range.lowerBound + 60)
                _ = try repair(history, from: other)
                unreadable += try requireNothingWrong(history)
            }
            #expect(unreadable > 0)
            // What it could not do, the right one can.
            let foreign = try History(seed: 99)
            let store = try foreign.open()
            defer { store.close() }
            let none = try repair(history, from: store)
            #expect(!none.remaining.isEmpty && !none.missingInReplica.isEmpty && none.restoredPages == .zero)
        }
    }

    @Test func `of a damaged replica only what is sound is taken, and a better one brings the rest`() async throws {
        try await onPlainThread {
            let history = try History(seed: 13, checkpoints: 10)
            let good = try replica(of: history)
            let poor = try replica(of: history)
            // It lacks some checkpoints.
            try poor.store.delete(["c1", "c4", "c6", "c8", "c9"].filter { history.model[$0] != nil })
            for block in try history.blocks() where block.header.kind == .run { try history.zero(block.range.lowerBound + 20..<block.range.lowerBound + 30) }
            let before = try requireNothingWrong(history)
            let partial = try repair(history, from: poor.store)
            let after = try requireNothingWrong(history)
            #expect(partial.forwardedRuns + partial.rewrittenBlocks > 0 && !partial.remaining.isEmpty && !partial.missingInReplica.isEmpty)
            #expect(after < before, "\(after) of \(before) regions can't be read")
            let store = try history.open()
            let named = try store.verify()
            store.close()
            #expect(named.damages.count == partial.remaining.count)
            let rest = try repair(history, from: good.store)
            #expect(rest.isWhole, "\(rest.remaining)")
            try requireEqual(history)
        }
    }

    @Test func `from a copy of the medium every block comes back, those of the index and the catalog too`() async throws {
        try await onPlainThread {
            let history = try History(seed: 17, checkpoints: 6)
            let path = history.folder + "/copy.ck"
            try FileManager.default.copyItem(atPath: history.path, toPath: path)
            let copy = try CheckpointStore.open(try openMedium(try Locator(path), access: .readOnly))
            defer { copy.close() }
            var byKind: [BlockKind: Int] = [:]
            for (number, block) in try history.blocks().enumerated() where block.header.kind != .segmentHeader && block.header.kind != .commitRecord {
                let all = try history.bytes()
                let place = block.range.lowerBound + 16 + number * 41 % (block.range.count - 16)
                try history.overwrite(at: place, [all[place] ^ 0x01])
                let report = try repair(history, from: copy)
                guard report.isWhole else { throw Mismatch("\(block.header.kind) at \(block.range): \(report.remaining) \(report.obstacle.map { "\($0)" } ?? "")") }
                if !report.found.isSound { byKind[block.header.kind, default: 0] += 1 }
            }
            #expect(byKind.keys.contains(.leaf) && byKind.keys.contains(.patchLeaf) && byKind.keys.contains(.catalogNode), "\(byKind)")
            #expect(byKind.keys.contains(.checkpointRecord) && byKind.keys.contains(.tableLeaf), "\(byKind)")
            try requireEqual(history)
        }
    }

    @Test func `lone slots get their twins back`() async throws {
        try await onPlainThread {
            let history = try History(seed: 19, checkpoints: 5)
            for (position, ring) in [(1, 0), (2, 1), (3, 1)] {
                let start = (ring == 0 ? 0 : history.geometry.twinOffset.int) + position * Slot.encodedLength
                try history.zero(start + 100..<start + 200)
            }
            let report = try repair(history)
            #expect(report.found.damages.count == 3 && report.rewrittenSlots == 3 && report.isWhole, "\(report)")
            try requireEqual(history)
        }
    }

    @Test func `space that a deletion over damage could not free comes back`() async throws {
        try await onPlainThread {
            var healed = 0
            for seed in UInt64(30)..<36 {
                let history = try History(seed: seed, checkpoints: 6)
                let leaves = try history.blocks().filter { $0.header.kind == .leaf || $0.header.kind == .patchLeaf }
                let block = try #require(leaves.last)
                try history.zero(block.range.lowerBound + 20..<block.range.lowerBound + 30)
                let store = try history.open(.readWrite)
                for name in history.order.reversed() {
                    try history.delete([name], from: store)
                    if try store.verify().isSound { break }
                }
                let lost = try store.verify()
                store.close()
                guard lost.lostPages > .zero || lost.lostBytes > .zero else { continue }
                healed += 1
                let report = try repair(history)
                #expect(report.isWhole && report.recountedSegments > 0, "seed \(seed): \(report)")
                try requireEqual(history)
            }
            #expect(healed > 0)
        }
    }

    @Test func `without a replica damaged runs stay as they are, and are named`() async throws {
        try await onPlainThread {
            let history = try History(seed: 23, checkpoints: 3)
            let run = try #require(try history.blocks().first { $0.header.kind == .run })
            try history.zero(run.range.lowerBound + 40..<run.range.lowerBound + 50)
            let before = try history.bytes()
            let report = try repair(history)
            #expect(report.remaining.count == 1 && report.remaining[0].remedy.contains("--from"))
            #expect(try history.bytes() == before)
        }
    }

    @Test func `others read and save while it repairs`() async throws {
        try await onPlainThread {
            let history = try History(seed: 29, checkpoints: 8)
            let copy = try replica(of: history)
            for block in try history.blocks() where block.header.kind == .run { try history.zero(block.range.lowerBound + 20..<block.range.lowerBound + 90) }
            let store = try history.open(.readWrite)
            let other = try history.open(.readWrite)
            let done = Lock(false)
            let failure = Lock<(any Error)?>(nil)
            let shared = Handed(history)
            let reader = try #require(PlainThread {
                do { while !done.withLock({ $0 }) { _ = try requireNothingWrong(shared.value) } } catch { failure.withLock { $0 = error } }
            })
            let writer = try #require(PlainThread {
                do { for number in 0..<20 { try saveSmall(number, other) } } catch { failure.withLock { $0 = error } }
            })
            let report = try store.repair(from: copy.store, options: RepairOptions(parallelism: 2))
            writer.join()
            done.withLock { $0 = true }
            reader.join()
            if let failure = failure.withLock({ $0 }) { throw failure }
            #expect(report.isWhole, "\(report.remaining)")
            let snapshot = try other.snapshot()
            for number in 0..<20 { #expect(try snapshot.reader(named: "new\(number)").region("ram").bytes() == smallMemory(number)) }
            try other.delete((0..<20).map { "new\($0)" })
            store.close()
            other.close()
            try requireEqual(history)
        }
    }
}

@Suite struct RepairCrashTests {
    /// A store on a simulated device, most of whose runs are damaged, and what is to be had of it elsewhere.
    private final class Scene: Sendable {
        let device: SimulatedDevice
        let replica: ScratchStore
        let model: [String: ModelCheckpoint]

        init(seed: UInt64) throws {
            print("repair crash scene, seed \(seed)")
            device = SimulatedDevice(size: .mebibytes(4))
            let store = try CheckpointStore.create(
                on: FaultMedium(device), options: CreateOptions(segmentSize: .kibibytes(128)), environment: testEnvironment(seed: seed))
            defer { store.close() }
            var random = SeededGenerator(seed: seed)
            var (model, ram): ([String: ModelCheckpoint], [UInt8]) = ([:], (0..<40).flatMap { _ in makePage(&random) })
            for number in 0..<4 {
                let writer = try store.begin("c\(number)", parent: number == 0 ? nil : "c\(number - 1)", options: WriterOptions(parallelism: 1))
                let region = try writer.addRegion("ram", kind: .memory, byteLength: ByteCount(ram.count))
                if number == 0 { try region.write(ram) } else {
                    for _ in 0..<(number == 2 ? 15 : 3) {
                        let (page, bytes) = (random.below(40), makePage(&random))
                        ram.replaceSubrange(page * pageSize..<(page + 1) * pageSize, with: bytes)
                        try region.put(page: PageIndex(page), bytes)
                    }
                }
                try writer.commit()
                model["c\(number)"] = ["ram": ram]
            }
            // Leaves runs with pages that nobody needs any more, which no replica has.
            try store.delete(["c0", "c1"])
            for name in ["c0", "c1"] { model[name] = nil }
            self.model = model
            replica = try ScratchStore(.mebibytes(32))
            _ = try store.copyCheckpoints(to: replica.store, options: SyncOptions(parallelism: 1))
            let all = device.bytes(at: .zero, count: device.size.int)
            var position = store.geometry.dataOffset.int
            while position < all.count {
                let piece = Array(all[position..<min(position + (72 << 10), all.count)])
                guard let header = unsafe try? Block.peek(piece.span.bytes) else {
                    position += 64
                    continue
                }
                if header.kind == .run { device.overwrite(at: MediumOffset(UInt64(position + 33)), with: [1, 2, 3, 4, 5]) }
                position += (Int(header.storedLength) + 63) / 64 * 64
            }
        }

        /// Repairs what is on `device`, and makes sure that nothing that a checkpoint needs stays damaged.
        func repair(_ device: SimulatedDevice) throws -> RepairReport {
            let store = try CheckpointStore.open(FaultMedium(device), environment: testEnvironment(seed: 77))
            defer { store.close() }
            let report = try store.repair(from: replica.store, options: RepairOptions(parallelism: 1))
            guard report.remaining.allSatisfy({ $0.damage.losses.isEmpty && $0.damage.block?.kind == .run }), report.obstacle == nil else {
                throw Mismatch("stays damaged: \(report)")
            }
            try store.requireEqual(model, deep: false)
            return report
        }

        /// Nothing reads as anything else than it should.
        func requireNothingWrong(_ device: SimulatedDevice, isDone: Bool) throws {
            let store = try CheckpointStore.open(FaultMedium(device), environment: testEnvironment(seed: 78))
            defer { store.close() }
            if isDone { return try store.requireEqual(model, deep: false) }
            let report = try store.verify(options: VerifyOptions(checksPages: true, parallelism: 1))
            guard report.damages.allSatisfy({ $0.block?.kind == .run }) else { throw Mismatch("damaged by the repair: \(report.damages)") }
            let snapshot = try store.snapshot()
            for (name, regions) in model {
                guard let bytes = try? snapshot.reader(named: name).region("ram").bytes() else { continue }
                guard bytes == regions["ram"] else { throw Mismatch("\(name) reads as something else") }
            }
        }
    }

    @Test(arguments: [UInt64(1), 2, 3]) func `power may go at any write or flush of a repair`(seed: UInt64) async throws {
        let (report, done) = try await onPlainThread {
            let scene = try Scene(seed: seed)
            let done = Lock<RepairReport?>(nil)
            var plan = CrashExplorer.Plan()
            plan.exhaustiveModes = [.none, .all, .prefix, .dropOne]
            plan.randomImageCount = 150
            let report = try CrashExplorer("repair-\(seed)", seed: seed, plan: plan).explore(scene.device) { device in
                let report = try scene.repair(device)
                done.withLock { $0 = report }
                device.mark("acknowledged")
            } check: { image in
                try scene.requireNothingWrong(image.device, isDone: !image.marks.isEmpty)
                // What was cut short can be done again.
                _ = try scene.repair(image.device)
            }
            return (report, try #require(done.withLock { $0 }))
        }
        print("crash points of a repair, seed \(seed): \(report); \(done.rewrittenBlocks) runs in place, \(done.forwardedRuns) anew")
        #expect(report.isReplay || report.imageCount > 50)
        #expect(done.rewrittenBlocks + done.forwardedRuns > 2)
    }
}
