// Random mixes of all operations against the model.

import CheckpointStore
import FaultHarness
import Foundation
import Media
import StoreFormat
import StoreTesting
import Testing
import Units

/// Random operations on one store and on its model. Replayed by its seed.
struct RandomMix {
    var random: SeededGenerator
    var model: [String: ModelCheckpoint] = [:]
    var serial = 0
    let parallelism: Int
    let maximumPages: Int

    init(seed: UInt64, parallelism: Int, maximumPages: Int) {
        random = SeededGenerator(seed: seed)
        self.parallelism = parallelism
        self.maximumPages = maximumPages
    }

    private mutating func below(_ limit: Int) -> Int { Int(random.next() % UInt64(limit)) }

    /// One random operation. A full store is answered by deleting.
    mutating func step(_ store: CheckpointStore) throws {
        do {
            switch below(10) {
            case 0 where model.count > 2, 1 where model.count > 2: try delete(store)
            default: try save(store)
            }
        } catch let error as StoreError where error.code == .noSpace {
            guard !model.isEmpty else { throw error }
            try delete(store)
        }
    }

    mutating func delete(_ store: CheckpointStore) throws {
        let names = model.keys.sorted()
        let doomed = Array(names.shuffled(using: &random).prefix(1 + below(2)))
        let result = try store.delete(doomed)
        if let obstacle = result.obstacle { throw obstacle }
        for name in doomed { model[name] = nil }
    }

    mutating func save(_ store: CheckpointStore) throws {
        serial += 1
        let name = "c\(serial)"
        let parent = model.isEmpty || below(4) == 0 ? nil : model.keys.sorted()[below(model.count)]
        let writer = try store.begin(name, parent: parent, options: WriterOptions(parallelism: parallelism))
        var regions: ModelCheckpoint = [:]
        for region in ["ram", "disk", "state"] where below(3) != 0 || region == "ram" {
            let old = parent.flatMap { model[$0]?[region] } ?? []
            regions[region] = try put(region, old, writer)
        }
        if below(10) == 0 {
            writer.abort()
            return
        }
        try writer.commit()
        model[name] = regions
    }

    private mutating func put(_ region: String, _ old: [UInt8], _ writer: CheckpointWriter) throws -> [UInt8] {
        var bytes = old
        let kind: RegionKind = region == "ram" ? .memory : region == "disk" ? .disk : .state
        if old.isEmpty || below(5) == 0 { bytes = resized(old, kind) }
        let handle = try writer.addRegion(region, kind: kind, byteLength: ByteCount(bytes.count))
        let pages = (bytes.count + pageSize - 1) / pageSize
        guard pages > 0 else { return bytes }
        switch below(4) {
        case 0:
            // All of it, from memory; the store must find what has changed.
            for _ in 0..<below(20) { change(page: below(pages), in: &bytes) }
            try handle.write(bytes, isStable: below(2) == 0)
        case 1:
            let low = below(pages)
            let high = low + 1 + below(pages - low)
            for page in low..<high { change(page: page, in: &bytes) }
            let end = min(high * pageSize, bytes.count)
            try handle.write(Array(bytes[low * pageSize..<end]), at: PageIndex(low))
        case 2:
            let whole = bytes.count / pageSize
            for _ in 0..<below(200) where whole > 0 {
                let page = below(whole)
                change(page: page, in: &bytes)
                try handle.put(page: PageIndex(page), Array(bytes[page * pageSize..<(page + 1) * pageSize]))
            }
        default:
            let low = below(pages)
            let high = low + below(pages - low + 1)
            try handle.putZeros(PageIndex(low)..<PageIndex(high))
            let end = min(high * pageSize, bytes.count)
            if low * pageSize < end { bytes.replaceSubrange(low * pageSize..<end, with: repeatElement(0, count: end - low * pageSize)) }
        }
        return bytes
    }

    private mutating func resized(_ old: [UInt8], _ kind: RegionKind) -> [UInt8] {
        let pages = below(8) == 0 ? 0 : 1 + below(maximumPages)
        let length = pages * pageSize - (kind == .memory || pages == 0 ? 0 : below(pageSize))
        return Array((old + [UInt8](repeating: 0, count: max(0, length - old.count))).prefix(length))
    }

    private mutating func change(page: Int, in bytes: inout [UInt8]) {
        let content = makePage(&random)
        let start = page * pageSize
        let end = min(start + pageSize, bytes.count)
        bytes.replaceSubrange(start..<end, with: content[0..<end - start])
    }
}

@Suite struct RandomMixTests {
    @Test func `random saves and deletions on a simulated device read back as the model says`() async throws {
        try await onPlainThread {
            for seed in UInt64(1)...12 {
                let device = SimulatedDevice(size: .mebibytes(24))
                do { try Self.run(seed: seed, steps: 30, device: device) } catch {
                    throw Mismatch("seed \(seed): \(error)")
                }
            }
        }
    }

