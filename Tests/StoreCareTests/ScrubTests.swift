// Scrubbing beside writers, readers and deletions: no false damage, nothing held back for long.

import CheckpointStore
import FaultHarness
import Foundation
import Media
import StoreFormat
import StoreTesting
import Testing
import Threading
import Units

/// Small slices, and time that passes only when the scrub waits.
private func options(_ clock: ManualClock, slice: ByteCount = .kibibytes(8), deep: Bool = false) -> ScrubOptions {
    var options = ScrubOptions(bytesPerSecond: .mebibytes(1), checksPages: deep)
    options.clock = clock.clock
    options.sliceBytes = slice
    return options
}

/// Whether no process has a generation registered: FORMAT.md 9.
private func isUnregistered(_ other: any Medium) throws -> Bool {
    try other.locks.isFree(LockRange(start: 1 << 40, count: 1 << 40), for: .exclusive)
}

@Suite struct ScrubTests {
    @Test func `in slices of any size each block is read once, and nothing is registered between them`() async throws {
        try await onPlainThread {
            let history = try History(seed: 31, checkpoints: 12)
            let store = try history.open()
            defer { store.close() }
            let whole = try store.verify()
            let other = try history.medium(.readWrite)
            defer { other.close() }
            for slice in [ByteCount(1), .kibibytes(16), .mebibytes(100)] {
                let clock = ManualClock()
                var looks = 0
                let pass = try Scrubber(store, options: options(clock, slice: slice)).pass {
                    looks += 1
                    return (try? isUnregistered(other)) != true
                }
                #expect(pass.report.isSound && pass.vanishedCheckpoints == 0)
                #expect(pass.report.blocks == whole.blocks && pass.report.bytes == whole.bytes)
                #expect(pass.report.checkpointCount == 12)
                #expect(pass.slices == looks + 1)
                #expect(slice == ByteCount(1) ? pass.slices > 30 : pass.slices >= 13, "\(pass.slices)")
                // A MiB a second.
                #expect(clock.slept + 60_000 >= whole.bytes.rawValue * 9 / 10)
            }
        }
    }

    @Test func `beside a writer that saves, deletes and uses space again, nothing seems damaged`() async throws {
        try await onPlainThread {
            let seed: UInt64 = 77
            let history = try History(seed: seed, checkpoints: 10, size: .mebibytes(12))
            let writing = try history.open(.readWrite)
            let end = Lock(false)
            let failure = Lock<String?>(nil)
            let handed = Handed(history)
            let writer = try #require(
                PlainThread {
                    var random = SeededGenerator(seed: seed)
                    var number = 0
                    while !end.withLock({ $0 }) {
                        do {
                            if handed.value.order.count > 12 || random.chance(1, in: 3), handed.value.order.count > 4 {
                                let name = handed.value.order[random.below(handed.value.order.count)]
                                try handed.value.delete([name], from: writing)
                            } else {
                                number += 1
                                try handed.value.add("w\(number)", to: writing)
                            }
                        } catch let error as StoreError where error.code == .noSpace {
                            // Freed space may be held by a slice for a moment.
                        } catch { failure.withLock { $0 = "\(error)" } }
                    }
                })
            var (passes, vanished) = (0, 0)
            let start = monotonicMicroseconds()
            while monotonicMicroseconds() - start < 8_000_000 || passes < 3 {
                let store = try history.open()
                defer { store.close() }
                let pass = try Scrubber(store, options: options(ManualClock(), deep: passes % 2 == 1)).pass()
                passes += 1
                vanished += pass.vanishedCheckpoints
                guard pass.report.isSound else {
                    end.withLock { $0 = true }
                    writer.join()
                    throw Mismatch("seed \(seed), pass \(passes): \(pass.report.damages)")
                }
            }
            end.withLock { $0 = true }
            writer.join()
            #expect(failure.withLock { $0 } == nil)
            #expect(vanished > 0, "no checkpoint was deleted under a scrub: the test shows nothing")
            try writing.requireEqual(history.model)
            writing.close()
        }
    }

    @Test func `damage of a checkpoint that is deleted meanwhile is forgotten, other damage is not`() async throws {
        try await onPlainThread {
            for isDeleted in [true, false] {
                let history = try History(seed: 8, checkpoints: 1)
                let writing = try history.open(.readWrite)
                try history.add("b", to: writing)
                let run = try #require(try history.blocks().first { $0.header.kind == .run })
                try history.zero(run.range.lowerBound + 100..<run.range.lowerBound + 110)
                var looks = 0
                let pass = try Scrubber(writing, options: options(ManualClock(), slice: ByteCount(1))).pass {
                    looks += 1
                    if looks == 4, isDeleted { _ = try? writing.delete(history.order) }
                    return false
                }
                #expect(pass.report.isSound == isDeleted)
                #expect(pass.vanishedCheckpoints == (isDeleted ? 2 : 0))
                writing.close()
            }
        }
    }
}
