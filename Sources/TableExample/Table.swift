// An in-memory table: accounts between which amounts are moved, all the time, by several threads.
//
// Invariant: whenever no thread is in the middle of a move, the sum of all accounts is what it was at the start. A checkpoint that mixed two
// moments would have another sum.

import Glibc
import MachineMemory
import Threading
import Units

/// Accounts in raw memory.
@safe final class Table: @unchecked Sendable {
    static let startAmount: Int64 = 1000

    let memory: GuestMemory
    private let accounts: UnsafeMutableBufferPointer<Int64>
    /// Held for each move, and for the instant of a checkpoint.
    private let gate = Lock(Progress())
    private var threads: [PlainThread] = []

    private struct Progress {
        var moves: UInt64 = 0
        var isStopping = false
    }

    /// A table in `memory`, with what is there.
    /// - Parameter moves: those that have made it what it is.
    init(_ memory: GuestMemory, moves: UInt64 = 0) {
        self.memory = memory
        unsafe accounts = memory.bytes.bindMemory(to: Int64.self)
        gate.withLock { $0.moves = moves }
    }

    /// Gives every account the same amount.
    func open() { unsafe accounts.update(repeating: Self.startAmount) }

    var moves: UInt64 { gate.withLock { $0.moves } }

    /// Whether the sum is right. Nobody moves anything meanwhile.
    var isConsistent: Bool {
        gate.withLock { _ in unsafe accounts.reduce(0, &+) == Self.startAmount * Int64(accounts.count) }
    }

    /// Runs `body` between two moves, with their number.
    func between(_ body: (UInt64) -> Void) { gate.withLock { body($0.moves) } }

    /// Starts threads that move amounts until `stop`.
    func start(threadCount: Int) {
        for _ in 0..<threadCount {
            guard let thread = PlainThread({ [self] in work() }) else { break }
            threads.append(thread)
        }
    }

    private func work() {
        var random = SystemRandomNumberGenerator()
        var isStopping = false
        while !isStopping {
            let (from, to) = (Int.random(in: 0..<(unsafe accounts.count), using: &random), Int.random(in: 0..<(unsafe accounts.count), using: &random))
            let amount = Int64.random(in: 0..<100, using: &random)
            gate.withLock { progress in
                unsafe accounts[from] &-= amount
                unsafe accounts[to] &+= amount
                progress.moves += 1
                isStopping = progress.isStopping
            }
        }
    }

    func stop() {
        gate.withLock { $0.isStopping = true }
        for thread in threads { thread.join() }
        threads = []
    }
}
