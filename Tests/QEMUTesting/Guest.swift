// A running guest, and what tests do with it.
//
// Invariants:
// - QEMU never outlives this process, nor the object.
// - Every wait has a limit; what is thrown then has the guest's console.

import CLinux
import CheckpointCore
import Foundation
import QMP

/// A Linux guest under QEMU with the self-checking workload of Tests/Guest in it. May be used by several threads.
public final class Guest: Sendable {
    public let machine: GuestMachine
    /// When the guest gave signs of life.
    public let ticks: TickLog
    /// QEMU's process.
    public let process: pid_t
    /// What the workload said first: after a restore, where it goes on from.
    public let firstStatus: GuestStatus
    private let port: GuestPort
    private let pidfd: Int32
    /// QEMU, where this process started it; kept so that it is reaped.
    private let child: ChildProcess?

    private static let bootLimitSeconds = 60.0

    /// Boots a guest and waits until its workload answers.
    public static func start(_ options: GuestOptions = GuestOptions()) throws -> Guest {
        let machine = try GuestMachine(options)
        let child = try launch(machine)
        do {
            return try Guest(machine, child, limitSeconds: bootLimitSeconds)
        } catch {
            try child.kill()
            throw error
        }
    }

    /// Takes over a machine whose QEMU was started by somebody else, such as `ckstore vm restore`, and waits until its workload
    /// answers. From here on QEMU is this object's to end.
    /// - Parameter launcherTrouble: what whoever starts QEMU said when it has ended without success; nil as long as it has not.
    public convenience init(
        attachingTo machine: GuestMachine, limitSeconds: Double = 60, launcherTrouble: () -> String? = { nil }
    ) throws {
        try self.init(machine, nil, limitSeconds: limitSeconds, launcherTrouble)
    }

    private init(
        _ machine: GuestMachine, _ child: ChildProcess?, limitSeconds: Double, _ launcherTrouble: () -> String? = { nil }
    ) throws {
        let end = Monotonic.now() + UInt64(limitSeconds * 1e9)
        self.machine = machine
        self.child = child
        let control = try Self.connect(machine.controlPath, until: end, launcherTrouble)
        port = GuestPort(descriptor: control)
        process = ck_peer_process(control)
        pidfd = ck_pidfd_open(process)
        ticks = try TickLog(descriptor: Self.connect(machine.ticksPath, until: end, launcherTrouble))
        do {
            firstStatus = try port.command("status", limitSeconds: limitSeconds, repeats: true)
        } catch {
            ck_pidfd_signal(pidfd, SIGKILL)
            throw GuestTrouble("\(error)\n\(machine.messages)")
        }
    }

    deinit {
        kill()
        ck_close(pidfd)
    }

    /// A connection to the monitor that ckstore doesn't use.
    public func monitor() throws -> QMPClient { try QMPClient.connect(path: machine.testMonitorPath) }

    /// Ends QEMU as a power cut would, and waits until it is gone.
    public func kill() {
        ck_pidfd_signal(pidfd, SIGKILL)
        _ = ck_pidfd_wait(pidfd, 10_000)
    }

    public var hasEnded: Bool { ck_pidfd_wait(pidfd, 0) == 1 }

    // MARK: - The workload

    /// The counters.
    @discardableResult
    public func status(limitSeconds: Double = 20) throws -> GuestStatus { try command("status", limitSeconds: limitSeconds) }

    /// Looks at all of the guest's memory and disks, then answers with the counters.
    public func check(limitSeconds: Double = 120) throws -> GuestStatus { try command("check", limitSeconds: limitSeconds) }

    /// Fills memory with content as busy machines have it, which stays as it is.
    public func fill(mebibytes: Int, seed: Int = 1) throws { try command("fill \(mebibytes) \(seed)", limitSeconds: 120) }

    /// Writes into a region in order; nil: as fast as it can.
    public func dirty(pagesPerSecond: Int?, mebibytes: Int) throws {
        try command("dirty \(pagesPerSecond ?? -1) \(mebibytes)", limitSeconds: 60)
    }

    /// Starts writers on every disk, or stops them (0).
    public func writeDisks(threads: Int, pauseMicroseconds: Int = 1000) throws {
        try command("disks \(threads) \(pauseMicroseconds)", limitSeconds: 20)
    }

    /// Lets every answer tell `number`, from now on.
    public func mark(_ number: Int) throws { try command("mark \(number)", limitSeconds: 20) }

    @discardableResult
    private func command(_ text: String, limitSeconds: Double) throws -> GuestStatus {
        do {
            return try port.command(text, limitSeconds: limitSeconds)
        } catch {
            throw GuestTrouble("\(error)\n\(machine.messages)")
        }
    }

    // MARK: - Processes

    /// Starts QEMU; its messages go to the machine's log.
    private static func launch(_ machine: GuestMachine) throws -> ChildProcess {
        let log = unsafe ck_open(machine.logPath, CK_READ_WRITE.rawValue | CK_CREATE.rawValue)
        let nothing = unsafe ck_open("/dev/null", 0)
        guard log >= 0, nothing >= 0 else { throw GuestTrouble("\(machine.logPath): error \(log)") }
        defer {
            ck_close(log)
            ck_close(nothing)
        }
        return try ChildProcess.spawn(
            executable: GuestMachine.program, arguments: machine.arguments,
            inheriting: [(parent: nothing, child: 0), (parent: log, child: 1), (parent: log, child: 2)], diesWithParent: true,
            inNewSession: true)
    }

    /// Connects to a socket of QEMU's as soon as it is there.
    private static func connect(_ path: String, until end: UInt64, _ launcherTrouble: () -> String?) throws -> Int32 {
        while true {
            let descriptor = unsafe ck_connect_local(path)
            if descriptor >= 0 { return descriptor }
            if let trouble = launcherTrouble() { throw GuestTrouble(trouble) }
            guard Monotonic.now() < end else { throw GuestTrouble("\(path): nobody listens (error \(descriptor))") }
            usleep(5000)
        }
    }
}
