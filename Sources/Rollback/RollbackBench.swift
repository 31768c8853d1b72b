// What each strategy costs: for a first write, a checkpoint, a rollback, and in memory.
//
// Invariant: all strategies are given the same writes, and what a rollback brings back is checked.

import CheckpointCore
import Glibc
import MachineMemory
import Media
import Threading
import Units

/// Measures the strategies. Blocks for some seconds; uses several times the memory that it measures.
public struct RollbackBench: Sendable {
    public var byteLength = ByteCount.mebibytes(64)
    /// How many pages are written in each epoch, in thousandths of all.
    public var writtenPerMille = 10
    /// How many epochs are measured; figures are medians.
    public var rounds = 9
    /// Where the checkpoint is kept as well; nil: in memory alone. The remote strategy's backup keeps it in memory in any case.
    public var medium: (any Medium)?

    public init() {}

    /// One strategy's figures.
    public struct Row: Sendable, Codable {
        public var kind: RollbackStrategyKind
        public var pages: Int
        public var writtenPages: Int
        /// Of the first write to a page, with its fault.
        public var firstWriteMicroseconds: Double
        /// How long writers stand still for a checkpoint.
        public var checkpointMicroseconds: Double
        /// From then on until nothing is left to do (on a medium: until it is durable), if writers wait for that.
        public var settleMicroseconds: Double
        /// How long writers stand still for a rollback.
        public var rollbackMicroseconds: Double
        /// Memory of this process for shadow and second locations, and what was used of buffer or log.
        public var overheadBytes: UInt64
        /// Memory for bits.
        public var bitmapBytes: UInt64
    }

    /// Measures one strategy. The remote one has its backup on a thread of this process, at the other end of a socket.
    /// - Throws: what strategies throw; `.corrupt` when a rollback brings back something else.
    public func run(_ kind: RollbackStrategyKind) throws(EngineError) -> Row {
        let memory = try GuestMemory("bench", byteLength: byteLength)
        write(1, Array(0..<memory.pageCount.int), memory)
        var options = RollbackOptions()
        var backup: BenchBackup?
        if kind == .postImageRemote {
            let started = try BenchBackup()
            options.connect = { () throws(EngineError) in started.near }
            backup = started
        } else {
            options.medium = medium
        }
        defer { backup?.close() }
        let rollback = try MemoryRollback.make(kind, memory, options: options)
        defer { rollback.close() }
        return try measure(rollback)
    }

    private func measure(_ rollback: MemoryRollback) throws(EngineError) -> Row {
        let memory = rollback.memory
        let pages = writtenPages(of: memory)
        var writes: [Double] = [], checkpoints: [Double] = [], settles: [Double] = [], rollbacks: [Double] = []
        for round in UInt64(0)..<UInt64(rounds) {
            try writes.append(timed { () throws(EngineError) in write(round * 2 + 3, pages, memory) } / Double(pages.count))
            try checkpoints.append(timed { () throws(EngineError) in try rollback.checkpoint(state: [1]) })
            try settles.append(timed { () throws(EngineError) in try rollback.settle() })
            write(round * 2 + 4, pages, memory)
            try rollbacks.append(timed { () throws(EngineError) in _ = try rollback.rollback() })
            for page in pages {
                guard unsafe memory.bytes.load(fromByteOffset: page * pageSize, as: UInt64.self) == round * 2 + 3 else {
                    throw EngineError(.corrupt, "\(rollback.kind) brought back another content of page \(page)", place: memory.name)
                }
            }
        }
        let statistics = rollback.statistics
        return Row(
            kind: rollback.kind, pages: memory.pageCount.int, writtenPages: pages.count, firstWriteMicroseconds: median(writes),
            checkpointMicroseconds: median(checkpoints), settleMicroseconds: median(settles), rollbackMicroseconds: median(rollbacks),
            overheadBytes: (statistics.shadowBytes + statistics.usedBufferBytes).rawValue, bitmapBytes: statistics.bitmapBytes.rawValue)
    }

    /// Spread over the whole memory by a full cycle of a linear congruence, so that no two are the same.
    private func writtenPages(of memory: GuestMemory) -> [Int] {
        let count = memory.pageCount.int
        let step = 7919
        return (0..<max(1, count * writtenPerMille / 1000)).map { ($0 * step + 13) % count }
    }

    private func write(_ value: UInt64, _ pages: [Int], _ memory: GuestMemory) {
        for page in pages { unsafe memory.bytes.storeBytes(of: value, toByteOffset: page * pageSize, as: UInt64.self) }
    }

    private func timed(_ body: () throws(EngineError) -> Void) throws(EngineError) -> Double {
        let start = ContinuousClock.now
        try body()
        return (ContinuousClock.now - start) / .microseconds(1)
    }

    private func median(_ values: [Double]) -> Double { values.sorted()[values.count / 2] }
}

/// A backup on a thread of this process.
private final class BenchBackup: Sendable {
    let near: BackupSocket
    private let server: BackupServer
    private let thread: PlainThread

    init() throws(EngineError) {
        let server = try BackupServer()
        self.server = server
        let (near, far) = try BackupSocket.pair()
        self.near = near
        // The error is the end of the connection.
        guard let thread = PlainThread({ try? server.serve(far) }) else { throw EngineError(.noMemory, "can't start a backup's thread") }
        self.thread = thread
    }

    func close() {
        server.close()
        thread.join()
    }
}
