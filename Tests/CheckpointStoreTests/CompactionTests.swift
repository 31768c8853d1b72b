// Compaction against the model: what is moved reads back, whoever reads it and when.

import CheckpointStore
import FaultHarness
import Media
import StoreFormat
import StoreTesting
import Testing
import Units

@Suite struct CompactionTests {
    /// Small segments and batches, so that little data makes many of them.
    private static let options = options(.kibibytes(200))

    @Test func `random mixes of saves, deletions and compactions read back as the model says`() async throws {
        let (moved, rewritten) = try await onPlainThread {
            var (moved, rewritten) = (0, 0)
            for seed in UInt64(1)...4 {
                do {
                    let report = try Self.mix(seed: seed, steps: 30)
                    moved += report.moved
                    rewritten += report.rewritten
                } catch { throw Mismatch("seed \(seed): \(error)") }
            }
            return (moved, rewritten)
        }
        print("compaction: \(moved) blocks moved, \(rewritten) runs written anew")
        #expect(moved > 300)
    }

    private static func mix(seed: UInt64, steps: Int) throws -> (moved: Int, rewritten: Int) {
        let device = SimulatedDevice(size: .mebibytes(24))
        let environment = testEnvironment(seed: seed)
        var store = try CheckpointStore.create(
            on: FaultMedium(device), options: CreateOptions(segmentSize: .kibibytes(128)), environment: environment)
        var mix = RandomMix(seed: seed, parallelism: 1, maximumPages: 500)
        var total = (moved: 0, rewritten: 0)
        // A view that is held over several compactions, and what it shows.
        var held: (snapshot: Snapshot, model: [String: ModelCheckpoint])?
        let other = try CheckpointStore.open(FaultMedium(device), environment: testEnvironment(seed: ~seed))
        for step in 0..<steps {
            do {
                try mix.step(store)
                if step % 3 == 2 {
                    let report = try store.compact(options)
                    if let obstacle = report.obstacle, obstacle.code != .noSpace { throw obstacle }
                    guard report.damaged.isEmpty else { throw Mismatch("damage: \(report.damaged)") }
                    total.moved += report.movedBlocks
                    total.rewritten += report.rewrittenRuns
                    try store.requireEqual(mix.model)
                    try requireNothingIsLost(store)
                }
                if let held { try requireContents(held.snapshot, held.model) }
                if step % 10 == 4 { held = (try (step % 20 == 4 ? other : store).snapshot(), mix.model) }
                if step % 10 == 9 {
                    held = nil
                    store.close()
                    store = try CheckpointStore.open(FaultMedium(device), environment: environment)
                }
            } catch { throw Mismatch("step \(step): \(error)") }
        }
        held = nil
        let report = try store.compact(options)
        if let obstacle = report.obstacle { throw obstacle }
        guard report.after.amplification < 1.05 else { throw Mismatch("\(report.after) is left") }
        try store.requireEqual(mix.model)
        try requireNothingIsLost(store)
        // Nothing is left to resolve when nothing is left.
        try store.delete(mix.model.keys.sorted())
        try store.requireEqual([:])
        guard try !store.info().features.contains("forwarding") else { throw Mismatch("entries are left though nothing is stored") }
        store.close()
        other.close()
        return total
    }

    @Test func `runs that lose pages again and again keep those that are left`() async throws {
        let report = try await onPlainThread { try Self.thinOut(seed: 21, rounds: 8) }
        print("compaction: \(report.movedBlocks) blocks moved, \(report.rewrittenRuns) runs written anew")
        #expect(report.rewrittenRuns > 200)
    }

