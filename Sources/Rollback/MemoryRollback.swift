// Memory of this process that can be rolled back to its last checkpoint, by one of six strategies.
//
// The cycle is the same for all [system D]: the owner stops the writers, hands over device state, the strategy's commit point makes the new
// checkpoint stand, writers resume, and output that was held until then is released. A rollback stops the writers, restores memory and
// hands the state back.
//
// Invariants:
// - There is always exactly one checkpoint, from `make` on: memory and state of one instant.
// - A call that throws leaves the old checkpoint or the new one, never a mix; `rollback` tells which by its state.
// - Nothing is lost for lack of room: a write that a buffer or log has no room for waits.

import CheckpointCore
import MachineMemory
import Threading
import Units

/// One memory with one strategy. Thread-safe; checkpoints and rollbacks wait for each other. Close it before it goes.
public final class MemoryRollback: Sendable {
    public let kind: RollbackStrategyKind
    public let memory: GuestMemory
    private let writes: FirstWrites
    private let strategy: any RollbackStrategy
    private let options: RollbackOptions
    private let counters: RollbackCounters
    private let cycle = Lock(Cycle())
    private let forcing = Lock<PlainThread?>(nil)

    private struct Cycle {
        var isRollingBack = false
        var isClosed = false
    }

    /// Takes the first checkpoint: what memory holds now, with `state`. Writers stand still until this returns; on a medium or in the
    /// backup process it is durable then.
    ///
    /// - Throws: `.invalidInput` for a buffer or log that can overflow without somebody to take a checkpoint, a missing `connect`, or a
    ///   medium that the strategy can't use; `.mismatch` for a medium with other content; `.busy` for one in use; `.store` when it fails;
    ///   `.connection`, `.refused`, `.timeout` of the backup; what `WriteTrap` throws; `.noMemory`.
    public static func make(
        _ kind: RollbackStrategyKind, _ memory: GuestMemory, state: [UInt8] = [], options: RollbackOptions = RollbackOptions()
    ) throws(EngineError) -> MemoryRollback {
        try make(kind, memory, state: state, options: options, rules: StandardRollbackRules())
    }

    package static func make(
        _ kind: RollbackStrategyKind, _ memory: GuestMemory, state: [UInt8], options: RollbackOptions, rules: any RollbackRules
    ) throws(EngineError) -> MemoryRollback {
        try check(options, kind, memory)
        try check(state, kind, options, memory)
        let parts = RollbackParts(memory: memory, options: options, rules: rules, counters: RollbackCounters())
        let strategy: any RollbackStrategy =
            switch kind {
            case .postImageLocal: try PostImageLocal(parts, state)
            case .postImageRemote: try PostImageRemote(parts, state)
            case .postImageBitmap: try PostImageBitmap(parts, state)
            case .postImageTwoBitmaps: try PostImageTwoBitmaps(parts, state)
            case .postImageBlockStates: try PostImageBlockStates(parts, state)
            case .preImageLog: try PreImageLog(parts, state)
            }
        do throws(EngineError) { return try MemoryRollback(kind, parts, strategy) } catch {
            strategy.close()
            throw error
        }
    }

    private static func check(_ options: RollbackOptions, _ kind: RollbackStrategyKind, _ memory: GuestMemory) throws(EngineError) {
        if let capacity = options.capacity, kind == .postImageLocal || kind == .preImageLog {
            guard capacity >= memory.pagesPerUnit else {
                throw EngineError(
                    .invalidInput, "\(capacity) pages are no room for a single write", remedy: "Give at least \(memory.pagesPerUnit).",
                    place: memory.name)
            }
            guard capacity >= memory.pageCount || options.forceCheckpoint != nil else {
                throw EngineError(
                    .invalidInput, "\(capacity) pages can overflow, and nobody would take a checkpoint then",
                    remedy: "Give room for all \(memory.pageCount) pages, or a function that takes a checkpoint.", place: memory.name)
            }
        }
        guard kind == .postImageRemote else { return }
        guard options.connect != nil, options.medium == nil else {
            throw EngineError(
                .invalidInput, "the remote strategy keeps its checkpoint in a backup process",
                remedy: "Give a way to connect to it, and the medium to that process.", place: memory.name)
        }
    }

    /// Device state that there is no room for is refused before anything happens.
    private static func check(
        _ state: [UInt8], _ kind: RollbackStrategyKind, _ options: RollbackOptions, _ memory: GuestMemory
    ) throws(EngineError) {
        guard kind == .postImageRemote || options.medium != nil else { return }
        let limit = kind == .postImageRemote ? ByteCount(BackupFrame.longestState) : options.stateCapacity
        guard ByteCount(state.count) > limit else { return }
        throw EngineError(
            .invalidInput, "\(state.count) bytes of device state, and there is room for \(limit)", remedy: "Give the image a larger state capacity.",
            place: memory.name)
    }

