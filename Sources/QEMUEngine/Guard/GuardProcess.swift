// The process that stands by while a checkpoint is taken, and brings the guest back if ckstore is killed.
//
// Invariants:
// - It runs, and has said so, before the first command that stops the guest, protects its memory or changes its disks.
// - It holds the monitor's connection: one that is killed leaves no gap in which somebody else could get in.
// - It touches nothing while ckstore lives.

import CLinux
import CheckpointCore
import DiskCapture
import FoundationEssentials
import Glibc
import QMP

/// The checkpoint's side of its guard.
final class GuardProcess: Sendable {
    let state: GuardState
    private let child: ChildProcess
    private let lifeline: Int32

    private static let readyTimeoutMilliseconds: Int32 = 10_000

    /// Starts a guard for the machine behind `qmp`, and returns when it stands by.
    /// - Parameter command: the executable and its first arguments; it must call `Guard.run` with the rest.
    init(command: [String], qmp: QMPClient, claim: MachineClaim, capabilities: MigrationCapabilities) throws(EngineError) {
        precondition(!command.isEmpty, "a guard needs an executable")
        state = try GuardState()
        var ends: [Int32] = [-1, -1]
        guard unsafe socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0, &ends) == 0 else {
            throw EngineError(system: "create a socket pair", errno)
        }
        lifeline = ends[0]
        let orders = GuardOrders(processID: qmp.processID, capabilities: capabilities)
        do throws(EngineError) {
            child = try ChildProcess.spawn(
                executable: command[0], arguments: Array(command.dropFirst()) + [try orders.encoded()],
                inheriting: [(qmp.descriptor, Guard.connection), (state.descriptor, Guard.words), (ends[1], Guard.lifeline), (claim.descriptor, Guard.claim)],
                diesWithParent: false, inNewSession: true)
        } catch {
            ck_close(ends[0])
            ck_close(ends[1])
            throw error
        }
        ck_close(ends[1])
        try waitUntilReady()
    }

    private func waitUntilReady() throws(EngineError) {
        var descriptor = pollfd(fd: lifeline, events: Int16(POLLIN), revents: 0)
        var byte: UInt8 = 0
        guard unsafe poll(&descriptor, 1, Self.readyTimeoutMilliseconds) == 1, unsafe recv(lifeline, &byte, 1, 0) == 1 else {
            try child.kill()
            try child.wait(timeoutMilliseconds: nil)
            throw EngineError(.ioFailed, "the checkpoint's guard process did not start", remedy: "See its messages above.")
        }
    }

    /// The checkpoint is over and the machine is as it was: the guard may go. Returns when it has.
    func dismiss() {
        state.isDone = true
        shutdown(lifeline, Int32(SHUT_RDWR))
        // How it ends matters to nobody any more.
        _ = try? child.wait(timeoutMilliseconds: nil)
    }

    /// This process could not bring the machine back: the guard goes on trying.
    func takeOver() { shutdown(lifeline, Int32(SHUT_RDWR)) }

    deinit { ck_close(lifeline) }
}

/// What a guard is told when it is started.
struct GuardOrders: Codable {
    var processID: Int32
    var capabilities: MigrationCapabilities

    func encoded() throws(EngineError) -> String {
        do { return String(decoding: try JSONEncoder().encode(self), as: UTF8.self) } catch {
            throw EngineError(.invalidInput, "the guard's orders can't be encoded: \(error)")
        }
    }
}

/// The guard's own side.
public enum Guard {
    /// The numbers under which a guard inherits what it needs.
    static let connection: Int32 = 3
    static let words: Int32 = 4
    static let lifeline: Int32 = 5
    static let claim: Int32 = 6
    private static let triesLimit = 200
    private static let pauseSeconds: UInt32 = 3
    private static let hangTimeoutMilliseconds = 3000

    /// What the guard's process does: stands by, and rescues the machine when ckstore was killed. Blocks until then.
    /// - Parameters:
    ///   - orders: the last argument that the process was started with.
    ///   - report: told what was done, a sentence at a time.
    /// - Throws: what kept it from bringing the machine back.
    public static func run(orders: String, report: (String) -> Void) throws(EngineError) {
        let given: GuardOrders
        do { given = try JSONDecoder().decode(GuardOrders.self, from: Data(orders.utf8)) } catch {
            throw EngineError(.invalidInput, "this is no way to start a guard", remedy: "`ckstore vm checkpoint` starts its own.")
        }
        let state = try GuardState(inherited: words)
        var byte: UInt8 = 1
        guard unsafe send(lifeline, &byte, 1, Int32(MSG_NOSIGNAL)) == 1 else {
            throw EngineError(system: "answer the checkpoint", errno)
        }
        while unsafe recv(lifeline, &byte, 1, 0) < 0, errno == EINTR {}
        guard !state.isDone else { return }
        let rescue = GuestRescue(
            processID: given.processID, mayContinue: state.mayHaveStopped, capabilities: given.capabilities, disks: nil)
        let done = try bringBack(rescue, state)
        report(
            done.isEmpty
                ? "the checkpoint was killed; the guest needed no help" : "the checkpoint was killed; the guard \(done.joined(separator: ", "))")
    }

    /// Tries until it is done, or the machine has ended: a monitor that hangs today in slow I/O answers in the end.
    private static func bringBack(_ rescue: GuestRescue, _ state: GuardState) throws(EngineError) -> [String] {
        for tries in 1... {
            do throws(EngineError) { return try rescue.run(adoptConnection) } catch {
                if error.code == .exited {
                    return try LostMachine.commit(try state.overlays()).map { "committed \($0) into its image, since the machine has ended" }
                }
                if tries == triesLimit { throw error }
            }
            sleep(pauseSeconds)
        }
        preconditionFailure("the tries are limited")
    }

    /// A copy of the inherited connection for each try, since a client closes its own.
    private static func adoptConnection() throws(EngineError) -> QMPClient {
        let copy = fcntl(connection, F_DUPFD_CLOEXEC, 10)
        if copy < 0 { throw EngineError(system: "copy the monitor's connection", errno) }
        return try QMPClient(adopting: copy, timeoutMilliseconds: hangTimeoutMilliseconds)
    }
}
