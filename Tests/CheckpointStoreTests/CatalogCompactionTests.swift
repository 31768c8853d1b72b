// Compaction of the catalog: nodes that never change must not keep the segments in which they happen to stand.

import CheckpointStore
import FaultHarness
import Media
import StoreFormat
import StoreTesting
import Testing
import Units

@Suite struct CatalogCompactionTests {
    private static let options = CompactionOptions(batchBytes: .kibibytes(256), parallelism: 1)
    private static let segmentSize = ByteCount.kibibytes(128)

    /// A store of many small checkpoints, of which many were deleted again, and what it holds.
    private struct Aged {
        let device = SimulatedDevice(size: .mebibytes(32))
        let store: CheckpointStore
        var model: [String: ModelCheckpoint] = [:]
        private var random: SeededGenerator
        private var serial = 0

        init(seed: UInt64) throws {
            store = try CheckpointStore.create(
                on: FaultMedium(device), options: CreateOptions(segmentSize: segmentSize), environment: testEnvironment(seed: seed))
            random = SeededGenerator(seed: seed)
        }

        /// Saves `count` checkpoints and deletes as many of those that there are as leave `kept`.
        mutating func live(through count: Int, keeping kept: Int) throws {
            for _ in 0..<count {
                serial += 1
                // Few names go into a node, and those of old checkpoints into nodes of their own.
                let number = String(serial)
                let name = "c" + String(repeating: "0", count: 150 - number.utf8.count) + number
                let writer = try store.begin(name, options: WriterOptions(parallelism: 1))
                model[name] = [:]
                if random.chance(1, in: 4) {
                    let bytes = (0..<3).flatMap { _ in makePage(&random) }
                    try writer.addRegion("ram", kind: .memory, byteLength: ByteCount(bytes.count)).write(bytes)
                    model[name] = ["ram": bytes]
                }
                try writer.commit()
                if random.chance(1, in: 50) { try store.setReference("good", to: name) }
                guard model.count > kept else { continue }
                let kept = try store.snapshot().references().filter { $0.name == "good" }.map(\.checkpoint)
                let doomed = try model.keys.sorted().filter { name throws in
                    try random.chance(1, in: 20) && !kept.contains(store.snapshot().checkpoint(named: name).id)
                }
                if doomed.isEmpty { continue }
                if let obstacle = try store.delete(doomed).obstacle { throw obstacle }
                for name in doomed { model[name] = nil }
            }
        }

        /// The segments of the catalog without the one that commits append to.
        func settledCatalog() throws -> (used: Double, live: Double) {
            let settled = try store.info().segments.filter { $0.segmentClass == .catalog && !$0.isAppendedTo }
            return (
                Double(settled.reduce(UInt64(0)) { $0 + $1.committedBytes.rawValue }), Double(settled.reduce(UInt64(0)) { $0 + $1.liveBytes.rawValue })
            )
        }
    }

    @Test func `after many hundred small checkpoints and deletions the catalog takes little more than what lives in it`() async throws {
        try await onPlainThread {
            var aged = try Aged(seed: 5)
            defer { aged.store.close() }
            try aged.live(through: 400, keeping: 250)
            // Blocks are moved, so that there are tables of them, which become old too.
            if let obstacle = try aged.store.compact(CompactionOptions(targetAmplification: 1, minimumDeadShare: 0.01, parallelism: 1)).obstacle { throw obstacle }
            try aged.live(through: 300, keeping: 250)
            let other = try CheckpointStore.open(FaultMedium(aged.device), environment: testEnvironment(seed: 99))
            defer { other.close() }
            let held = (view: try other.snapshot(), names: aged.model.keys.sorted(), model: aged.model)
            let before = try aged.settledCatalog()
            let expected = try aged.store.info().compaction
            var dry = Self.options
            dry.isDryRun = true
            let promise = try aged.store.compact(dry)
            #expect(promise.catalogAfter.usedBytes < promise.catalogBefore.usedBytes && promise.freedSegments > 3)
            let report = try aged.store.compact(Self.options)
            if let obstacle = report.obstacle { throw obstacle }
            let after = try aged.settledCatalog()
            print("catalog: \(before) -> \(after), \(report.rewrittenNodes) nodes in \(report.commits) commits, \(report.freedSegments) segments freed; "
                + "promised \(promise.freedSegments), \(promise.catalogBefore) -> \(promise.catalogAfter), became \(report.catalogAfter); estimate \(expected)")
            #expect(before.used > 10 * before.live)
            // What is left alone is at most 15 % dead, or less than half a segment in all.
            #expect(after.used < 1.2 * after.live + Double(Self.segmentSize.rawValue) / 2)
            #expect(report.rewrittenNodes > 20)
            #expect(report.damaged.isEmpty)
            try aged.store.requireEqual(aged.model)
            // What was freed is used again, but not what the other's view is made of.
            try aged.live(through: 150, keeping: 200)
            for name in held.names { _ = try held.view.checkpoint(named: name) }
            for name in held.names.prefix(30) {
                let reader = try held.view.reader(named: name)
                for (region, bytes) in held.model[name] ?? [:] where try reader.region(region).bytes() != bytes {
                    throw Mismatch("\(name)/\(region) has other bytes in the view from before")
                }
            }
            try other.requireEqual(aged.model)
            // It comes to an end.
            var rewritten: [Int] = []
            for _ in 0..<4 { rewritten.append(try aged.store.compact(Self.options).rewrittenNodes) }
            #expect(rewritten[0] > 20 && rewritten[3] == 0, "\(rewritten)")
            try aged.store.requireEqual(aged.model)
        }
    }

