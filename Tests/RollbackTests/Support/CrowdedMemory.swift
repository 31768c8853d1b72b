// A machine of several writers that is stopped for its checkpoints, also for those that a full buffer forces.
//
// Invariants:
// - A writer is either at a gate or in one write; one whose page waits for room counts as stopped, since its write has not happened.
// - What each word has to be at the checkpoint is what its writer had said before it was stopped.

import CheckpointCore
import FaultHarness
import Glibc
import MachineMemory
import Rollback
import Threading
import Units

/// Writers, each with pages that it shares with nobody else by word, on one memory.
final class CrowdedMemory: Sendable {
    private struct Writers {
        var isStopping = false
        var isEnding = false
        /// The page that each is writing; nil: at the gate.
        var target: [Int?]
    }

    private let kind: RollbackStrategyKind
    private let seed: UInt64
    private let options: RollbackOptions
    private let memory: GuestMemory
    private let backup: LocalBackup?
    private let writers: Lock<Writers>
    private let rollback = Lock<MemoryRollback?>(nil)
    private let truth = Lock<(checkpoint: [UInt8], state: [UInt8], count: UInt8)>(([], [], 0))
    private let failure = Lock<(any Error)?>(nil)
    private static let writerCount = 3

    init(_ kind: RollbackStrategyKind, seed: UInt64, capacity: Int?, pageCount: Int) throws {
        self.kind = kind
        self.seed = seed
        memory = try GuestMemory("ram", byteLength: ByteCount(pageCount * pageSize))
        writers = Lock(Writers(target: Array(repeating: nil, count: Self.writerCount)))
        var options = RollbackOptions()
        options.capacity = capacity.map { PageCount($0) }
        var backup: LocalBackup?
        if kind == .postImageRemote {
            var backupOptions = BackupOptions()
            backupOptions.stagingCapacity = options.capacity
            let local = try LocalBackup(backupOptions)
            options.connect = { () throws(EngineError) in try local.connect() }
            backup = local
        }
        self.backup = backup
        self.options = options
    }

    /// Lets the writers write, takes checkpoints and rolls back in between. Returns how many checkpoints were forced, and how many first
    /// writes there were.
    func run(rounds: Int = 30) throws -> (forced: Int, writes: Int) {
        defer { backup?.close() }
        var options = options
        options.forceCheckpoint = { [self] in note { try stopped { try checkpoint() } } }
        let rollback = try MemoryRollback.make(kind, memory, options: options)
        defer { rollback.close() }
        self.rollback.withLock { $0 = rollback }
        truth.withLock { unsafe $0.checkpoint = [UInt8](memory.bytes) }
        let threads = (0..<Self.writerCount).map { number in PlainThread { [self] in write(number) }! }
        var random = SeededGenerator(seed: seed)
        for _ in 0..<rounds where failure.withLock({ $0 == nil }) {
            usleep(useconds_t(500 + random.below(3000)))
            let isRollback = random.chance(1, in: 3)
            note { try stopped { if isRollback { try rollBack() } else { try checkpoint() } } }
        }
        writers.withLock { $0.isEnding = true }
        // Who waits for room is let go by checkpoints, or by the end of tracking.
        let statistics = rollback.statistics
        rollback.close()
        writers.wake()
        for thread in threads { thread.join() }
        if let failure = failure.withLock({ $0 }) { throw Mismatch("seed \(seed), \(kind): \(failure)") }
        return (statistics.forcedCheckpoints, statistics.firstWrites)
    }

    private func note(_ body: () throws -> Void) {
        do { try body() } catch let error as EngineError where error.code == .cancelled {
            // The end of the run came in between.
        } catch { failure.withLock { $0 = $0 ?? error } }
    }

    /// Runs `body` while all writers stand still.
    private func stopped(_ body: () throws -> Void) throws {
        // One at a time: the thread of this machine, or that of a forced checkpoint.
        writers.waitFor { writers -> Void? in
            if writers.isStopping { return nil }
            writers.isStopping = true
            return ()
        }
        defer {
            writers.withLock { $0.isStopping = false }
            writers.wake()
        }
        let rollback = rollback.withLock { $0! }
        var patience = 200_000
        while true {
            let targets = writers.withLock { $0.target }
            let waiting = rollback.waitingPages
            if targets.allSatisfy({ target in target.map { waiting.contains(PageIndex($0)) } ?? true }) { break }
            patience -= 1
            try require(patience > 0, "the writers don't stop: at \(targets), waiting \(waiting.ranges)")
            usleep(20)
        }
        try body()
    }

    private func checkpoint() throws {
        let state = truth.withLock { truth in
            truth.count &+= 1
            return [truth.count]
        }
        // What stands in memory now: those who wait have not written.
        let content = unsafe [UInt8](memory.bytes)
        truth.withLock { $0 = (content, state, $0.count) }
        try rollback.withLock { $0! }.checkpoint(state: state)
    }

    private func rollBack() throws {
        let rollback = rollback.withLock { $0! }
        // Those who wait would write as soon as room is there: memory could not be compared any more.
        guard rollback.waitingPages.isEmpty else { return }
        let (checkpoint, state, _) = truth.withLock { $0 }
        try require(try rollback.rollback() == state, "another state")
        try memory.requireEqual(checkpoint, "after a rollback")
    }

    private func write(_ number: Int) {
        var random = SeededGenerator(seed: seed, UInt64(number))
        while true {
            let page = random.below(memory.pageCount.int)
            let isOver = writers.waitFor { writers -> Bool? in
                if writers.isEnding { return true }
                if writers.isStopping { return nil }
                writers.target[number] = page
                return false
            }
            if isOver { return }
            let place = page * pageSize + number * 512 + random.below(64) * 8
            unsafe memory.bytes.storeBytes(of: random.next(), toByteOffset: place, as: UInt64.self)
            writers.withLock { $0.target[number] = nil }
            if random.chance(1, in: 20) { usleep(50) }
        }
    }
}
