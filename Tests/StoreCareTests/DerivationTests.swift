// Blocks of the index that are destroyed come back from what stands around them, byte for byte, or stay damaged and are named.

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

/// A store on a device, what it must read as, and a replica of its checkpoints.
private final class Scene: Sendable {
    let name: String
    let device: SimulatedDevice
    /// Nil: too much to keep; verifying has to do.
    let model: [String: ModelCheckpoint]?
    let replica: CheckpointStore
    let geometry: Geometry

    /// - Parameter make: fills an empty store, and returns what is in it.
    init(
        _ name: String, seed: UInt64, size: ByteCount, _ make: (CheckpointStore, inout SeededGenerator) throws -> [String: ModelCheckpoint]?
    ) throws {
        print("derivation: \(name), seed \(seed)")
        self.name = name
        device = SimulatedDevice(size: size)
        let store = try CheckpointStore.create(
            on: FaultMedium(device), options: CreateOptions(segmentSize: .kibibytes(128)), environment: testEnvironment(seed: seed))
        defer { store.close() }
        geometry = store.geometry
        var random = SeededGenerator(seed: seed &+ 1000)
        model = try make(store, &random)
        replica = try CheckpointStore.create(
            on: try RAMMedium.anonymous(size: .mebibytes(128)), options: CreateOptions(segmentSize: .kibibytes(256)),
            environment: testEnvironment(seed: seed &+ 2000))
        _ = try store.copyCheckpoints(to: replica, options: SyncOptions(parallelism: 1))
        device.forgetLog()
        try requireSound(store)
    }

    deinit { replica.close() }

    /// Throws unless the store is as the model says.
    func requireSound(_ store: CheckpointStore) throws {
        if let model { return try store.requireEqual(model) }
        let report = try store.verify(options: VerifyOptions(checksPages: true, parallelism: 1))
        guard report.isSound else { throw Mismatch("\(name): \(report.damages)") }
    }

    /// Every block of the index that can be found, of deleted checkpoints too.
    func blocks() -> [(range: Range<Int>, header: BlockHeader)] {
        let all = device.bytes(at: .zero, count: device.size.int)
        var found: [(Range<Int>, BlockHeader)] = []
        var position = geometry.dataOffset.int
        while position < all.count {
            let piece = Array(all[position..<min(position + (72 << 10), all.count)])
            guard let header = unsafe try? Block.peek(piece.span.bytes) else {
                position += 64
                continue
            }
            let isOfIndex = [BlockKind.leaf, .patchLeaf, .inner, .checkpointRecord].contains(header.kind)
            if isOfIndex { found.append((position..<position + Int(header.storedLength), header)) }
            position += (Int(header.storedLength) + 63) / 64 * 64
        }
        return found
    }

    func open(_ device: SimulatedDevice, defects: EngineDefects = []) throws -> CheckpointStore {
        var environment = testEnvironment(seed: 77)
        environment.defects = defects
        return try CheckpointStore.open(FaultMedium(device), environment: environment)
    }

    func destroy(_ range: Range<Int>, on device: SimulatedDevice, byFlip: Bool) {
        if byFlip { return device.flipBit(3, at: MediumOffset(UInt64(range.lowerBound + 20 + range.count / 3))) }
        device.overwrite(at: MediumOffset(UInt64(range.lowerBound)), with: [UInt8](repeating: 0, count: range.count))
    }
}

/// How many of the blocks that were destroyed came back.
private struct Shares: CustomStringConvertible {
    var back: [BlockKind: Int] = [:]
    var lost: [BlockKind: Int] = [:]

    mutating func add(_ kind: BlockKind, _ isBack: Bool) { if isBack { back[kind, default: 0] += 1 } else { lost[kind, default: 0] += 1 } }
    func count(_ kind: BlockKind) -> Int { (back[kind] ?? 0) + (lost[kind] ?? 0) }
    /// In percent; 100 of none.
    func percent(_ kind: BlockKind) -> Int { count(kind) == 0 ? 100 : (back[kind] ?? 0) * 100 / count(kind) }
    var description: String {
        [BlockKind.inner, .leaf, .patchLeaf, .checkpointRecord].map { "\($0): \(back[$0] ?? 0) of \(count($0))" }.joined(separator: ", ")
    }
}

