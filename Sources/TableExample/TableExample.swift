// How a program keeps checkpoints of its memory: an in-memory table under load that outlives kill -9.
//
// What a program has to do: open a store, register its memory, and call `checkpoint` with a way to stop its writers for the instant.

import ArgumentParser
import CheckpointCore
import CheckpointStore
import Glibc
import LiveCheckpoint
import MachineMemory
import Media
import Threading
import Units

@main
struct TableExample: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "table-example",
        abstract: "An in-memory table that takes checkpoints of itself while it is being written.",
        discussion: """
            Threads move amounts between accounts without a pause; a checkpoint is taken again and again. Kill it whenever you like and start it \
            again: it goes on from the last checkpoint, whose sum is what it was at the start.

            Example:
              table-example table.ck --seconds 10
              table-example table.ck --check
            """)

    @Argument(help: "The store; it is made if it is not there.")
    var store: String
    @Option(help: "How many MiB of accounts a new table has.")
    var mebibytes: UInt64 = 256
    @Option(help: "Threads that move amounts.")
    var threads = 2
    @Option(help: "Seconds to run.")
    var seconds = 10.0
    @Option(help: "Seconds between two checkpoints.")
    var interval = 0.5
    @Flag(help: "Only look whether the last checkpoint is right.")
    var check = false

    private static let region = "accounts"
    /// Checkpoints that are kept.
    private static let kept = 5

    func validate() throws {
        guard (1...1 << 20).contains(mebibytes), (1...64).contains(threads), seconds >= 0, (0...3600).contains(interval) else {
            throw ValidationError("--mebibytes can be 1 to 1048576, --threads 1 to 64; --interval 0 to 3600 seconds; times are not negative.")
        }
    }

    func run() throws {
        let locator = try Locator(store)
        let store = try openStore(locator)
        defer { store.close() }
        let data = StoreBackedDataStore(store)
        let last = try data.latest()
        let table = try last.map { try restore($0, data) } ?? newTable()
        print("\(last ?? "a new table"): \(table.moves) moves, \(table.isConsistent ? "consistent" : "NOT CONSISTENT")")
        fflush(nil)
        guard table.isConsistent else { throw ExitCode(3) }
        if !check { try work(table, store, data, last) }
    }

    private func openStore(_ locator: Locator) throws -> CheckpointStore {
        do { return try CheckpointStore.open(try openMedium(locator, access: check ? .readOnly : .readWrite)) } catch let error as MediumError {
            guard error.code == .notFound, !check else { throw error }
            return try CheckpointStore.create(on: try createMedium(locator, size: .mebibytes(mebibytes * 8 + 256), force: false))
        }
    }

    private func newTable() throws -> Table {
        let table = Table(try GuestMemory(Self.region, byteLength: .mebibytes(mebibytes)))
        table.open()
        return table
    }

    /// Restoring: memory of the region's length, filled with it; and the program's own state.
    private func restore(_ name: String, _ data: StoreBackedDataStore) throws -> Table {
        let source = try data.source(name)
        let memory = try GuestMemory(Self.region, byteLength: try source.region(Self.region).byteLength)
        try MemoryRestore.load(Self.region, of: source, into: memory)
        let state = String(decoding: try source.blob("state", limit: .kibibytes(1)), as: UTF8.self)
        return Table(memory, moves: UInt64(state) ?? 0)
    }

    private func work(_ table: Table, _ store: CheckpointStore, _ data: StoreBackedDataStore, _ last: String?) throws {
        let checkpointer = MemoryCheckpointer(data)
        defer { checkpointer.close() }
        try checkpointer.register(table.memory)
        table.start(threadCount: threads)
        defer { table.stop() }
        let start = now()
        var number = last.flatMap { UInt64($0) } ?? 0
        var first: String? = last
        while now() - start < seconds {
            number += 1
            // Names of one length, so that a list of them is in order.
            let name = String(repeating: "0", count: max(0, 8 - String(number).count)) + String(number)
            var moves: UInt64 = 0
            let report = try checkpointer.checkpoint(name, parent: first) { instant in
                table.between {
                    moves = $0
                    instant()
                }
            } state: {
                Array(String(moves).utf8)
            }
            first = nil
            print(
                "\(name): stop \(Double(report.stopMicroseconds) / 1000) ms, \(report.receipt.newPages) pages stored in "
                    + "\(report.totalMicroseconds / 1000) ms, \(moves) moves")
            // Whoever kills it shall see how far it had come.
            fflush(nil)
            try forgetOld(store)
            usleep(UInt32(interval * 1e6))
        }
    }

    private func forgetOld(_ store: CheckpointStore) throws {
        let all = try store.snapshot().checkpoints().map(\.name)
        let old = all.dropLast(Self.kept)
        if !old.isEmpty { _ = try store.delete(Array(old)) }
    }

    private func now() -> Double { Double(monotonicMicroseconds()) / 1e6 }
}
