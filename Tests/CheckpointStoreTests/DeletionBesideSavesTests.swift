// Deletions that don't hold up saves, and saves that add relatives while a deletion walks.
//
// The order of events is controlled by the medium: a rule of the deleting handle that never fires sees each of its reads and locks, and
// another handle saves just then.

@testable import CheckpointStore
import FaultHarness
import Foundation
import Media
import StoreFormat
import StoreTesting
import Testing
import Units

private func open(_ device: SimulatedDevice, seed: UInt64, defects: EngineDefects = [], timeout: Duration = .zero) throws -> (CheckpointStore, FaultMedium) {
    var environment = testEnvironment(seed: seed)
    environment.defects = defects
    environment.commitTimeout = timeout
    let medium = FaultMedium(device)
    return (try CheckpointStore.open(medium, environment: environment), medium)
}

extension FaultMedium {
    /// Calls `body` before each call of a kind that this handle makes, until it is done with.
    fileprivate func before(_ operation: OperationKind, _ body: @escaping @Sendable (MediumCall) -> Void) {
        faults.add(
            FaultRule(operation, .nth(1), .fail(.ioFailed)) { call in
                body(call)
                return false
            })
    }
}

/// Saves relatives when a deletion is about to commit, over and over.
private final class LateSaver: Sendable {
    struct State {
        var forest: Forest
        var left: Int
        var failure: (any Error)?
    }
    private let state: Guarded<State>

    /// - Parameter count: how many are saved at most, one at a time.
    init(_ forest: Forest, over parent: Int, count: Int, on store: CheckpointStore, before deleter: FaultMedium) {
        state = Guarded(State(forest: forest, left: count))
        let state = state
        deleter.before(.lock) { call in
            guard call.lockRange == LockLayout.commit else { return }
            state.with { state in
                guard state.left > 0 else { return }
                state.left -= 1
                do { try state.forest.save(state.forest.contents.count, over: parent, on: store) } catch let error as StoreError where error.code == .notFound {
                    // The parent is gone: this is the generation behind the deletion.
                    state.left += 1
                } catch { state.failure = state.failure ?? error }
            }
        }
    }

    /// The forest with what was saved, and how many more could have been.
    func result() throws -> (forest: Forest, left: Int) {
        try state.with { state in
            if let failure = state.failure { throw failure }
            return (state.forest, state.left)
        }
    }
}

/// Deletes checkpoints of a forest while children of others appear.
private struct LateForest {
    var shape: ForestShape
    var seed: UInt64
    var defects: EngineDefects = []

    /// Every order of two deletions, each with a child of every checkpoint that is left before it is committed. Returns how many deletions that were.
    func run() throws -> Int {
        do {
            let forest = try Forest(shape, seed: seed)
            let all = Array(shape.parents.indices)
            var count = 0
            for first in all {
                for parent in all { count += try delete([first], besideChildOf: parent, forest, forest.device.fork(), left: all) }
                // What joins branches after that is a tombstone.
                let device = forest.device.fork()
                let (store, _) = try open(device, seed: seed)
                try store.delete(["\(first)"])
                store.close()
                device.forgetLog()
                let left = all.filter { $0 != first }
                for second in left {
                    for parent in left { count += try delete([second], besideChildOf: parent, forest, device.fork(), left: left) }
                    if let third = left.first(where: { $0 != second }) {
                        count += try delete([second, third], besideChildOf: third, forest, device.fork(), left: left)
                    }
                }
            }
            return count
        } catch { throw Mismatch("forest \(shape), seed \(seed): \(error)") }
    }

    private func delete(_ doomed: [Int], besideChildOf parent: Int, _ forest: Forest, _ device: SimulatedDevice, left: [Int]) throws -> Int {
        let (store, medium) = try open(device, seed: ~seed, defects: defects)
        let (saver, _) = try open(device, seed: seed &+ 77)
        defer {
            store.close()
            saver.close()
        }
        let late = LateSaver(forest, over: parent, count: 1, on: saver, before: medium)
        if let obstacle = try store.delete(doomed.map(String.init)).obstacle { throw obstacle }
        let (grown, rest) = try late.result()
        guard rest == 0 else { throw Mismatch("no child was saved") }
        let survivors = left.filter { !doomed.contains($0) } + [shape.parents.count]
        guard try store.snapshot().names() == survivors.map(String.init) else { throw Mismatch("others are left than \(survivors)") }
        try store.requireExact(count: survivors.count)
        try grown.requireContent(of: shape.parents.count, in: store)
        return 1
    }
}

@Suite(.serialized) struct DeletionBesideSavesTests {
    #if DEBUG
        private static let largest = 3
    #else
        private static let largest = 5
    #endif

    private static func explore(largest: Int, defects: EngineDefects = []) throws -> Int {
        let shapes = (1...largest).flatMap { ForestShape.different(of: $0) }
        let state = Guarded((next: 0, count: 0, failure: nil as (any Error)?))
        PlainThreads.run(2) { _ in
            while let index = state.with({ state -> Int? in
                guard state.failure == nil, state.next < shapes.count else { return nil }
                defer { state.next += 1 }
                return state.next
            }) {
                do {
                    let count = try LateForest(shape: shapes[index], seed: UInt64(index) + 1, defects: defects).run()
                    state.with { $0.count += count }
                } catch { state.with { $0.failure = $0.failure ?? error } }
            }
        }
        return try state.with { state in
            if let failure = state.failure { throw failure }
            return state.count
        }
    }