/// Destroys each block of the index in turn, on a copy of the store each time, and repairs that.
private func destroyEach(_ scene: Scene, withReplica: Bool, ways: [Bool]? = nil) throws -> Shares {
    var shares = Shares()
    for (number, block) in scene.blocks().enumerated() {
        for isFlip in ways ?? [number % 2 == 0] {
            let device = scene.device.fork()
            scene.destroy(block.range, on: device, byFlip: isFlip)
            let store = try scene.open(device)
            defer { store.close() }
            let report = try store.repair(
                from: withReplica ? scene.replica : nil, options: RepairOptions(parallelism: 1, mostGuesses: 1024))
            // Nothing reached it.
            if report.found.isSound { continue }
            let place = MediumOffset(UInt64(block.range.lowerBound))
            let isBack = device.bytes(at: place, count: block.range.count) == scene.device.bytes(at: place, count: block.range.count)
            let isCounted = report.derived.count == (isBack ? 1 : 0) && report.remaining.count == (isBack ? 0 : 1)
            guard isBack == report.isWhole, isCounted, report.obstacle == nil else {
                throw Mismatch("\(scene.name), \(block.header.kind) at \(block.range): \(report)")
            }
            if isBack, number % 16 == 0 { try scene.requireSound(store) }
            shares.add(block.header.kind, isBack)
        }
    }
    print("\(scene.name), \(withReplica ? "with" : "without") a replica: \(shares)")
    return shares
}

// MARK: stores

/// Saves random pages of a region over any checkpoint before.
private func saveBranches(
    _ store: CheckpointStore, _ random: inout SeededGenerator, checkpoints: Int, pages: Int, length: Int, stride: Int = 1,
    _ model: inout [String: ModelCheckpoint]
) throws {
    var order = model.keys.sorted()
    for _ in 0..<checkpoints {
        let name = "b\(String(format: "%03d", order.count))"
        let parent = order.isEmpty ? nil : order[order.count - 1 - random.below(min(3, order.count))]
        var ram = parent.flatMap { model[$0]?["ram"] } ?? [UInt8](repeating: 0, count: length * pageSize)
        let writer = try store.begin(name, parent: parent, options: WriterOptions(parallelism: 1))
        let region = try writer.addRegion("ram", kind: .memory, byteLength: ByteCount(ram.count))
        for _ in 0..<(parent == nil ? pages * 3 : 1 + random.below(pages)) {
            let (page, bytes) = (random.below(length / stride) * stride, makePage(&random))
            ram.replaceSubrange(page * pageSize..<(page + 1) * pageSize, with: bytes)
            try region.put(page: PageIndex(page), bytes)
        }
        try writer.commit()
        model[name] = ["ram": ram]
        order.append(name)
    }
}

private func branches(seed: UInt64) throws -> Scene {
    try Scene("branches and patches", seed: seed, size: .mebibytes(24)) { store, random in
        var model: [String: ModelCheckpoint] = [:]
        try saveBranches(store, &random, checkpoints: 14, pages: 30, length: 1400, &model)
        return model
    }
}

/// One span that is changed so often that full leaves come and pages are stored anew.
private func repacked(seed: UInt64) throws -> Scene {
    try Scene("re-packed saves", seed: seed, size: .mebibytes(32)) { store, random in
        var model: [String: ModelCheckpoint] = [:]
        try saveBranches(store, &random, checkpoints: 14, pages: 110, length: 400, &model)
        return model
    }
}

/// A region so long that its tree has two levels of nodes.
private func deep(seed: UInt64) throws -> Scene {
    try Scene("two levels", seed: seed, size: .mebibytes(16)) { store, random in
        let spans = 300
        var parent: String?
        for number in 0..<8 {
            let writer = try store.begin("d\(number)", parent: parent, options: WriterOptions(parallelism: 1))
            let region = try writer.addRegion("ram", kind: .memory, byteLength: ByteCount(spans * pagesPerSpan * pageSize))
            for _ in 0..<(number == 0 ? 60 : 6) {
                let page = PageIndex(random.below(spans) * pagesPerSpan + random.below(3))
                try region.put(page: page, [UInt8](repeating: UInt8(1 + random.below(255)), count: pageSize))
            }
            try writer.commit()
            // Too much to keep and to compare: verifying does it.
            parent = number == 4 ? "d2" : "d\(number)"
        }
        return nil
    }
}

/// Everything that a store can go through: deletions, compaction, groups, checkpoints that were received.
private func mix(seed: UInt64, steps: Int) throws -> Scene {
    try Scene("everything mixed", seed: seed, size: .mebibytes(24)) { store, _ in
        var mix = try StoreMix(seed: seed, maximumPages: 900)
        for _ in 0..<steps { try mix.step(store) }
        mix.letGo()
        return mix.model
    }
}

