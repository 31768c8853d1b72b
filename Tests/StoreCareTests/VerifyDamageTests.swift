// Verify names just what is lost: no more, no less, and each damaged place once.

import CheckpointStore
import FaultHarness
import Foundation
import Media
import StoreFormat
import StoreTesting
import Testing
import Threading
import Units

/// A page of a checkpoint; page nil: the checkpoint as a whole.
private struct Piece: Hashable, Comparable, CustomStringConvertible {
    var checkpoint: String
    var region = ""
    var page: Int?
    var description: String { "\(checkpoint)/\(region)/\(page.map { "\($0)" } ?? "all")" }
    static func < (a: Piece, b: Piece) -> Bool { a.description < b.description }
}

/// What `body` returns; nil when it finds damage.
private func damaged<T>(_ body: () throws -> T) throws -> T? {
    do { return try body() } catch {
        guard let code = (error as? StoreError)?.code, code == .corrupt || code == .notFound else { throw error }
        return nil
    }
}

/// What reading fails for, page by page; throws on wrong bytes.
private func unreadable(_ store: CheckpointStore, _ model: [String: ModelCheckpoint]) throws -> Set<Piece> {
    var lost = Set<Piece>()
    let snapshot = try store.snapshot()
    var page = [UInt8](repeating: 0, count: pageSize)
    for (name, regions) in model {
        guard let reader = try damaged({ try snapshot.reader(named: name) }) else {
            lost.insert(Piece(checkpoint: name))
            continue
        }
        for (regionName, expected) in regions {
            let region = try reader.region(regionName)
            // Whole where that works: page by page is slow.
            if let bytes = try? region.bytes() {
                guard bytes == expected else { throw Mismatch("\(name)/\(regionName) reads as something else") }
                continue
            }
            for number in 0..<region.info.pageCount.int {
                let read: Void? = try damaged { try unsafe page.withUnsafeMutableBytes { try unsafe region.read(page: PageIndex(number), into: $0) } }
                guard read != nil else {
                    lost.insert(Piece(checkpoint: name, region: regionName, page: number))
                    continue
                }
                let wanted = expected[number * pageSize..<min((number + 1) * pageSize, expected.count)]
                guard page.starts(with: wanted) else { throw Mismatch("\(name)/\(regionName) page \(number) reads as something else") }
            }
        }
    }
    return lost
}

private func named(_ report: VerifyReport) -> Set<Piece> {
    var lost = Set<Piece>()
    for loss in report.damages.flatMap(\.losses) {
        for checkpoint in loss.checkpoints {
            guard let region = loss.region else {
                lost.insert(Piece(checkpoint: checkpoint.name))
                continue
            }
            for range in loss.pages.ranges {
                for page in range.lowerBound.int..<range.upperBound.int { lost.insert(Piece(checkpoint: checkpoint.name, region: region, page: page)) }
            }
        }
    }
    return lost
}

@Suite struct VerifyDamageTests {
    @Test func `a flip in any block takes away exactly the pages that verify names`() async throws {
        try await onPlainThread {
            let seed: UInt64 = 7
            let history = try History(seed: seed)
            var (hurt, storeWide, harmless) = (0, 0, 0)
            for (number, block) in try history.blocks().enumerated() {
                let all = try history.bytes()
                let place = block.range.lowerBound + 16 + number * 37 % (block.range.count - 16)
                try history.overwrite(at: place, [all[place] ^ 0x20])
                defer { try? history.overwrite(at: place, [all[place]]) }
                let store = try history.open()
                defer { store.close() }
                let report = try store.verify(options: VerifyOptions(parallelism: 1 + number % 3))
                let (said, lost) = (named(report), try unreadable(store, history.model))
                guard said == lost else {
                    throw Mismatch(
                        "seed \(seed), \(block.header.kind) at \(block.range): verify names \(said.subtracting(lost).sorted().prefix(5)) too many, "
                            + "leaves out \(lost.subtracting(said).sorted().prefix(5)); \(report.damages)")
                }
                if !lost.isEmpty { hurt += 1 } else if report.isSound { harmless += 1 } else { storeWide += 1 }
                let deep = try store.verify(options: VerifyOptions(checksPages: true, parallelism: 2))
                guard named(deep) == lost else { throw Mismatch("seed \(seed), \(block.header.kind) at \(block.range): --deep names other pages") }
            }
            // Commit records and catalog nodes of the past hurt nobody; segment headers and table nodes the store as a whole.
            #expect(hurt > 40 && storeWide > 3 && harmless > 3, "\(hurt) \(storeWide) \(harmless)")
        }
    }

    @Test func `a bad run under many checkpoints is one damage`() async throws {
        try await onPlainThread {
            let history = try History(seed: 3, checkpoints: 1, size: .mebibytes(32))
            let store = try history.open(.readWrite)
            for number in 1...300 {
                let writer = try store.begin("d\(number)", parent: number == 1 ? "c0" : "d\(number - 1)", options: WriterOptions(parallelism: 1))
                try writer.inheritRegion("ram")
                let region = try writer.addRegion("ram", kind: .memory, byteLength: ByteCount(History.ramPages * pageSize))
                try region.put(page: PageIndex(UInt64(1399)), [UInt8](repeating: UInt8(number % 255 + 1), count: pageSize))
                try writer.commit()
            }
            store.close()
            let first = try #require(try history.blocks().first { $0.header.kind == .run && $0.range.count > 4096 })
            try history.zero(first.range.lowerBound + 200..<first.range.lowerBound + 210)
            let again = try history.open()
            defer { again.close() }
            let report = try again.verify()
            #expect(report.damages.count == 1)
            let damage = try #require(report.damages.first)
            #expect(damage.checkpointCount == 301)
            #expect(damage.losses.count <= 2 && damage.block?.kind == .run)
            #expect(damage.description.contains("and 298 more"), "\(damage)")
            let rest = try #require(report.damagedRegions.first)
            #expect(rest.pageCount.int == History.ramPages && rest.lost.count.int <= 16)
            #expect(report.lostPlaces.count >= 301)
        }
    }

