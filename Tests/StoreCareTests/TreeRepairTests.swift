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
        guard found[name] == nil, losses.contains(where: { $0.contains("'\(name)'") }) else {
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
    @Test(arguments: [UInt64(1), 2, 3]) func `each node of the store's own trees can be rebuilt`(seed: UInt64) async throws {
        try await onPlainThread {
            let scene = try MixedStore(seed: seed, steps: 90)
            let nodes = try scene.device.ownNodes()
            var losses: [String] = []
            for (number, node) in nodes.enumerated() {
                for wholly in [false, true] {
                    let report = try destroyAndRepair(
                        scene, [node], wholly: wholly, seed: seed * 1000 + UInt64(number), steps: wholly ? 8 : 0)
                    losses += report.trees.losses
                }
            }
            print("seed \(seed): \(nodes.count) nodes of \(Set(nodes.map(\.tree)).sorted()); lost: \(losses)")
            #expect(Set(nodes.map(\.tree)).count >= 5)
        }
    }
}
