// Strategies for tests: made the same way for all six.

import CheckpointCore
import FaultHarness
import Glibc
import MachineMemory
import Rollback
import Threading
import Units

/// A backup in this process, which its strategy reaches over a real socket.
final class LocalBackup: Sendable {
    let server: BackupServer
    private let threads = Lock<[PlainThread]>([])
    /// Why connections were ended.
    let errors = Lock<[EngineError]>([])

    init(_ options: BackupOptions = BackupOptions()) throws { server = try BackupServer(options) }

    /// A connection, served by a thread of its own.
    func connect() throws(EngineError) -> BackupSocket { try BackupSocket(adopting: connectRaw()) }

    /// The descriptor of a connection.
    func connectRaw() throws(EngineError) -> Int32 {
        var ends: [Int32] = [0, 0]
        guard unsafe socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0, &ends) == 0 else {
            throw EngineError(system: "make sockets", errno)
        }
        try serve(try BackupSocket(adopting: ends[1]))
        return ends[0]
    }

    func serve(_ socket: BackupSocket) throws(EngineError) {
        let thread = PlainThread { [server, errors] in
            do throws(EngineError) { try server.serve(socket) } catch { errors.withLock { $0.append(error) } }
        }
        guard let thread else { throw EngineError(.noMemory, "no thread") }
        threads.withLock { $0.append(thread) }
    }

    /// Ends all connections and waits for their threads.
    func close() {
        server.close()
        let threads = threads.withLock { threads in
            defer { threads = [] }
            return threads
        }
        for thread in threads { thread.join() }
    }
}

/// Runs `body` with a strategy at work on `memory`, and ends it however that ends. The remote one gets a backup in this process unless the
/// options have one.
func withRollback(
    _ kind: RollbackStrategyKind, _ memory: GuestMemory, state: [UInt8] = [], options: RollbackOptions = RollbackOptions(),
    rules: any RollbackRules = StandardRollbackRules(), _ body: (MemoryRollback) throws -> Void
) throws {
    var options = options
    var backup: LocalBackup?
    if kind == .postImageRemote, options.connect == nil {
        var backupOptions = BackupOptions()
        backupOptions.stagingCapacity = options.capacity
        backupOptions.medium = options.medium
        options.medium = nil
        let local = try LocalBackup(backupOptions)
        options.connect = { () throws(EngineError) in try local.connect() }
        backup = local
    }
    defer { backup?.close() }
    let rollback = try MemoryRollback.make(kind, memory, state: state, options: options, rules: rules)
    defer { rollback.close() }
    try body(rollback)
}