    private init(_ kind: RollbackStrategyKind, _ parts: RollbackParts, _ strategy: any RollbackStrategy) throws(EngineError) {
        self.kind = kind
        self.strategy = strategy
        memory = parts.memory
        options = parts.options
        counters = parts.counters
        writes = try FirstWrites(parts.memory, parts.counters) { strategy.firstWrite($0) }
        guard let force = parts.options.forceCheckpoint else { return }
        guard let thread = PlainThread({ [writes, counters] in Self.answerOverflows(writes, counters, force) }) else {
            writes.close()
            throw EngineError(.noMemory, "can't start a thread that asks for checkpoints", place: memory.name)
        }
        forcing.withLock { $0 = thread }
    }

    /// Makes what memory holds now the checkpoint, with `state`. The caller has stopped the writers; they may resume when this returns, and
    /// output that depends on the checkpoint may be released.
    ///
    /// On return the checkpoint stands in this process. On a medium it is durable for postImageBitmap, postImageBlockStates and
    /// preImageLog; for postImageLocal and postImageTwoBitmaps when `settle` has returned. For postImageRemote the backup has it.
    /// - Throws: `.invalidInput` for device state that is too long; `.store`, `.connection`, `.timeout`, `.refused`, `.ioFailed`; `.busy`
    ///   after a rollback that has thrown; `.cancelled` after `close`. Writers may resume then, and the next checkpoint covers what this
    ///   one was to cover.
    public func checkpoint(state: [UInt8]) throws(EngineError) {
        try cycle.withLock { cycle throws(EngineError) in
            try checkOpen(cycle)
            try Self.check(state, kind, options, memory)
            guard !cycle.isRollingBack else {
                throw EngineError(
                    .busy, "memory is half rolled back", remedy: "Call rollback again before the next checkpoint.", place: memory.name)
            }
            try writes.check()
            try strategy.checkpoint(state, writes)
            counters.add { $0.checkpoints += 1 }
            writes.admitHeld()
        }
    }

    /// Brings memory back to the checkpoint, byte for byte, and returns its state. The caller has stopped the writers. One that waits in a
    /// write goes on with that write afterwards: take it out by a signal where it should not.
    ///
    /// - Throws: as `checkpoint`; `.corrupt` when what a medium holds is damaged. Memory is a mix then: call it again before writers resume.
    public func rollback() throws(EngineError) -> [UInt8] {
        try cycle.withLock { cycle throws(EngineError) in
            try checkOpen(cycle)
            try writes.check()
            cycle.isRollingBack = true
            let state = try strategy.rollback(writes)
            cycle.isRollingBack = false
            counters.add { $0.rollbacks += 1 }
            writes.admitHeld()
            return state
        }
    }

    /// A forced checkpoint may come at the same time as `close`: that is nobody's mistake.
    private func checkOpen(_ cycle: Cycle) throws(EngineError) {
        if cycle.isClosed { throw EngineError(.cancelled, "memory's checkpoints have ended", place: memory.name) }
    }

    /// Notes that a device is going to write into these pages, past the write protection: returns when it may. Waits for a checkpoint where
    /// there is no room.
    /// - Throws: `.ioFailed` when writes can't be tracked any more.
    public func announceDeviceWrite(_ pages: Range<PageIndex>) throws(EngineError) { try writes.announce(pages) }

    /// Waits until nothing of the last checkpoint is left to be done in the background; with a medium it is durable then.
    /// - Throws: why that failed. The checkpoint stands in this process all the same.
    public func settle() throws(EngineError) {
        try cycle.withLock { cycle throws(EngineError) in
            try checkOpen(cycle)
            try strategy.settle()
        }
    }

    /// Pages whose writers wait for a checkpoint because a buffer or log is full.
    public var waitingPages: PageRanges { writes.held }

    /// Pages written since the checkpoint.
    public var writtenPages: PageRanges { writes.written }

    public var statistics: RollbackStatistics {
        var result = counters.current
        strategy.describe(&result)
        return result
    }

    /// Ends tracking and everything that goes on in the background; memory stays as it is, and whoever waits goes on. On a medium the last
    /// durable checkpoint stays. Harmless when it was closed before. Not to be called by `forceCheckpoint`.
    public func close() {
        let wasClosed = cycle.withLock { cycle in
            defer { cycle.isClosed = true }
            return cycle.isClosed
        }
        guard !wasClosed else { return }
        writes.close()
        let thread = forcing.withLock { thread in
            defer { thread = nil }
            return thread
        }
        thread?.join()
        strategy.close()
    }

    private static func answerOverflows(_ writes: FirstWrites, _ counters: RollbackCounters, _ force: @Sendable () -> Void) {
        while writes.waitUntilFull() {
            counters.add { $0.forcedCheckpoints += 1 }
            force()
        }
    }
}
