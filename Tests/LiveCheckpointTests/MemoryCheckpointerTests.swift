// Programs that take checkpoints of their own memory while they work on it.

import CheckpointCore
import CheckpointStore
import FaultHarness
import Glibc
import LiveCheckpoint
import MachineMemory
import StoreTesting
import Testing
import Threading
import Units

struct TestFailure: Error, CustomStringConvertible {
    var description: String
    init(_ description: String) { self.description = description }
}

/// A table of accounts in raw memory: what is moved from one is added to another, so that the sum of all is the same whenever nobody is
/// in the middle of a move.
@safe final class Accounts: @unchecked Sendable {
    let memory: GuestMemory
    let count: Int
    private let gate = Lock(0)
    private let state = Lock((isStopping: false, moves: 0))
    private var threads: [PlainThread] = []

    static func sum(_ memory: GuestMemory) -> Int64 {
        unsafe memory.bytes.bindMemory(to: Int64.self).reduce(0, &+)
    }

    init(byteLength: ByteCount, sharing: GuestMemory.Sharing) throws {
        memory = try GuestMemory("accounts", byteLength: byteLength, sharing: sharing)
        count = byteLength.int / 8
        let values = unsafe memory.bytes.bindMemory(to: Int64.self)
        for index in 0..<count { unsafe values[index] = 1000 }
    }

    func start(writers: Int, seed: UInt64, sleepMicroseconds: UInt32) {
        for number in 0..<writers {
            threads.append(
                PlainThread { [self] in
                    var random = SeededGenerator(seed: seed, UInt64(number))
                    let values = unsafe memory.bytes.bindMemory(to: Int64.self)
                    while !state.withLock({ $0.isStopping }) {
                        gate.withLock { _ in
                            let amount = Int64(random.below(100))
                            unsafe values[random.below(count)] -= amount
                            unsafe values[random.below(count)] += amount
                        }
                        state.withLock { $0.moves += 1 }
                        if sleepMicroseconds > 0 { usleep(sleepMicroseconds) }
                    }
                }!)
        }
    }

    /// Runs `instant` between two moves.
    func stopping(_ instant: MemoryCheckpointer.Instant) { gate.withLock { _ in instant() } }

    var moves: Int { state.withLock { $0.moves } }

    func stop() {
        state.withLock { $0.isStopping = true }
        for thread in threads { thread.join() }
    }
}

@Suite(.serialized) struct MemoryCheckpointerTests {
    @Test(arguments: InstantMethod.allCases, GuestMemory.Sharing.allCases)
    func `a table under load is consistent in every checkpoint, and each is restored by itself`(
        _ method: InstantMethod, _ sharing: GuestMemory.Sharing
    ) async throws {
        let seed = UInt64.random(in: .min ... .max)
        try await onPlainThread {
            let scratch = try ScratchStore(.mebibytes(512))
            let store = StoreBackedDataStore(scratch.store)
            let accounts = try Accounts(byteLength: .mebibytes(16), sharing: sharing)
            let expected = Accounts.sum(accounts.memory)
            var options = MemoryCheckpointer.Options()
            options.method = method
            let checkpointer = MemoryCheckpointer(store, options: options)
            defer { checkpointer.close() }
            try checkpointer.register(accounts.memory)
            accounts.start(writers: 2, seed: seed, sleepMicroseconds: seed % 2 == 0 ? 0 : 50)
            defer { accounts.stop() }
            for round in 0..<6 {
                var moves = 0
                let report = try checkpointer.checkpoint("c\(round)") { instant in
                    accounts.stopping {
                        moves = accounts.moves
                        instant()
                    }
                } state: {
                    [UInt8(round)]
                }
                guard report.receipt.storedBytes > .zero else { throw TestFailure("nothing was stored") }
                usleep(3000)
                guard accounts.moves >= moves else { throw TestFailure("the writers don't go on") }
            }
            for round in 0..<6 {
                let source = try store.source("c\(round)")
                let memory = try GuestMemory("accounts", byteLength: accounts.memory.byteLength, sharing: sharing)
                unsafe memset(memory.bytes.baseAddress!, 7, memory.bytes.count)
                try MemoryRestore.load("accounts", of: source, into: memory)
                guard Accounts.sum(memory) == expected else { throw TestFailure("seed \(seed): the sum of checkpoint \(round) is wrong") }
                guard try source.blob("state", limit: .kibibytes(1)) == [UInt8(round)] else { throw TestFailure("other state") }
            }
            guard try scratch.store.verify().isSound else { throw TestFailure("the store is damaged") }
        }
    }

    @Test func `later checkpoints cost what was written, several regions are of one instant, and names are taken once`() async throws {
        try await onPlainThread {
            let scratch = try ScratchStore()
            let checkpointer = MemoryCheckpointer(StoreBackedDataStore(scratch.store))
            defer { checkpointer.close() }
            let (a, b) = (try GuestMemory("a", byteLength: .mebibytes(8)), try GuestMemory("b", byteLength: .mebibytes(4), sharing: .shared))
            for memory in [a, b] { unsafe memset(memory.bytes.baseAddress!, 3, memory.bytes.count) }
            try checkpointer.register(a)
            try checkpointer.register(b)
            do throws(EngineError) {
                try checkpointer.register(try GuestMemory("a", byteLength: .mebibytes(1)))
                throw EngineError(.ioFailed, "a name was taken twice")
            } catch {
                guard error.code == .invalidInput else { throw error }
            }
            let first = try checkpointer.checkpoint("one")
            unsafe a.bytes[5] = 4
            unsafe b.bytes[100 * pageSize] = 4
            let second = try checkpointer.checkpoint("two")
            guard first.regions["a"]?.wantedPages == PageCount(2048), second.regions["a"]?.wantedPages == PageCount(1),
                second.regions["b"]?.wantedPages == PageCount(1), second.receipt.newPages == PageCount(2)
            else { throw TestFailure("\(first.regions), \(second.regions), \(second.receipt)") }
        }
    }

    @Test func `a store that fails leaves no trace, the program running, and all to the next checkpoint`() async throws {
        let seed = UInt64.random(in: .min ... .max)
        try await onPlainThread {
            for method in InstantMethod.allCases {
                let small = try ScratchStore(.mebibytes(24))
                let accounts = try Accounts(byteLength: .mebibytes(32), sharing: .anonymous)
                var random = SeededGenerator(seed: seed)
                // Bytes that can't be compressed: the store is too small for them.
                let values = unsafe accounts.memory.bytes.bindMemory(to: UInt64.self)
                for index in 0..<accounts.count { unsafe values[index] = random.next() }
                var options = MemoryCheckpointer.Options()
                options.method = method
                let checkpointer = MemoryCheckpointer(StoreBackedDataStore(small.store), options: options)
                defer { checkpointer.close() }
                try checkpointer.register(accounts.memory)
                accounts.start(writers: 1, seed: seed, sleepMicroseconds: 20)
                defer { accounts.stop() }
                do throws(EngineError) {
                    try checkpointer.checkpoint("full", stopping: accounts.stopping)
                    throw EngineError(.ioFailed, "32 MiB went into a store of 24")
                } catch {
                    guard error.storeError?.code == .noSpace else { throw error }
                }
                let moves = accounts.moves
                usleep(50_000)
                guard accounts.moves > moves else { throw TestFailure("\(method): the program stands still") }
                guard try small.store.snapshot().checkpoints().isEmpty, try small.store.verify().isSound else { throw TestFailure("\(method): a trace is left") }
            }
        }
    }
}
