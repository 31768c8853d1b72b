// The trees that a store keeps of itself, destroyed and rebuilt: all that was there is there again, or is named.

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

/// A store with everything in it that a mix of operations leaves, and its model.
private struct MixedStore {
    let device: SimulatedDevice
    var mix: StoreMix

    /// - Parameter segments: more than 64 give the segment table more than one node.
    init(seed: UInt64, steps: Int, size: ByteCount = .mebibytes(12), small: Int = 0) throws {
        device = SimulatedDevice(size: size)
        mix = try StoreMix(seed: seed, maximumPages: 120)
        let store = try CheckpointStore.create(
            on: FaultMedium(device), options: CreateOptions(segmentSize: .kibibytes(128)), environment: testEnvironment(seed: seed))
        defer { store.close() }
        for number in 0..<small {
            let writer = try store.begin("many-\(number)", parent: nil, options: WriterOptions(parallelism: 1))
            try writer.commit()
        }
        for _ in 0..<steps { try mix.step(store) }
        mix.letGo()
        if small == 0 { try mix.requireEqual(store) }
        device.forgetLog()
    }
}

private func open(_ device: SimulatedDevice, seed: UInt64, defects: EngineDefects = []) throws -> CheckpointStore {
    var environment = testEnvironment(seed: seed)
    environment.defects = defects
    return try CheckpointStore.open(FaultMedium(device), environment: environment)
}

/// Throws unless the repaired store is what the model says, but for what the report says is lost; goes on with what there is.
private func requireRepaired(_ store: CheckpointStore, _ mix: inout StoreMix, _ report: RepairReport, _ what: String) throws {
    guard report.remaining.isEmpty, report.obstacle == nil else { throw Mismatch("\(what): stays damaged: \(report)") }
    let losses = report.trees.losses
    let found = Dictionary(uniqueKeysWithValues: try store.snapshot().references().map { ($0.name, $0.checkpoint) })
    for (name, id) in mix.expectedReferences where name != Reference.latest && found[name] != id {
        let isNamed = losses.contains { $0.contains("'\(name)'") || $0.contains("names that move") }
        guard found[name] == nil, isNamed else {
            throw Mismatch("\(what): \(name) leads to \(found[name].map { "\($0)" } ?? "nothing"), not to \(id): \(losses)")
        }
    }
    if report.trees.trees.contains(where: { $0.name == "lineage" }) { try mix.takeReferences(from: store) }
    if losses.contains(where: { $0.contains("who descends from whom") }) { try mix.takeLineage(from: store) }
    do { try mix.requireEqual(store) } catch { throw Mismatch("\(what): \(error); \(report.trees)") }
}

/// Destroys `nodes` in a copy, repairs it, and goes on with it. Returns what the repair said.
@discardableResult
private func destroyAndRepair(
    _ scene: MixedStore, _ nodes: [OwnNode], wholly: Bool, seed: UInt64, steps: Int, defects: EngineDefects = []
) throws -> RepairReport {
    let device = scene.device.fork()
    var random = SeededGenerator(seed: seed)
    for node in nodes { device.destroy(node, &random, wholly: wholly) }
    let what = "seed \(seed), \(wholly ? "zeros" : "a bit") in \(nodes)"
    var mix = scene.mix
    let store = try open(device, seed: seed, defects: defects)
    defer { store.close() }
    let report = try store.repair(options: RepairOptions(parallelism: 1))
    if Set(nodes.map(\.tree)).isSuperset(of: ["by id", "by name", "lineage"]), let obstacle = report.obstacle {
        // Nobody can know any more who was deleted: nothing may be changed then.
        guard obstacle.reason.contains("can't be told"), try device.newestSlot().generation == scene.device.newestSlot().generation else {
            throw Mismatch("\(what): \(obstacle)")
        }
        return report
    }
    guard !report.found.isSound, !report.trees.trees.isEmpty else { throw Mismatch("\(what): nothing was found: \(report)") }
    try requireRepaired(store, &mix, report, what)
    do {
        for _ in 0..<steps { try mix.step(store) }
        mix.letGo()
        if steps > 0 { try mix.deleteAll(store) }
    } catch { throw Mismatch("\(what), afterwards: \(error)") }
    return report
}

