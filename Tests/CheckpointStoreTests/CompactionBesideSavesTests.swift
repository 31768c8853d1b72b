// Compaction by several threads while the same handle saves and deletes.

import CheckpointStore
import FaultHarness
import Foundation
import Media
import StoreFormat
import StoreTesting
import Testing
import Threading
import Units

@Suite struct CompactionBesideSavesTests {
    /// What the two threads have in common.
    private struct Progress {
        var isOver = false
        var failure: (any Error)?
        var movedBlocks = 0
        var commits = 0
    }

    @Test func `batches that are copied while one is committed keep off what the same handle saves meanwhile`() async throws {
        let progress = try await onPlainThread { try Self.run(seed: 31, rounds: 60) }
        print("compaction beside saves: \(progress.movedBlocks) blocks moved in \(progress.commits) commits")
        #expect(progress.movedBlocks > 200 && progress.commits > 20)
    }

    private static func run(seed: UInt64, rounds: Int) throws -> Progress {
        let path = NSTemporaryDirectory() + "ckstore-beside-\(UUID().uuidString)"
        defer { try? FileManager.default.removeItem(atPath: path) }
        let medium = try createMedium(try Locator("file:" + path), size: .mebibytes(48), force: false)
        let store = try CheckpointStore.create(on: medium, options: CreateOptions(segmentSize: .kibibytes(128)), environment: testEnvironment(seed: seed))
        defer { store.close() }
        let progress = Lock(Progress())
        // Batches of a few segments, so that there are many.
        let options = CompactionOptions(targetAmplification: 1, minimumDeadShare: 0.05, batchBytes: .kibibytes(200), parallelism: 2)
        let compacting = PlainThread {
            while !progress.withLock({ $0.isOver }) {
                do {
                    let report = try store.compact(options)
                    if let obstacle = report.obstacle, obstacle.code != .noSpace { throw obstacle }
                    if let damage = report.damaged.first { throw damage }
                    progress.withLock { progress in
                        progress.movedBlocks += report.movedBlocks
                        progress.commits += report.commits
                    }
                } catch { return progress.withLock { $0.failure = error } }
            }
        }
        let saved = Result { try save(store, rounds: rounds, seed: seed) { progress.withLock { $0.failure != nil } } }
        progress.withLock { $0.isOver = true }
        compacting?.join()
        if let failure = progress.withLock({ $0.failure }) { throw failure }
        try store.requireEqual(try saved.get(), parallelism: 2)
        return progress.withLock { $0 }
    }

    /// Each checkpoint changes every third page of the one before; few are kept. Returns what must be there at the end.
    private static func save(
        _ store: CheckpointStore, rounds: Int, seed: UInt64, until isOver: () -> Bool
    ) throws -> [String: ModelCheckpoint] {
        var random = SeededGenerator(seed: seed)
        let pages = 600
        var bytes = (0..<pages).flatMap { _ in makePage(&random) }
        var model: [String: ModelCheckpoint] = [:]
        for round in 0..<rounds where !isOver() {
            let writer = try store.begin("c\(round)", parent: round == 0 ? nil : "c\(round - 1)", options: WriterOptions(parallelism: 2))
            let ram = try writer.addRegion("ram", kind: .memory, byteLength: ByteCount(bytes.count))
            if round == 0 { try ram.write(bytes) }
            for page in 0..<pages where round > 0 && random.chance(1, in: 3) {
                let content = makePage(&random)
                bytes.replaceSubrange(page * pageSize..<(page + 1) * pageSize, with: content)
                try ram.put(page: PageIndex(page), content)
            }
            try writer.commit()
            model["c\(round)"] = ["ram": bytes]
            if round >= 3 {
                if let obstacle = try store.delete(["c\(round - 3)"]).obstacle { throw obstacle }
                model["c\(round - 3)"] = nil
            }
        }
        return model
    }
}