    private static func run(seed: UInt64, steps: Int, device: SimulatedDevice) throws {
        let environment = testEnvironment(seed: seed)
        var store = try CheckpointStore.create(
            on: FaultMedium(device), options: CreateOptions(segmentSize: .kibibytes(128)), environment: environment)
        var mix = RandomMix(seed: seed, parallelism: 1, maximumPages: 1200)
        for step in 0..<steps {
            do {
                try mix.step(store)
                if step % 5 == 4 {
                    store.close()
                    store = try CheckpointStore.open(FaultMedium(device), environment: environment)
                }
                if step % 3 == 2 { try store.requireEqual(mix.model) }
            } catch { throw Mismatch("step \(step): \(error)") }
        }
        try store.requireEqual(mix.model)
        store.close()
    }

    @Test func `random saves and deletions by two threads in memory read back as the model says`() async throws {
        try await onPlainThread {
            for seed in UInt64(100)...103 {
                let medium = try RAMMedium.anonymous(size: .mebibytes(64))
                let store = try CheckpointStore.create(on: medium, environment: testEnvironment(seed: seed))
                var mix = RandomMix(seed: seed, parallelism: 2, maximumPages: 3000)
                do {
                    for _ in 0..<25 { try mix.step(store) }
                    try store.requireEqual(mix.model, parallelism: 2)
                } catch { throw Mismatch("seed \(seed): \(error)") }
                store.close()
            }
        }
    }

    @Test func `every operation, in random order on a simulated device, leaves what the model says`() async throws {
        let seed = testSeed()
        let counts = try await onPlainThread {
            var counts: [MixOperation: Int] = [:]
            for seed in seed..<seed + (isOptimised ? 10 : 3) {
                do { try Self.runAll(seed: seed, steps: isOptimised ? 120 : 60, &counts) } catch {
                    throw Mismatch("CKSTORE_TEST_SEED=\(seed): \(error)")
                }
            }
            return counts
        }
        print("random mixes from seed \(seed): \(counts.map { "\($0.key.rawValue) \($0.value)" }.sorted().joined(separator: ", "))")
        // A mix that never comes to an operation says nothing about it.
        if isOptimised { #expect(MixOperation.allCases.allSatisfy { counts[$0, default: 0] > 0 }) }
    }

    private static func runAll(seed: UInt64, steps: Int, _ counts: inout [MixOperation: Int]) throws {
        let device = SimulatedDevice(size: .mebibytes(24))
        let store = try CheckpointStore.create(
            on: FaultMedium(device), options: CreateOptions(segmentSize: .kibibytes(128)), environment: testEnvironment(seed: seed))
        defer { store.close() }
        // Another handle does every third operation, as another process would.
        let other = try CheckpointStore.open(FaultMedium(device), environment: testEnvironment(seed: ~seed))
        defer { other.close() }
        var mix = try StoreMix(seed: seed, maximumPages: 700)
        for step in 0..<steps {
            do {
                try mix.step(step % 3 == 1 ? other : store)
                if step % 10 == 9 { try mix.requireEqual(store) }
            } catch { throw Mismatch("step \(step): \(error)") }
        }
        mix.letGo()
        try mix.requireEqual(try CheckpointStore.open(FaultMedium(device), environment: testEnvironment(seed: 1)))
        counts.merge(mix.counts, uniquingKeysWith: +)
    }

    @Test func `every operation, in random order with two threads in memory, leaves what the model says`() async throws {
        let seed = testSeed()
        try await onPlainThread {
            for seed in seed..<seed + (isOptimised ? 5 : 2) {
                let store = try CheckpointStore.create(
                    on: try RAMMedium.anonymous(size: .mebibytes(64)), environment: testEnvironment(seed: seed))
                defer { store.close() }
                var mix = try StoreMix(seed: seed, parallelism: 2, maximumPages: 2000)
                do {
                    for _ in 0..<(isOptimised ? 80 : 40) { try mix.step(store) }
                    try mix.requireEqual(store)
                    mix.letGo()
                } catch { throw Mismatch("CKSTORE_TEST_SEED=\(seed): \(error)") }
            }
        }
    }
}

/// The seed of a run: its own, or the one to replay.
private func testSeed() -> UInt64 {
    ProcessInfo.processInfo.environment["CKSTORE_TEST_SEED"].flatMap { UInt64($0) } ?? .random(in: 0...UInt64(UInt32.max))
}

private let isOptimised: Bool = {
    #if DEBUG
        return false
    #else
        return true
    #endif
}()