@Suite struct TreeRepairTests {
    @Test(arguments: [UInt64(1), 3]) func `each node of the store's own trees can be rebuilt`(seed: UInt64) async throws {
        try await onPlainThread {
            let scene = try MixedStore(seed: seed, steps: 90)
            let nodes = try scene.device.ownNodes()
            var losses: [String] = []
            for (number, node) in nodes.enumerated() {
                for wholly in [false, true] {
                    let report = try destroyAndRepair(
                        scene, [node], wholly: wholly, seed: seed * 1000 + UInt64(number), steps: wholly ? 5 : 0)
                    losses += report.trees.losses
                }
            }
            print("seed \(seed): \(nodes.count) nodes of \(Set(nodes.map(\.tree)).sorted()); lost: \(losses)")
            #expect(Set(nodes.map(\.tree)).count >= 5)
        }
    }

    @Test(arguments: [UInt64(11)]) func `without any older copy they can be rebuilt as well`(seed: UInt64) async throws {
        try await onPlainThread {
            let scene = try MixedStore(seed: seed, steps: 90)
            try scene.device.eraseOlderNodes()
            scene.device.forgetLog()
            let nodes = try scene.device.ownNodes()
            var losses: Set<String> = []
            for (number, node) in nodes.enumerated() {
                let report = try destroyAndRepair(scene, [node], wholly: true, seed: seed * 1000 + UInt64(number), steps: number % 3 * 2)
                losses.formUnion(report.trees.losses)
            }
            print("seed \(seed): \(nodes.count) nodes; lost: \(losses.sorted())")
        }
    }

    @Test func `several nodes at once can be rebuilt`() async throws {
        try await onPlainThread {
            var (rebuilt, uncertain) = (0, 0)
            for seed in UInt64(21)...23 {
                let scene = try MixedStore(seed: seed, steps: 60)
                if seed == 22 { try scene.device.eraseOlderNodes() }
                scene.device.forgetLog()
                let nodes = try scene.device.ownNodes()
                var random = SeededGenerator(seed: seed)
                for number in 0..<8 {
                    let chosen = Array(nodes.shuffled(using: &random).prefix(2 + number % 4))
                    let report = try destroyAndRepair(scene, chosen, wholly: number % 2 == 0, seed: seed * 100 + UInt64(number), steps: 4)
                    rebuilt += report.trees.trees.count
                    uncertain += report.trees.losses.count
                }
            }
            print("\(rebuilt) trees rebuilt, \(uncertain) losses")
            #expect(rebuilt > 30)
        }
    }

    @Test func `a lineage that is rebuilt without descent is noticed`() async throws {
        try await onPlainThread {
            var (seen, noticed) = (0, 0)
            for seed in UInt64(31)...34 {
                let scene = try MixedStore(seed: seed, steps: 40)
                let roots = try scene.device.ownNodes().filter { $0.tree == "lineage" }
                var random = SeededGenerator(seed: seed)
                let device = scene.device.fork()
                for node in roots { device.destroy(node, &random, wholly: true) }
                var mix = scene.mix
                let store = try open(device, seed: seed, defects: .forgetsDescent)
                defer { store.close() }
                let report = try store.repair(options: RepairOptions(parallelism: 1))
                do { try requireRepaired(store, &mix, report, "seed \(seed)") } catch { seen += 1 }
                // Not by the lineage alone: what is deleted by it takes away what others need.
                try mix.takeReferences(from: store)
                try mix.takeLineage(from: store)
                do { try mix.deleteAll(store) } catch { noticed += 1 }
            }
            #expect(seen > 0 && noticed > 0, "\(seen) lineages seen to be others, \(noticed) deletions noticed")
        }
    }

    @Test func `names that move come back from a replica`() async throws {
        try await onPlainThread {
            let device = SimulatedDevice(size: .mebibytes(8))
            let store = try CheckpointStore.create(
                on: FaultMedium(device), options: CreateOptions(segmentSize: .kibibytes(128)), environment: testEnvironment(seed: 41))
            var random = SeededGenerator(seed: 41)
            for name in ["a", "b", "c"] {
                let writer = try store.begin(name, parent: name == "a" ? nil : "a", options: WriterOptions(parallelism: 1))
                try writer.addRegion("ram", kind: .memory, byteLength: ByteCount(4 * pageSize)).write((0..<4).flatMap { _ in makePage(&random) })
                try writer.commit()
            }
            try store.setReference("gold", to: "a")
            let replica = try ScratchStore(.mebibytes(32))
            _ = try store.copyCheckpoints(to: replica.store, options: SyncOptions(parallelism: 1))
            try replica.store.setReference("gold", to: "a")
            store.close()
            for node in try device.ownNodes() where node.tree == "lineage" { device.destroy(node, &random, wholly: false) }
            let dry = try open(device.fork(), seed: 42)
            let planned = try dry.repair(options: RepairOptions(parallelism: 1, isDryRun: true))
            #expect(planned.trees.trees.map(\.name) == ["lineage"] && planned.trees.losses.contains { $0.contains("generation 5") }, "\(planned)")
            #expect(try !dry.verify().isSound)
            dry.close()
            let again = try open(device, seed: 43)
            defer { again.close() }
            do throws(StoreError) { try again.setReference("gold", to: "b") } catch {
                #expect(error.code == .corrupt && error.remedy.contains("ckstore repair"), "\(error)")
            }
            let report = try again.repair(from: replica.store, options: RepairOptions(parallelism: 1))
            #expect(report.remaining.isEmpty && report.obstacle == nil, "\(report)")
            let snapshot = try again.snapshot()
            let found = Dictionary(uniqueKeysWithValues: try snapshot.references().map { ($0.name, $0.checkpoint) })
            #expect(found == ["gold": try snapshot.checkpoint(named: "a").id, "latest": try snapshot.checkpoint(named: "c").id])
        }
    }

