// Compaction that meets damage, full media, rates and targets.

import CheckpointStore
import FaultHarness
import Media
import StoreFormat
import StoreTesting
import Synchronization
import Testing
import Units

@Suite struct CompactionTroubleTests {
    /// A store with one checkpoint, whose pages share their segments with pages that are dead.
    private struct Holes {
        let device: SimulatedDevice
        let medium: FaultMedium
        let store: CheckpointStore
        private(set) var bytes: [UInt8]
        var model: [String: ModelCheckpoint] { ["new": ["ram": bytes]] }

        /// - Parameter period: one of so many pages is dead.
        init(seed: UInt64, pages: Int = 768, period: Int = 2) throws {
            device = SimulatedDevice(size: .mebibytes(24))
            medium = FaultMedium(device)
            store = try CheckpointStore.create(
                on: medium, options: CreateOptions(segmentSize: .kibibytes(128)), environment: testEnvironment(seed: seed))
            var random = SeededGenerator(seed: seed)
            bytes = makeNoise(pages, &random)
            let old = try store.begin("old", options: WriterOptions(parallelism: 1))
            try old.addRegion("ram", kind: .memory, byteLength: ByteCount(bytes.count)).write(bytes)
            try old.commit()
            let new = try store.begin("new", parent: "old", options: WriterOptions(parallelism: 1))
            let ram = try new.addRegion("ram", kind: .memory, byteLength: ByteCount(bytes.count))
            for page in stride(from: 0, to: pages, by: period) {
                let content = makeNoise(1, &random)
                bytes.replaceSubrange(page * pageSize..<(page + 1) * pageSize, with: content)
                try ram.put(page: PageIndex(page), content)
            }
            try new.commit()
            if let obstacle = try store.delete(["old"]).obstacle { throw obstacle }
        }

        /// Where runs stand of which about half is dead.
        func deadRuns() throws -> SegmentInfo {
            let found = try store.info().segments.first { $0.segmentClass == .runs && (0.3...0.7).contains($0.livingShare) }
            return try #require(found)
        }
    }

    private static func options(
        _ target: Double = 1, least: Double? = 0.05, batchBytes: ByteCount = .kibibytes(256), parallelism: Int = 1
    ) -> CompactionOptions {
        CompactionOptions(targetAmplification: target, minimumDeadShare: least, batchBytes: batchBytes, parallelism: parallelism)
    }

    @Test func `a write for which there is no room fails its batch, not those after it`() async throws {
        try await onPlainThread {
            let holes = try Holes(seed: 51)
            defer { holes.store.close() }
            let content = holes.store.geometry.offset(of: SegmentIndex(UInt64(0)))
            holes.medium.faults.add(FaultRule(.write, .nth(1), .fail(.noSpace)) { ($0.offset ?? content) >= content })
            let report = try holes.store.compact(Self.options(batchBytes: .mebibytes(1), parallelism: 2))
            #expect(holes.medium.faults.firedCount == 1)
            if let obstacle = report.obstacle { throw obstacle }
            #expect(report.after.amplification < 1.02 && report.freedSegments > 10, "\(report)")
            try holes.store.requireEqual(holes.model)
        }
    }

    @Test func `what can't be written is given up without harm to what is saved next`() async throws {
        try await onPlainThread {
            let holes = try Holes(seed: 52)
            defer { holes.store.close() }
            let content = holes.store.geometry.offset(of: SegmentIndex(UInt64(0)))
            holes.medium.faults.add(FaultRule(.write, .from(3), .fail(.ioFailed)) { ($0.offset ?? content) >= content })
            let report = try holes.store.compact(Self.options(parallelism: 2))
            #expect(report.obstacle?.code == .ioFailed)
            holes.medium.faults.clear()
            var random = SeededGenerator(seed: 520)
            let bytes = makeNoise(64, &random)
            let writer = try holes.store.begin("next", options: WriterOptions(parallelism: 2))
            try writer.addRegion("ram", kind: .memory, byteLength: ByteCount(bytes.count)).write(bytes)
            try writer.commit()
            var model = holes.model
            model["next"] = ["ram": bytes]
            try holes.store.requireEqual(model)
            if let obstacle = try holes.store.compact(Self.options(parallelism: 2)).obstacle { throw obstacle }
            try holes.store.requireEqual(model)
        }
    }