    @Test func `threads find what one thread finds, and read each block once`() async throws {
        try await onPlainThread {
            for seed in UInt64(20)..<24 {
                let history = try History(seed: seed, checkpoints: 20)
                var random = SeededGenerator(seed: seed)
                for damage in 0..<4 {
                    let store = try history.open()
                    let one = try store.verify(options: VerifyOptions(parallelism: 1))
                    for threads in [2, 3, 8] {
                        let many = try store.verify(options: VerifyOptions(parallelism: threads))
                        guard many.blocks == one.blocks, many.bytes == one.bytes, named(many) == named(one),
                            many.checkpointCount == one.checkpointCount, many.damages.count == one.damages.count
                        else { throw Mismatch("seed \(seed), \(damage) damages, \(threads) threads: \(many), not \(one)") }
                    }
                    store.close()
                    let blocks = try history.blocks()
                    let block = blocks[random.below(blocks.count)].range
                    try history.zero(block.lowerBound + 20..<block.lowerBound + 30)
                }
            }
        }
    }
}

/// A clock that goes on when somebody sleeps by it.
final class ManualClock: Sendable {
    private let time = Lock<(now: UInt64, slept: UInt64)>((1_000_000, 0))
    var slept: UInt64 { time.withLock { $0.slept } }
    func advance(_ microseconds: UInt64) { time.withLock { $0.now += microseconds } }
    var clock: RateClock {
        RateClock(
            nowMicroseconds: { self.time.withLock { $0.now } },
            sleepMicroseconds: { wait in
                self.time.withLock { time in
                    time.now += wait
                    time.slept += wait
                }
            })
    }
}

@Suite struct RateTests {
    @Test func `the bucket lets through what the rate allows, and no more than a burst at once`() {
        let clock = ManualClock()
        let limit = RateLimit(bytesPerSecond: ByteCount(1_000_000), clock: clock.clock)
        for _ in 0..<1000 { limit.take(ByteCount(4321)) }
        // 4,321,000 bytes at 1 MB/s, but for a burst.
        #expect((4_270_000...4_322_000).contains(clock.slept), "\(clock.slept)")
        // A long pause saves up a burst and no more.
        clock.advance(60_000_000)
        let before = clock.slept
        limit.take(ByteCount(40_000))
        #expect(clock.slept == before)
        limit.take(ByteCount(1_000_000))
        #expect((980_000...1_000_000).contains(clock.slept - before), "\(clock.slept - before)")
    }

    @Test func `small takes don't add up to rounding errors`() {
        let clock = ManualClock()
        let limit = RateLimit(bytesPerSecond: .gibibytes(10), clock: clock.clock)
        for _ in 0..<100_000 { limit.take(ByteCount(100)) }
        #expect(clock.slept <= 1000, "\(clock.slept)")
    }

    @Test func `verify pays for every byte that it reads`() async throws {
        try await onPlainThread {
            let history = try History(seed: 5)
            let store = try history.open()
            defer { store.close() }
            let free = try store.verify()
            for threads in [1, 4] {
                let clock = ManualClock()
                var options = VerifyOptions(parallelism: threads, bytesPerSecond: ByteCount(100_000))
                options.clock = clock.clock
                let report = try store.verify(options: options)
                #expect(report.bytes == free.bytes)
                // Slots, catalog and table are read without being asked for.
                let due = free.bytes.rawValue * 10
                #expect(clock.slept >= due * 8 / 10 && clock.slept <= due * 11 / 10, "\(threads) threads slept \(clock.slept) us, due \(due)")
            }
        }
    }

    @Test func `segment headers that can't be read are damage, and the rest is verified`() async throws {
        try await onPlainThread {
            let device = SimulatedDevice(size: .mebibytes(8))
            let store = try CheckpointStore.create(
                on: FaultMedium(device), options: CreateOptions(segmentSize: .kibibytes(128)), environment: testEnvironment(seed: 5))
            defer { store.close() }
            let writer = try store.begin("a", options: WriterOptions(parallelism: 1))
            var random = SeededGenerator(seed: 5)
            try writer.addRegion("ram", kind: .memory, byteLength: .kibibytes(512)).write((0..<128).flatMap { _ in makePage(&random) })
            try writer.commit()
            let whole = try store.verify()
            #expect(whole.isSound)
            let headers = Set((0..<UInt64(store.geometry.segmentCount)).map { store.geometry.offset(of: SegmentIndex($0)) })
            device.faults.add(
                FaultRule(.read, .from(1), .fail(.ioFailed, errno: EIO)) { call in
                    call.length == ByteCount(SegmentHeader.encodedLength) && call.offset.map(headers.contains) == true
                })
            let report = try store.verify()
            #expect(report.damages.count >= 3 && report.damages.allSatisfy { $0.reason.contains("header of segment") })
            #expect(report.blocks == whole.blocks && report.bytes == whole.bytes)
            let pass = try Scrubber(store).pass()
            #expect(pass.report.damages.count == report.damages.count && pass.comparesCounts)
        }
    }
}