    @Test(arguments: [UInt64(51), 52]) func `power may go at any write of a repair of trees`(seed: UInt64) async throws {
        let (report, trees) = try await onPlainThread {
            let scene = try MixedStore(seed: seed, steps: 30, size: .mebibytes(6))
            let device = scene.device
            var random = SeededGenerator(seed: seed)
            // With the table whole, and without.
            for node in try device.ownNodes() where node.tree != "segment table" || seed == 52 {
                if ["lineage", "by name", "table of moved blocks", "segment table"].contains(node.tree) { device.destroy(node, &random, wholly: false) }
            }
            let model = scene.mix.model
            let repair: @Sendable (SimulatedDevice) throws -> RepairReport = { device in
                let store = try open(device, seed: 53)
                defer { store.close() }
                let report = try store.repair(options: RepairOptions(parallelism: 1))
                guard report.remaining.isEmpty, report.obstacle == nil else { throw Mismatch("stays damaged: \(report)") }
                try store.requireEqual(model)
                return report
            }
            let done = Lock<RepairReport?>(nil)
            var plan = CrashExplorer.Plan()
            plan.exhaustiveModes = [.none, .all, .prefix]
            plan.randomImageCount = 24
            let report = try CrashExplorer("trees-\(seed)", seed: seed, plan: plan).explore(device) { device in
                let report = try repair(device)
                done.withLock { $0 = report }
                device.mark("acknowledged")
            } check: { image in
                let again = try repair(image.device)
                if !image.marks.isEmpty, !again.found.isSound { throw Mismatch("not durable: \(again.found.damages)") }
            }
            return (report, done.withLock { $0?.trees.trees.count ?? 0 })
        }
        print("crash points of a repair of \(trees) trees, seed \(seed): \(report)")
        #expect(report.isReplay || (report.imageCount > 10 && trees >= 2))
    }

    @Test func `who saves and reads through another handle meanwhile goes on`() async throws {
        try await onPlainThread {
            for seed in UInt64(61)...63 {
                let scene = try MixedStore(seed: seed, steps: 30, size: .mebibytes(8))
                var random = SeededGenerator(seed: seed)
                var model = scene.mix.model
                let device = scene.device
                let other = try open(device, seed: 64)
                defer { other.close() }
                let (name, regions) = try #require(model.min { $0.key < $1.key })
                let held = try other.snapshot().reader(named: name)
                let writer = try other.begin("meanwhile", parent: nil, options: WriterOptions(parallelism: 1))
                // Enough for segments of its own, none of which the table counts.
                let bytes = (0..<200).flatMap { _ in (0..<512).flatMap { _ in random.next().littleEndianBytes } }
                let region = try writer.addRegion("ram", kind: .memory, byteLength: ByteCount(bytes.count))
                try region.write(bytes)
                for node in try device.ownNodes() where ["segment table", "by name"].contains(node.tree) {
                    device.destroy(node, &random, wholly: seed == 62)
                }
                let store = try open(device, seed: 65)
                defer { store.close() }
                let report = try store.repair(options: RepairOptions(parallelism: 1))
                guard report.remaining.isEmpty, report.obstacle == nil else { throw Mismatch("stays damaged: \(report)") }
                try writer.commit()
                model["meanwhile"] = ["ram": bytes]
                try store.requireEqual(model)
                for (name, expected) in regions { #expect(try held.region(name).bytes() == expected) }
                try store.delete(model.keys.filter { key in key == "meanwhile" })
                model["meanwhile"] = nil
                try store.requireEqual(model)
            }
        }
    }
}
