// A guest's requests across checkpoints and rollbacks: every order of events, compared with a run that nobody disturbs.

import CheckpointCore
import FaultHarness
import GuestRollback
import Testing
import Units

@Suite(.serialized) struct GuestQueueTests {
    /// A write, a read of the same bytes, a write over both, each waited for.
    static let dependent: [ToyOperation] = [
        .store(word: 3), .write(device: 0, sector: 0, sectors: 2, page: 0), .read(device: 0, sector: 1, sectors: 2, slot: 0), .wait, .wait,
    ]
    /// A read and a write that have nothing to do with each other.
    static let independent: [ToyOperation] = [
        .store(word: 0), .write(device: 0, sector: 2, sectors: 1, page: 0), .read(device: 0, sector: 0, sectors: 1, slot: 0),
        .store(word: 0),
    ]
    /// A read before a write to its bytes, and a flush.
    static let ordered: [ToyOperation] = [
        .read(device: 0, sector: 0, sectors: 1, slot: 0), .write(device: 0, sector: 0, sectors: 1, page: 0), .flush(device: 0),
    ]
    /// Read-only pages and stores into them.
    static let marked: [ToyOperation] = [
        .storeMarked, .mark(readOnly: true), .storeMarked, .read(device: 0, sector: 0, sectors: 1, slot: 0), .mark(readOnly: false),
        .storeMarked,
    ]

    @Test(arguments: [dependent, independent, ordered, marked])
    func `properties 1 to 3: a rollback at every event boundary of a short trace ends like an undisturbed run`(_ script: [ToyOperation])
        async throws
    {
        try await onPlainThread {
            let runs = try exploreAll(script, EventBudget(checkpoints: 1, rollBacks: 1))
            print("\(runs) orders of events")
            guard runs > 100 else { throw TestFailure("only \(runs) orders") }
        }
    }

    @Test func `two rollbacks, the second after a checkpoint or without one, at every event boundary`() async throws {
        try await onPlainThread {
            let write: [ToyOperation] = [.write(device: 0, sector: 0, sectors: 1, page: 0), .wait]
            let read: [ToyOperation] = [.read(device: 0, sector: 0, sectors: 2, slot: 0), .store(word: 1)]
            for script in [write, read] { print("\(try exploreAll(script, EventBudget(checkpoints: 1, rollBacks: 2))) orders of events") }
        }
    }

    @Test func `random programs under random orders of events end like undisturbed runs`() async throws {
        let seed = Programme.seed()
        try await onPlainThread {
            try exploreRandomly(seed: seed, runs: Programme.runs(150), length: 60, EventBudget(checkpoints: 12, rollBacks: 8))
            try exploreRandomly(seed: seed ^ 1, runs: Programme.runs(60), length: 60, processors: 2, EventBudget(checkpoints: 12, rollBacks: 8))
        }
    }
}