@Suite struct DerivationTests {
    @Test(arguments: [UInt64(1), 2]) func `every block of the index that is destroyed comes back or is named`(seed: UInt64) async throws {
        try await onPlainThread {
            let scene = try branches(seed: seed)
            let alone = try destroyEach(scene, withReplica: false, ways: [true, false])
            let helped = try destroyEach(scene, withReplica: true)
            #expect(alone.percent(.inner) == 100 && alone.percent(.leaf) >= 95 && alone.percent(.patchLeaf) >= 95)
            #expect(helped.lost.isEmpty, "a replica knows which pages became zero, and what records say")
            #expect(alone.count(.patchLeaf) > 10 && alone.count(.leaf) > 2 && alone.count(.inner) > 10)
        }
    }

    @Test func `leaves of re-packed saves come back`() async throws {
        try await onPlainThread {
            let scene = try repacked(seed: 3)
            let alone = try destroyEach(scene, withReplica: false)
            let helped = try destroyEach(scene, withReplica: true)
            // Too many pages become zero here and there to be guessed.
            #expect(alone.count(.leaf) > 5 && !alone.back.isEmpty && helped.lost.isEmpty)
        }
    }

    @Test func `nodes of a tree with two levels come back`() async throws {
        try await onPlainThread {
            let scene = try deep(seed: 4)
            let alone = try destroyEach(scene, withReplica: false)
            #expect(alone.percent(.inner) == 100 && alone.count(.inner) > 20 && alone.percent(.leaf) == 100 && alone.percent(.patchLeaf) == 100)
        }
    }

    @Test(arguments: [UInt64(5), 6]) func `blocks come back after deletions, compaction and receiving`(seed: UInt64) async throws {
        try await onPlainThread {
            let scene = try mix(seed: seed, steps: 45)
            let alone = try destroyEach(scene, withReplica: false)
            let helped = try destroyEach(scene, withReplica: true)
            #expect(alone.percent(.inner) == 100 && alone.percent(.leaf) >= 80 && alone.percent(.patchLeaf) >= 80)
            #expect(helped.percent(.inner) == 100 && helped.percent(.leaf) >= 95 && helped.percent(.patchLeaf) >= 95)
            #expect(helped.percent(.checkpointRecord) >= 85)
        }
    }

    @Test func `many blocks that are destroyed at once come back one by one`() async throws {
        try await onPlainThread {
            let scene = try branches(seed: 7)
            let nodes = scene.blocks().filter { $0.header.kind == .inner }
            let device = scene.device.fork()
            for node in nodes { scene.destroy(node.range, on: device, byFlip: false) }
            let store = try scene.open(device)
            defer { store.close() }
            let report = try store.repair(options: RepairOptions(parallelism: 1))
            #expect(report.isWhole && report.derived.count > 10, "\(report.remaining)")
            try scene.requireSound(store)
        }
    }

    @Test func `a dry run says what could be derived and writes nothing`() async throws {
        try await onPlainThread {
            let scene = try branches(seed: 8)
            let node = try #require(scene.blocks().last { $0.header.kind == .inner })
            let device = scene.device.fork()
            scene.destroy(node.range, on: device, byFlip: true)
            let before = device.bytes(at: .zero, count: device.size.int)
            let store = try scene.open(device)
            defer { store.close() }
            let report = try store.repair(options: RepairOptions(parallelism: 1, isDryRun: true))
            #expect(report.derived.count == 1 && report.remaining.count == 1 && report.remaining[0].remedy.contains("can be derived"))
            #expect(device.bytes(at: .zero, count: device.size.int) == before)
        }
    }

    @Test func `where the medium takes nothing any more, the block goes elsewhere and is led to`() async throws {
        try await onPlainThread {
            let scene = try branches(seed: 9)
            var forwarded = 0
            for (number, block) in scene.blocks().enumerated() where block.header.kind != .checkpointRecord && number % 5 == 0 {
                let device = scene.device.fork()
                scene.destroy(block.range, on: device, byFlip: false)
                device.faults.add(FaultRule(.write, .from(1), .lose) { call in
                    guard let offset = call.offset, let length = call.length else { return false }
                    return offset.int < block.range.upperBound && offset.int + length.int > block.range.lowerBound
                })
                let store = try scene.open(device)
                defer { store.close() }
                let report = try store.repair(options: RepairOptions(parallelism: 1))
                guard let one = report.derived.first else { continue }
                guard one.isForwarded, report.isWhole else { throw Mismatch("\(block.header.kind) at \(block.range): \(report)") }
                forwarded += 1
                try scene.requireSound(store)
            }
            #expect(forwarded > 5)
        }
    }