    @Test func `a damaged node stays where it is, and is told`() async throws {
        try await onPlainThread {
            var aged = try Aged(seed: 8)
            try aged.live(through: 300, keeping: 150)
            aged.store.close()
            let geometry = aged.store.geometry
            let place = try Self.oldNode(of: .byName, aged.device)
            aged.device.flipBit(3, at: place + ByteCount(UInt64(50)))
            let store = try CheckpointStore.open(FaultMedium(aged.device), environment: testEnvironment(seed: 17))
            defer { store.close() }
            let report = try store.compact(Self.options)
            #expect(report.damaged.map(\.offset) == [place])
            #expect(report.rewrittenNodes > 5 && report.freedSegments > 2)
            let segment = SegmentIndex((place.rawValue - geometry.offset(of: SegmentIndex(UInt64(0))).rawValue) / Self.segmentSize.rawValue)
            #expect(try store.info().segments.contains { $0.segment == segment && $0.segmentClass == .catalog })
            aged.device.flipBit(3, at: place + ByteCount(UInt64(50)))
            try store.requireEqual(aged.model)
        }
    }

    @Test func `a store without a free segment behind its reserve gets back what the catalog takes`() async throws {
        try await onPlainThread {
            var aged = try Aged(seed: 12)
            defer { aged.store.close() }
            try aged.live(through: 400, keeping: 250)
            // Fills all but the reserve.
            var random = SeededGenerator(seed: 4)
            var count = 0
            do {
                while true {
                    let bytes = (0..<16 * 512).flatMap { _ in random.next().littleEndianBytes }
                    let writer = try aged.store.begin("noise\(count)", options: WriterOptions(parallelism: 1))
                    try writer.addRegion("ram", kind: .memory, byteLength: ByteCount(bytes.count)).write(bytes)
                    try writer.commit()
                    aged.model["noise\(count)"] = ["ram": bytes]
                    count += 1
                }
            } catch let error as StoreError where error.code == .noSpace {}
            let report = try aged.store.compact(Self.options)
            if let obstacle = report.obstacle { throw obstacle }
            #expect(report.freedSegments > 3)
            #expect(report.rewrittenNodes > 10)
            try aged.store.requireEqual(aged.model)
        }
    }

    /// A node of a tree that the store needs and that stands in a mostly dead segment.
    private static func oldNode(of tree: CatalogTree, _ device: SimulatedDevice) throws -> MediumOffset {
        let store = try CheckpointStore.open(FaultMedium(device), environment: testEnvironment(seed: 16))
        defer { store.close() }
        let geometry = store.geometry
        let magic = Array("CKBT".utf8)
        for segment in try store.info().segments where segment.segmentClass == .catalog && !segment.isAppendedTo && segment.livingShare < 0.5 {
            let start = geometry.offset(of: segment.segment)
            let bytes = device.bytes(at: start, count: segment.committedBytes.int)
            for offset in stride(from: 128, to: bytes.count - 64, by: 64) where Array(bytes[offset + 16..<offset + 20]) == magic {
                // Of the level of leaves.
                guard bytes[offset + 32] == tree.rawValue, bytes[offset + 33] == 0 else { continue }
                let place = start + ByteCount(offset)
                device.flipBit(3, at: place + ByteCount(UInt64(50)))
                let damages = try store.verify(options: VerifyOptions(parallelism: 1)).damages.count
                device.flipBit(3, at: place + ByteCount(UInt64(50)))
                if damages > 0 { return place }
            }
        }
        throw Mismatch("no old node is needed: the test is no test")
    }
}