    @Test func `a damaged block is tried once and then left alone, without commits`() async throws {
        try await onPlainThread {
            let holes = try Holes(seed: 53)
            defer { holes.store.close() }
            let victim = try holes.deadRuns()
            let place = holes.store.geometry.offset(of: victim.segment) + ByteCount(UInt64(256))
            let whole = holes.device.bytes(at: place, count: victim.committedBytes.int - 256)
            holes.device.overwrite(at: place, with: [UInt8](repeating: 0xA5, count: whole.count))
            var options = Self.options()
            let first = try holes.store.compact(options)
            #expect(first.damaged.count == 1 && first.leftAlone.keys.sorted() == [victim.segment])
            #expect(first.freedSegments > 5 && first.missedTarget)
            let generation = try holes.store.snapshot().generation
            // Not known any more, it is tried again; but there is nothing to commit.
            let second = try holes.store.compact(options)
            #expect(second.damaged.count == 1 && second.commits == 0)
            options.leftAlone = first.leftAlone
            let third = try holes.store.compact(options)
            #expect(third.damaged.isEmpty && third.commits == 0 && third.leftAlone == first.leftAlone)
            #expect(try holes.store.snapshot().generation == generation)
            holes.device.overwrite(at: place, with: whole)
            try holes.store.requireEqual(holes.model)
            let last = try holes.store.compact(Self.options())
            #expect(last.damaged.isEmpty && last.freedSegments > 0 && !last.missedTarget)
            try holes.store.requireEqual(holes.model)
        }
    }

    @Test func `copies out of a damaged segment count as dead`() async throws {
        try await onPlainThread {
            let holes = try Holes(seed: 54)
            defer { holes.store.close() }
            let victim = try holes.deadRuns()
            // What stands before its second half has been copied when this shows.
            let half = ByteCount(victim.committedBytes.rawValue / 2)
            let place = holes.store.geometry.offset(of: victim.segment) + half
            let whole = holes.device.bytes(at: place, count: half.int)
            holes.device.overwrite(at: place, with: [UInt8](repeating: 0xA5, count: whole.count))
            let report = try holes.store.compact(Self.options(batchBytes: .mebibytes(64)))
            #expect(report.damaged.count == 1 && report.leftAlone.keys.sorted() == [victim.segment])
            let segments = try holes.store.info().segments.filter { $0.segmentClass == .runs && $0.segment != victim.segment }
            let dead = segments.reduce(ByteCount.zero) { $0 + $1.deadBytes }
            #expect(dead > .kibibytes(16), "\(dead) of \(segments)")
            holes.device.overwrite(at: place, with: whole)
            try holes.store.requireEqual(holes.model)
        }
    }

    @Test func `a target below what segments of little dead space allow is reached, or said to be missed`() async throws {
        try await onPlainThread {
            let store = try CheckpointStore.create(
                on: FaultMedium(SimulatedDevice(size: .mebibytes(16))), options: CreateOptions(segmentSize: .kibibytes(128)),
                environment: testEnvironment(seed: 56))
            defer { store.close() }
            var random = SeededGenerator(seed: 56)
            var model: [String: ModelCheckpoint] = [:]
            // Each segment has a little of what goes and much of what stays.
            for number in 0..<24 {
                for (name, pages) in [("gone\(number)", 3), ("kept\(number)", 24)] {
                    let bytes = makeNoise(pages, &random)
                    let writer = try store.begin(name, options: WriterOptions(parallelism: 1))
                    try writer.addRegion("ram", kind: .memory, byteLength: ByteCount(bytes.count)).write(bytes)
                    try writer.commit()
                    model[name] = ["ram": bytes]
                }
            }
            let gone = model.keys.filter { $0.hasPrefix("gone") }.sorted()
            if let obstacle = try store.delete(gone).obstacle { throw obstacle }
            for name in gone { model[name] = nil }
            var options = Self.options(1.04, least: 0.5)
            let missed = try store.compact(options)
            #expect(missed.missedTarget && missed.after.amplification > 1.04)
            options.minimumDeadShare = nil
            options.isDryRun = true
            #expect(try !store.compact(options).missedTarget)
            options.isDryRun = false
            let reached = try store.compact(options)
            #expect(!reached.missedTarget && reached.after.amplification <= 1.04 && reached.movedBlocks > 0, "\(reached)")
            try store.requireEqual(model)
        }
    }

