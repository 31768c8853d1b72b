// Going on with a lazy restore whose ckstore has gone: the machine waits, and says itself what it has.
//
// Invariants:
// - Nothing is sent to a machine that was started for another checkpoint.
// - No state of the earlier restore is needed but what QEMU keeps: a note, and a connection to its monitor; which pages it
//   has is asked of it.
// - Nothing here needs QEMU's main loop, which may stand still.

import CheckpointCore
import CLinux
import Glibc
import QMP
import Threading
import Units

/// Goes on with an interrupted lazy restore.
public enum QEMUResume {
    /// How long QEMU may take to notice that its source is gone.
    private static let patienceMilliseconds = 3000
    private static let pollMilliseconds = 50

    /// The process that serves the monitor at the socket `path`.
    /// - Throws: `.notFound`, `.connection`, `.permission` when there is none.
    public static func process(atMonitor path: String) throws(EngineError) -> Int32 {
        let descriptor = unsafe ck_connect_local(path)
        guard descriptor >= 0 else { throw EngineError(system: "connect to the monitor", -descriptor, place: path) }
        defer { ck_close(descriptor) }
        let process = ck_peer_process(descriptor)
        guard process > 0 else { throw EngineError(.connection, "can't see which process serves it", place: path) }
        return process
    }

    /// Feeds the machine in `process` the rest of `source`. Returns when it has everything.
    /// - Parameter progress: hears of what has been sent, from another thread.
    /// - Returns: what was sent.
    /// - Throws: `.busy` when the machine does not wait for that, `.mismatch` when it waits for another checkpoint, `.permission`, what the
    ///   store throws. The machine then goes on waiting.
    public static func run(
        _ source: any CheckpointSource, process: Int32, progress: @escaping @Sendable (RestoreCounts) -> Void
    ) throws(EngineError) -> RestoreCounts {
        let record = try source.machineRecord()
        let handle = ck_pidfd_open(process)
        guard handle >= 0 else { throw EngineError(system: "find process \(process)", -handle) }
        defer { ck_close(handle) }
        let plan = try RestorePlan(record, of: source.id, note: try RestoreNote(of: process, handle: handle))
        let socket = try connect(process, handle)
        let counts = FeedCounts(progress: progress)
        let postcopy = try PostcopySource(plan, socket: socket, counts: counts)
        defer { postcopy.close() }
        try postcopy.resume(source)
        // The main loop goes again: nobody waits for a page any more.
        let descriptor = ck_pidfd_getfd(handle, InheritedDescriptor.client)
        guard descriptor >= 0 else { throw RestoreNote.forbidden(process, -descriptor) }
        let qmp = try QMPClient(adopting: descriptor)
        defer { qmp.close() }
        try PostcopyCapability.clear(qmp)
        return counts.value
    }

    /// A new connection to QEMU, which listens at a socket that only this user can reach.
    private static func connect(_ process: Int32, _ handle: Int32) throws(EngineError) -> StreamSocket {
        let folder = try PrivateFolder()
        defer { folder.remove() }
        let path = folder.path + "/postcopy.sock"
        defer { unsafe unlink(path) }
        try recover(at: path, process, handle)
        let number = unsafe ck_connect_local(path)
        guard number >= 0 else { throw EngineError(system: "connect to the machine", -number, place: path) }
        return StreamSocket(adopting: number)
    }

    /// Lets QEMU listen at `path`. It does so only when it waits.
    private static func recover(at path: String, _ process: Int32, _ handle: Int32) throws(EngineError) {
        let never = Lock(())
        for attempt in 0... {
            do throws(EngineError) {
                return try OutOfBand.execute("migrate-recover", ["uri": .string("unix:\(path)")], in: process, handle: handle)
            } catch {
                guard error.code == .refused else { throw error }
                // Its source may have gone just now, and it has not noticed yet.
                guard attempt < patienceMilliseconds / pollMilliseconds else {
                    throw EngineError(
                        .busy, "the machine does not wait to be gone on with (QEMU says: \(error.reason))",
                        remedy: "It has all of its memory, or another ckstore is feeding it.")
                }
            }
            _ = never.waitFor(milliseconds: pollMilliseconds) { _ -> Void? in nil }
        }
    }
}

/// QEMU's capability for postcopy: left on, it would forbid background snapshots of the machine.
enum PostcopyCapability {
    static func clear(_ qmp: QMPClient) throws(EngineError) {
        let off: JSONValue = ["capability": "postcopy-ram", "state": false]
        try qmp.execute("migrate-set-capabilities", ["capabilities": .array([off])])
    }
}
