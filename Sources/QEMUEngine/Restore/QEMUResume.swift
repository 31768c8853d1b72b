// Going on with a lazy restore whose ckstore has gone: the machine waits, and says itself what it has.
//
// Invariants:
// - Nothing is sent to a machine that was started for another checkpoint, or that has other memory.
// - No state of the earlier restore is needed: what the machine has received is asked of it.

import CheckpointCore
import CLinux
import Glibc
import QMP
import Threading
import Units

/// Goes on with an interrupted lazy restore.
public enum QEMUResume {
    /// How long QEMU may take to notice that its source is gone.
    private static let patienceMilliseconds = 5000

    /// Feeds the machine behind `qmp` the rest of `source`. Returns when it has everything.
    /// - Parameter progress: hears of what has been sent, from another thread.
    /// - Returns: what was sent.
    /// - Throws: `.busy` when the machine does not wait for that, `.mismatch` when it waits for another checkpoint, what the store
    ///   throws. The machine then goes on waiting.
    public static func run(
        _ source: any CheckpointSource, qmp: QMPClient, progress: @escaping @Sendable (RestoreCounts) -> Void
    ) throws(EngineError) -> RestoreCounts {
        let record = try source.machineRecord()
        try checkWaits(qmp)
        if let id = try PrivateMonitor.checkpoint(of: qmp), id != source.id {
            throw EngineError(
                .mismatch, "the machine is being restored from checkpoint \(id), and \(source.name) is \(source.id)",
                remedy: "`ckstore list` shows names and identities.")
        }
        let plan = try RestorePlan(record, machine: try IncomingMachine(qmp))
        let socket = try connect(qmp)
        let counts = FeedCounts(progress: progress)
        let postcopy = try PostcopySource(plan, socket: socket, counts: counts)
        defer { postcopy.close() }
        try postcopy.resume(source)
        try PostcopyCapability.clear(qmp)
        return counts.value
    }

    private static func checkWaits(_ qmp: QMPClient) throws(EngineError) {
        let isDone = Lock(false)
        var status = ""
        for _ in 0..<patienceMilliseconds / 50 {
            status = try qmp.execute("query-migrate")["status"]?.string ?? "none"
            if status == "postcopy-paused" { return }
            // Its source has just gone, and it has not noticed yet; or it is still being served.
            guard status == "postcopy-active" || status == "postcopy-recover" else { break }
            _ = isDone.waitFor(milliseconds: 50) { $0 ? () : nil }
        }
        let explanation =
            switch status {
            case "postcopy-active", "postcopy-recover": "it is being fed by another ckstore"
            case "completed": "all of its memory has arrived"
            default: "no lazy restore of it is under way (\(status))"
            }
        throw EngineError(.busy, "the machine does not wait to be resumed: \(explanation)")
    }

    /// A new connection to QEMU, which listens at a socket that only this user can reach.
    private static func connect(_ qmp: QMPClient) throws(EngineError) -> StreamSocket {
        let folder = try PrivateFolder()
        defer { folder.remove() }
        let path = folder.path + "/postcopy.sock"
        defer { unsafe unlink(path) }
        try qmp.execute("migrate-recover", ["uri": .string("unix:\(path)")])
        let number = unsafe ck_connect_local(path)
        guard number >= 0 else { throw EngineError(system: "connect to the machine", -number, place: path) }
        return StreamSocket(adopting: number)
    }
}

/// QEMU's capability for postcopy: left on, it would forbid background snapshots of the machine.
enum PostcopyCapability {
    static func clear(_ qmp: QMPClient) throws(EngineError) {
        let off: JSONValue = ["capability": "postcopy-ram", "state": false]
        try qmp.execute("migrate-set-capabilities", ["capabilities": .array([off])])
    }
}