    @Test func `a full store is compacted, and has room afterwards`() async throws {
        try await onPlainThread {
            let device = SimulatedDevice(size: .kibibytes(1024 + 24 * 512))
            let store = try CheckpointStore.create(
                on: FaultMedium(device), options: CreateOptions(segmentSize: .kibibytes(512)), environment: testEnvironment(seed: 3))
            defer { store.close() }
            var random = SeededGenerator(seed: 31)
            func noise(_ pages: Int) -> [UInt8] { (0..<pages * 512).flatMap { _ in random.next().littleEndianBytes } }
            func save(_ name: String, parent: String? = nil, _ bytes: [UInt8]) throws {
                let writer = try store.begin(name, parent: parent, options: WriterOptions(parallelism: 1))
                try writer.addRegion("ram", kind: .memory, byteLength: ByteCount(bytes.count)).write(bytes)
                try writer.commit()
            }
            var bytes = noise(512)
            try save("old", bytes)
            for start in stride(from: 0, to: 512, by: 32) {
                bytes.replaceSubrange(start * pageSize..<(start + 16) * pageSize, with: noise(16))
            }
            try save("new", parent: "old", bytes)
            try store.delete(["old"])
            var model: [String: ModelCheckpoint] = ["new": ["ram": bytes]]
            do {
                while true {
                    let content = noise(16)
                    try save("more\(model.count)", content)
                    model["more\(model.count)"] = ["ram": content]
                }
            } catch let error as StoreError where error.code == .noSpace {}
            let report = try store.compact(Self.options(.mebibytes(1)))
            if let obstacle = report.obstacle { throw obstacle }
            guard report.freedSegments > report.movedBytes.int / (400 << 10) else { throw Mismatch("\(report)") }
            try store.requireEqual(model)
            for _ in 0..<8 {
                let content = noise(16)
                try save("after\(model.count)", content)
                model["after\(model.count)"] = ["ram": content]
            }
            try store.requireEqual(model)
        }
    }

    private static func options(_ batchBytes: ByteCount) -> CompactionOptions {
        CompactionOptions(targetAmplification: 1, minimumDeadShare: 0.01, batchBytes: batchBytes, parallelism: 1)
    }

    /// Every checkpoint writes a third of the pages anew; the one before it goes, and what is left is moved.
    private static func thinOut(seed: UInt64, rounds: Int) throws -> CompactionReport {
        let device = SimulatedDevice(size: .mebibytes(24))
        let store = try CheckpointStore.create(
            on: FaultMedium(device), options: CreateOptions(segmentSize: .kibibytes(128)), environment: testEnvironment(seed: seed))
        defer { store.close() }
        var random = SeededGenerator(seed: seed)
        let pages = 1100
        var bytes = (0..<pages).flatMap { _ in makePage(&random) }
        var total = CompactionReport()
        // Begun before all compactions, and committed after them.
        var late: CheckpointWriter?
        for round in 0..<rounds {
            let writer = try store.begin("c\(round)", parent: round == 0 ? nil : "c\(round - 1)", options: WriterOptions(parallelism: 1))
            let ram = try writer.addRegion("ram", kind: .memory, byteLength: ByteCount(bytes.count))
            if round == 0 { try ram.write(bytes) }
            for page in 0..<pages where round > 0 && random.chance(1, in: 3) {
                let content = makePage(&random)
                bytes.replaceSubrange(page * pageSize..<(page + 1) * pageSize, with: content)
                try ram.put(page: PageIndex(page), content)
            }
            try writer.commit()
            if round > 0 { try store.delete(["c\(round - 1)"]) }
            if round == rounds - 3 {
                let writer = try store.begin("late", parent: "c\(round)", options: WriterOptions(parallelism: 1))
                try writer.addRegion("ram", kind: .memory, byteLength: ByteCount(bytes.count)).put(page: PageIndex(7), makePage(&random))
                late = writer
            }
            let held = try store.snapshot()
            let report = try store.compact(options)
            if let obstacle = report.obstacle { throw obstacle }
            total.movedBlocks += report.movedBlocks
            total.rewrittenRuns += report.rewrittenRuns
            try requireContents(held, ["c\(round)": ["ram": bytes]])
            try store.requireEqual(["c\(round)": ["ram": bytes]])
            try requireNothingIsLost(store)
        }
        // Its parent is gone; but what it read of it was there all the time.
        do {
            try late?.commit()
            throw Mismatch("a checkpoint was committed over one that had been deleted")
        } catch let error as StoreError where error.code == .wrongBase {}
        return total
    }

    /// The segment table counts exactly what lives.
    private static func requireNothingIsLost(_ store: CheckpointStore) throws {
        let report = try store.verify(options: VerifyOptions(parallelism: 1))
        guard report.lostPages == .zero, report.lostBytes == .zero else {
            throw Mismatch("\(report.lostPages) pages and \(report.lostBytes) bytes of index are counted and not reached")
        }
    }

    private static func requireContents(_ snapshot: Snapshot, _ model: [String: ModelCheckpoint]) throws {
        guard Set(try snapshot.names()) == Set(model.keys) else { throw Mismatch("the view names \(try snapshot.names())") }
        for (name, regions) in model.sorted(by: { $0.key < $1.key }) {
            let reader = try snapshot.reader(named: name)
            for (region, bytes) in regions where try reader.region(region).bytes() != bytes {
                throw Mismatch("\(name)/\(region) has other bytes in the view of generation \(snapshot.generation)")
            }
        }
    }
}