    @Test func `children that appear between the walk and the commit keep what they share`() async throws {
        let count = try await onPlainThread { try Self.explore(largest: Self.largest) }
        print("deletions beside saves: \(count)")
        #expect(count > 50)
    }

    @Test func `a deletion that does not look for new neighbours is caught`() async throws {
        await #expect(throws: Mismatch.self) {
            try await onPlainThread { try Self.explore(largest: 2, defects: .overlooksNewNeighbours) }
        }
    }

    @Test func `however often relatives appear, a deletion ends`() async throws {
        try await onPlainThread {
            // Before each attempt, and before the generation behind it where the parent is still there.
            for (doomed, parent, saves) in [(["1"], 1, 4), (["latest"], 3, 5), (["0", "1"], 0, 4)] {
                let forest = try Forest(ForestShape(parents: [nil, 0, 1, 1]), seed: 5)
                let (store, medium) = try open(forest.device, seed: 1)
                let (saver, _) = try open(forest.device, seed: 2)
                defer {
                    store.close()
                    saver.close()
                }
                let late = LateSaver(forest, over: parent, count: 100, on: saver, before: medium)
                let result = try store.delete(doomed)
                #expect(result.obstacle == nil)
                #expect(result.deleted.count == doomed.count)
                let (grown, rest) = try late.result()
                #expect(100 - rest == saves)
                try store.requireExact(count: grown.contents.count - doomed.count)
                for number in 4..<grown.contents.count where try store.snapshot().names().contains("\(number)") {
                    try grown.requireContent(of: number, in: store)
                }
            }
        }
    }

    @Test func `saves commit all the while a deletion walks`() async throws {
        try await onPlainThread {
            struct Seen {
                var isReclaiming = false
                var isCommitting = false
                var reads = 0
                var readsInCommit = 0
                var saves = 0
                var failure: (any Error)?
            }
            /// Deletes a checkpoint whose region has so many spans; every few reads of its walk somebody saves.
            func delete(spans: Int, period: Int) throws -> Seen {
                let device = SimulatedDevice(size: .mebibytes(64))
                let store = try CheckpointStore.create(
                    on: FaultMedium(device), options: CreateOptions(segmentSize: .kibibytes(256)), environment: testEnvironment(seed: 4))
                for (name, parent) in [("old", nil as String?), ("new", "old")] {
                    let writer = try store.begin(name, parent: parent, options: WriterOptions(parallelism: 1))
                    let ram = try writer.addRegion("ram", kind: .disk, byteLength: PageCount(spans * pagesPerSpan).bytes)
                    let page = [UInt8](repeating: UInt8(name.count + (parent?.count ?? 0)), count: pageSize)
                    for span in 0..<spans { try ram.put(page: PageIndex(span * pagesPerSpan), page) }
                    try writer.commit()
                }
                store.close()
                let (deleter, medium) = try open(device, seed: 5)
                let (saver, _) = try open(device, seed: 6)
                defer {
                    deleter.close()
                    saver.close()
                }
                let seen = Guarded(Seen())
                medium.before(.lock) { call in
                    seen.with { seen in
                        if call.lockRange == LockLayout.reclaim { seen.isReclaiming = true }
                        if call.lockRange == LockLayout.commit { seen.isCommitting = true }
                    }
                }
                medium.before(.unlock) { call in
                    // The generation behind it is made by another commit.
                    if call.lockRange == LockLayout.commit { seen.with { ($0.isReclaiming, $0.isCommitting) = (false, false) } }
                }
                medium.before(.read) { _ in
                    seen.with { seen in
                        guard seen.isReclaiming else { return }
                        if seen.isCommitting {
                            seen.readsInCommit += 1
                            return
                        }
                        seen.reads += 1
                        guard seen.reads % period == 0 else { return }
                        seen.saves += 1
                        do {
                            let writer = try saver.begin("s\(seen.saves)", options: WriterOptions(parallelism: 1))
                            try writer.addRegion("ram", kind: .disk, byteLength: .kibibytes(8)).put(page: PageIndex(0), [UInt8](repeating: 9, count: pageSize))
                            try writer.commit()
                        } catch { seen.failure = seen.failure ?? error }
                    }
                }
                if let obstacle = try deleter.delete(["old"]).obstacle { throw obstacle }
                let result = seen.with { $0 }
                try deleter.requireExact(count: 1 + result.saves)
                return result
            }
            let (small, large) = (try delete(spans: 2, period: 1000), try delete(spans: 400, period: 40))
            for seen in [small, large] { if let failure = seen.failure { throw failure } }
            print("a deletion's reads: \(large.reads) beside saves, \(large.readsInCommit) while they wait")
            #expect(large.saves > 10 && large.reads > 400)
            #expect(large.readsInCommit <= small.readsInCommit + 16, "what saves wait for does not depend on what is deleted")
        }
    }
}
