// Every order of deleting every small forest of checkpoints.
//
// Orders that have deleted the same checkpoints meet: the state that a second order comes to must be that of the first (catalog, lineage,
// and of each segment of runs and index whether it is used, how much of it is alive and where it ends), so that what can follow is the same
// too, and is tried from one of them. By that, n * 2^(n-1) deletions stand for n! orders.
//
// Every state that is met first is verified: all blocks that the checkpoints left reach are whole and counted, `live` of every segment is
// what is reachable, to the unit, and the lineage keeps its rules. The checkpoints' roots cover their content; the content itself is compared when
// they have been saved, and of each one when it is the last.

@testable import CheckpointStore
import FaultHarness
import Foundation
import Media
import StoreFormat
import StoreTesting
import Testing
import Units

/// What must be the same whichever order led there.
private struct ForestState: Equatable {
    var records: [CheckpointID: BlockPointer] = [:]
    var lineage: [LineageEntry] = []
    var segments: [SegmentIndex: [UInt64]] = [:]

    init(_ store: CheckpointStore) throws {
        let slot = try store.snapshot().slot
        for (id, value) in try store.catalogValues(in: slot) { records[id] = value.record }
        try LineageTree(store: store, slot: slot).forEach { lineage.append($0) }
        var table = TableReader(store: store, slot: slot)
        for number in 0..<UInt64(slot.geometry.segmentCount) {
            let entry = try table.entry(SegmentIndex(number))
            guard entry.isUsed, entry.segmentClass != .catalog else { continue }
            segments[SegmentIndex(number)] = [UInt64(entry.live), UInt64(entry.committedLength)]
        }
    }
}

/// Deletes the checkpoints of one forest in every order.
private struct ForestExplorer {
    var shape: ForestShape
    var seed: UInt64
    var defects: EngineDefects = []

    /// Returns how many deletions were tried.
    func run() throws -> Int {
        do { return try explore() } catch { throw Mismatch("forest \(shape), seed \(seed): \(error)") }
    }

    private func explore() throws -> Int {
        let forest = try Forest(shape, seed: seed)
        let count = shape.parents.count
        var states: [Int: (device: SimulatedDevice, state: ForestState)] = [:]
        let store = try open(forest.device)
        try require(store, forest, left: Array(0..<count))
        for number in 0..<count { try forest.requireContent(of: number, in: store) }
        states[0] = (forest.device, try ForestState(store))
        store.close()
        var deletions = 0
        for deleted in 0..<1 << count {
            guard let (device, _) = states.removeValue(forKey: deleted) else { preconditionFailure("smaller sets come first") }
            for number in 0..<count where deleted >> number & 1 == 0 {
                let now = deleted | 1 << number
                let fork = device.fork()
                let state = try delete(number, on: fork, forest, left: states[now] == nil ? (0..<count).filter { now >> $0 & 1 == 0 } : nil)
                deletions += 1
                if let known = states[now], known.state != state {
                    throw Mismatch("deleting \(number) last of the set \(String(now, radix: 2)) leaves another state than another order")
                }
                if states[now] == nil { states[now] = (fork, state) }
            }
        }
        return deletions
    }

    private func open(_ device: SimulatedDevice) throws -> CheckpointStore {
        var environment = testEnvironment(seed: ~seed)
        environment.defects = defects
        return try CheckpointStore.open(FaultMedium(device), environment: environment)
    }

    /// - Parameter left: what is left then, when nobody has come to that before.
    private func delete(_ number: Int, on device: SimulatedDevice, _ forest: Forest, left: [Int]?) throws -> ForestState {
        let store = try open(device)
        defer { store.close() }
        if let obstacle = try store.delete(["\(number)"]).obstacle { throw obstacle }
        if let left { try require(store, forest, left: left) }
        device.forgetLog()
        return try ForestState(store)
    }

    private func require(_ store: CheckpointStore, _ forest: Forest, left: [Int]) throws {
        guard try store.snapshot().names() == left.map(String.init) else { throw Mismatch("others are left than \(left)") }
        try store.requireExact(count: left.count)
        if left.count == 1 { try forest.requireContent(of: left[0], in: store) }
        guard left.isEmpty else { return }
        let state = try ForestState(store)
        guard state.segments.isEmpty, state.lineage.isEmpty else {
            throw Mismatch("all are gone, and \(state.segments.count) segments and \(state.lineage.count) entries of the lineage are left")
        }
    }
}

extension CheckpointStore {
    /// Throws unless everything is whole and counted exactly.
    func requireExact(count: Int) throws {
        let report = try verify(options: VerifyOptions(parallelism: 1))
        if let damage = report.damages.first { throw Mismatch("verify finds \(report.damages.count) damages: \(damage)") }
        guard report.checkpointCount == count else { throw Mismatch("\(report.checkpointCount) checkpoints of \(count)") }
        guard report.lostPages == .zero, report.lostBytes == .zero else {
            throw Mismatch("\(report.lostPages) pages and \(report.lostBytes) bytes count as alive that nothing reaches")
        }
    }
}

@Suite(.serialized) struct DeletionOrderTests {
    #if DEBUG
        private static let largest = 4
    #else
        private static let largest = 6
    #endif

    /// Every tree and forest, each once; CKSTORE_LONG_TESTS=1: in every order in which its members can be saved.
    private static let shapes: [ForestShape] = (1...largest).flatMap {
        ProcessInfo.processInfo.environment["CKSTORE_LONG_TESTS"] == "1" ? ForestShape.all(of: $0) : ForestShape.different(of: $0)
    }

    /// Explores the shapes on two threads. Returns deletions and orders.
    private static func explore(_ shapes: [ForestShape], defects: EngineDefects = []) throws -> (deletions: Int, orders: Int) {
        let state = Guarded((next: 0, deletions: 0, orders: 0, failure: nil as (any Error)?))
        PlainThreads.run(2) { _ in
            while let index = state.with({ state -> Int? in
                guard state.failure == nil, state.next < shapes.count else { return nil }
                defer { state.next += 1 }
                return state.next
            }) {
                do {
                    let deletions = try ForestExplorer(shape: shapes[index], seed: UInt64(index) + 1, defects: defects).run()
                    let orders = (1...shapes[index].parents.count).reduce(1, *)
                    state.with { ($0.deletions, $0.orders) = ($0.deletions + deletions, $0.orders + orders) }
                } catch { state.with { $0.failure = $0.failure ?? error } }
            }
        }
        let (_, deletions, orders, failure) = state.with { $0 }
        if let failure { throw failure }
        return (deletions, orders)
    }

    @Test func `whatever the order in which the checkpoints of a forest are deleted, just what nobody needs goes`() async throws {
        let (deletions, orders) = try await onPlainThread {
            try Self.explore(Self.shapes)
        }
        print("deletion orders: \(orders), by \(deletions) deletions")
        #expect(orders >= 1 + 2 * 2 + 4 * 6 + 9 * 24)
    }

    @Test func `a deletion that does not look at other branches is caught`() async throws {
        await #expect(throws: Mismatch.self) {
            try await onPlainThread { try Self.explore(ForestShape.all(of: 4), defects: .forgetsSiblings) }
        }
    }

    @Test func `a deletion that forgets the bases of patch leaves is caught`() async throws {
        await #expect(throws: Mismatch.self) {
            try await onPlainThread { try Self.explore(ForestShape.all(of: 3), defects: .forgetsPatchBases) }
        }
    }
}
