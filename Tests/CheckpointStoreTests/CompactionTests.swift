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
    private static let options = CompactionOptions(
        targetAmplification: 1, minimumDeadShare: 0.01, batchBytes: .kibibytes(200), parallelism: 1)

    @Test func `random mixes of saves, deletions and compactions read back as the model says`() async throws {
        let (moved, rewritten) = try await onPlainThread {
            var (moved, rewritten) = (0, 0)
            for seed in UInt64(1)...8 {
                do {
                    let report = try Self.mix(seed: seed, steps: 30)
                    moved += report.moved
                    rewritten += report.rewritten
                } catch { throw Mismatch("seed \(seed): \(error)") }
            }
            return (moved, rewritten)
        }
        print("compaction: \(moved) blocks moved, \(rewritten) runs written anew")
        #expect(moved > 500 && rewritten > 30)
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
        store.close()
        other.close()
        return total
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
