// Bringing a guest back whose checkpoint failed or was killed, from what QEMU itself says.
//
// Invariants:
// - It can be run at any time, by any process, and again: each step looks first whether there is anything to do.
// - A machine that is being restored lazily is left alone: its missing pages are somebody else's.
// - A guest that somebody else has stopped stays stopped.

import CheckpointCore
import DiskCapture
import Glibc
import LiveMemory
import QMP

/// Brings one machine back to what it was before a checkpoint began.
public struct GuestRescue: Sendable {
    /// The machine's process.
    public var processID: Int32
    /// True when the guest, if it stands still, was stopped for the checkpoint.
    public var mayContinue: Bool
    /// What migration capabilities are to be set to; nil: those that a checkpoint sets go off.
    var capabilities: MigrationCapabilities?
    /// The capture of disks that is under way in this process; nil: what is found in QEMU is cleaned up.
    var disks: DiskCapture?

    private static let pollMicroseconds: UInt32 = 50_000
    private static let snapshotLimitSeconds = 600

    /// A rescue of the machine behind a monitor.
    /// - Parameter mayContinue: whether to let the guest run when it stands still.
    public init(processID: Int32, mayContinue: Bool) {
        self.init(processID: processID, mayContinue: mayContinue, capabilities: nil, disks: nil)
    }

    init(processID: Int32, mayContinue: Bool, capabilities: MigrationCapabilities?, disks: DiskCapture?) {
        self.processID = processID
        self.mayContinue = mayContinue
        self.capabilities = capabilities
        self.disks = disks
    }

    /// Does it.
    ///
    /// - Parameter connect: makes a connection to the machine's monitor; called again after a guest that hung has been freed.
    /// - Returns: what was done, a sentence each; empty when nothing was to be done.
    /// - Throws: the first error, after the steps that could still be taken were taken.
    public func run(_ connect: () throws(EngineError) -> QMPClient) throws(EngineError) -> [String] {
        var done: [String] = []
        let qmp: QMPClient
        do throws(EngineError) { qmp = try connect() } catch {
            guard error.code == .timeout || error.code == .busy else { throw error }
            // The monitor hangs where a page is protected that nobody unprotects.
            done += try releaseMemory()
            qmp = try connect()
        }
        var failure: EngineError?
        for step in [endMigration, freeMemory, resume, resetCapabilities, restoreDisks] {
            do throws(EngineError) { done += try step(qmp) } catch { failure = failure ?? error }
        }
        if let failure { throw failure }
        return done
    }

    // MARK: steps

    /// Waits for the end of a migration into memory that nobody reads any more: it can't fail, and cancelling it would hang the guest.
    private func endMigration(_ qmp: QMPClient) throws(EngineError) -> [String] {
        var waited = false
        for _ in 0..<Self.snapshotLimitSeconds * 1_000_000 / Int(Self.pollMicroseconds) {
            let status = try qmp.execute("query-migrate")["status"]?.string ?? "none"
            guard ["setup", "active", "device", "pre-switchover", "wait-unplug", "cancelling"].contains(status) else {
                return waited ? ["waited for QEMU's own snapshot to end (\(status))"] : []
            }
            waited = true
            usleep(Self.pollMicroseconds)
        }
        throw EngineError(
            .timeout, "QEMU's migration has not ended in \(Self.snapshotLimitSeconds) seconds",
            remedy: "Look at `query-migrate`; run `ckstore vm rescue` again when it has ended.")
    }

    private func freeMemory(_ qmp: QMPClient) throws(EngineError) -> [String] { try releaseMemory() }

    private func releaseMemory() throws(EngineError) -> [String] {
        let report = try UserfaultRescue.release(try TargetProcess(pid: processID))
        return report.released.isEmpty ? [] : ["took write protection off \(report.released.count) ranges of the guest's memory"]
    }

    private func resume(_ qmp: QMPClient) throws(EngineError) -> [String] {
        let status = try qmp.execute("query-status")["status"]?.string ?? ""
        guard mayContinue, ["paused", "postmigrate", "finish-migrate"].contains(status) else { return [] }
        try qmp.continueGuest()
        return ["let the guest run again"]
    }

    private func resetCapabilities(_ qmp: QMPClient) throws(EngineError) -> [String] {
        // A descriptor that was handed over and not used yet; that there is none is the rule.
        do throws(EngineError) { try qmp.execute("closefd", ["fdname": .string(StreamSpool.passedName)]) } catch {
            guard error.code == .refused else { throw error }
        }
        if let capabilities {
            try capabilities.restore(in: qmp)
        } else {
            try MigrationCapabilities.turnOffOurs(in: qmp)
        }
        return []
    }

    private func restoreDisks(_ qmp: QMPClient) throws(EngineError) -> [String] {
        guard let disks else { return try DiskCapture.cleanUp(qmp) }
        try disks.retire(committed: false)
        return []
    }
}