    /// A clock that goes on only while somebody sleeps.
    private final class Clock: Sendable {
        let microseconds = Atomic<UInt64>(3_600_000_000)
        var rateClock: RateClock {
            RateClock(
                nowMicroseconds: { self.microseconds.load(ordering: .relaxed) },
                sleepMicroseconds: { self.microseconds.add($0, ordering: .relaxed) })
        }
    }

    @Test func `a rate gives no credit for time in which nothing was moved`() async throws {
        try await onPlainThread {
            let holes = try Holes(seed: 57)
            defer { holes.store.close() }
            let clock = Clock()
            var options = Self.options()
            options.bytesPerSecond = .mebibytes(1)
            options.clock = clock.rateClock
            // Each commit takes an hour.
            let freed = Atomic(0)
            let most = Atomic<UInt64>(0)
            options.progress = { progress in
                most.store(progress.movedBytes.rawValue, ordering: .relaxed)
                if freed.exchange(progress.freedSegments, ordering: .relaxed) != progress.freedSegments {
                    clock.microseconds.add(3_600_000_000, ordering: .relaxed)
                }
            }
            let report = try holes.store.compact(options)
            if let obstacle = report.obstacle { throw obstacle }
            #expect(report.commits > 2 && report.movedBytes > .mebibytes(1))
            // What was slept is what is left of a time below an hour for each commit.
            let slept = Double(clock.microseconds.load(ordering: .relaxed) % 3_600_000_000) / 1_000_000
            let seconds = Double(report.movedBytes.rawValue) / Double(1 << 20)
            #expect(slept > seconds - 0.06 * Double(report.commits + 1) && slept < 4 * seconds + 1, "\(slept) s for \(seconds) s")
            // Gaps are not moved; runs that lose pages become shorter when they are.
            #expect(most.load(ordering: .relaxed) <= 3 * report.movedBytes.rawValue)
            try holes.store.requireEqual(holes.model)
        }
    }

    @Test func `the walk through the index ends when it is told to`() async throws {
        try await onPlainThread {
            let holes = try Holes(seed: 58, pages: 256)
            defer { holes.store.close() }
            var random = SeededGenerator(seed: 580)
            var model = holes.model
            for number in 0..<60 {
                let bytes = makeNoise(1, &random)
                let writer = try holes.store.begin("small\(number)", options: WriterOptions(parallelism: 1))
                try writer.addRegion("ram\(number)", kind: .memory, byteLength: ByteCount(bytes.count)).write(bytes)
                try writer.commit()
                model["small\(number)"] = ["ram\(number)": bytes]
            }
            var options = Self.options()
            options.isCancelled = { true }
            let before = holes.medium.faults.callCount(of: .read)
            let report = try holes.store.compact(options)
            #expect(report.wasCancelled)
            // The records of all checkpoints alone would be more.
            let reads = holes.medium.faults.callCount(of: .read) - before
            #expect(reads < 60, "\(reads)")
            #expect(try holes.store.compact(Self.options()).freedSegments > 2)
            try holes.store.requireEqual(model)
        }
    }
}

/// Pages that don't compress.
private func makeNoise(_ pages: Int, _ random: inout SeededGenerator) -> [UInt8] {
    (0..<pages * 512).flatMap { _ in random.next().littleEndianBytes }
}