    /// Whether what a repair wrote over damaged blocks was what had been there, in every case.
    private func writesOnlyWhatWasThere(_ scene: Scene, _ defects: EngineDefects) throws -> Bool {
        for (number, block) in scene.blocks().enumerated() {
            let device = scene.device.fork()
            scene.destroy(block.range, on: device, byFlip: number % 2 == 0)
            let place = MediumOffset(UInt64(block.range.lowerBound))
            let damaged = device.bytes(at: place, count: block.range.count)
            let store = try scene.open(device, defects: defects)
            defer { store.close() }
            _ = try store.repair(from: scene.replica, options: RepairOptions(parallelism: 1, mostGuesses: 1024))
            let after = device.bytes(at: place, count: block.range.count)
            guard after == damaged || after == scene.device.bytes(at: place, count: block.range.count) else { return false }
        }
        return true
    }

    @Test func `nothing is written that was not there before, and a repair that does not compare would be noticed`() async throws {
        try await onPlainThread {
            let scene = try branches(seed: 10)
            #expect(try writesOnlyWhatWasThere(scene, []))
            #expect(try !writesOnlyWhatWasThere(scene, .derivesUnchecked))
        }
    }

    @Test func `a wrong replica makes nothing wrong`() async throws {
        try await onPlainThread {
            let scene = try branches(seed: 11)
            // The same ids, other pages.
            let wrong = try Scene("another content", seed: 11, size: .mebibytes(24)) { store, random in
                random = SeededGenerator(seed: 99)
                var model: [String: ModelCheckpoint] = [:]
                try saveBranches(store, &random, checkpoints: 14, pages: 30, length: 1400, &model)
                return model
            }
            let other = try scene.open(wrong.device)
            defer { other.close() }
            for (number, block) in scene.blocks().enumerated() where number % 4 == 0 {
                let device = scene.device.fork()
                scene.destroy(block.range, on: device, byFlip: false)
                let store = try scene.open(device)
                defer { store.close() }
                let report = try store.repair(from: other, options: RepairOptions(parallelism: 1, mostGuesses: 1024))
                if report.isWhole { try scene.requireSound(store) }
            }
        }
    }

    @Test func `power may go at any write or flush while blocks are derived`() async throws {
        let report = try await onPlainThread {
            let scene = try Scene("crashes", seed: 12, size: .mebibytes(6)) { store, random in
                var model: [String: ModelCheckpoint] = [:]
                try saveBranches(store, &random, checkpoints: 6, pages: 8, length: 1100, &model)
                return model
            }
            let device = scene.device.fork()
            let nodes = scene.blocks().filter { $0.header.kind == .inner }
            for node in nodes { scene.destroy(node.range, on: device, byFlip: true) }
            // One of them can't stand in its place any more.
            let bad = try #require(nodes.last).range
            let losesWrites = FaultRule(.write, .from(1), .lose) { $0.offset.map { bad.contains($0.int) } ?? false }
            @Sendable func repair(_ device: SimulatedDevice) throws {
                device.faults.clear()
                device.faults.add(losesWrites)
                let store = try scene.open(device)
                defer { store.close() }
                let report = try store.repair(options: RepairOptions(parallelism: 1))
                guard report.isWhole else { throw Mismatch("stays damaged: \(report.remaining)") }
                try scene.requireSound(store)
            }
            var plan = CrashExplorer.Plan()
            plan.exhaustiveModes = [.none, .all, .prefix, .dropOne]
            plan.randomImageCount = 60
            return try CrashExplorer("derivation", seed: 12, plan: plan).explore(device) { device in
                try repair(device)
                device.mark("acknowledged")
            } check: { image in
                let store = try scene.open(image.device)
                let found = try store.verify(options: VerifyOptions(parallelism: 1))
                store.close()
                guard found.damages.allSatisfy({ $0.block?.kind == .inner }), found.isSound || image.marks.isEmpty else {
                    throw Mismatch("after a power cut: \(found.damages)")
                }
                try repair(image.device)
            }
        }
        print("crash points of deriving: \(report)")
        #expect(report.isReplay || report.imageCount > 10)
    }
}
