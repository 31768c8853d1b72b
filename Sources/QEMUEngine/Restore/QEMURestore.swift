// Bringing a checkpoint back as a new QEMU.
//
// Invariants:
// - A QEMU that was not loaded whole does not run: until its state has been taken in, every failure ends it.
// - A machine that runs while its memory arrives is never ended by a failure on our side: it waits for what it has not got.
// - QEMU outlives this process.

import CheckpointCore
import CheckpointStore
import Glibc
import MigrationStream
import QMP
import Threading
import Units

/// One restore of a checkpoint into a QEMU that it starts. Thread-safe; `run` is called once, on a thread that may block.
public final class QEMURestore: Sendable {
    /// What happens while it runs.
    public enum Event: Sendable {
        /// The machine has its state: it runs, or stands where it was paused. Microseconds since 1970, by QEMU's clock where it runs.
        case loaded(atMicroseconds: UInt64, isRunning: Bool)
        /// More has been sent.
        case progress(RestoreCounts)
        /// All memory is in the machine.
        case complete(RestoreCounts)
        /// A lazy restore has broken off: the machine, this process, waits, and can be gone on with.
        case interrupted(EngineError, process: Int32)
    }

    private let source: any CheckpointSource
    private let record: MachineRecord
    private let command: QEMUCommandLine
    private let isLazy: Bool
    private let note: @Sendable (Event) -> Void
    private let child = Lock<ChildProcess?>(nil)
    /// A signal that came before QEMU was there.
    private let early = Lock<Int32?>(nil)
    private let interruption = Lock((isInterrupted: false, signals: 0))

    /// For a lazy restore little is on the way, so that what the machine waits for is not behind much else.
    private static let lazyBuffers = ByteCount.kibibytes(512)
    private static let fullBuffers = ByteCount.mebibytes(4)
    /// How long QEMU may take to end by itself.
    private static let patienceMilliseconds = 5000
    private static let largestDeviceState = ByteCount.mebibytes(256)

    /// - Parameters:
    ///   - note: hears of what happens, from several threads; must be quick.
    /// - Throws: see `CheckpointSource.machineRecord`, `QEMUCommandLine.check`.
    public init(
        _ source: any CheckpointSource, command: QEMUCommandLine, isLazy: Bool, note: @escaping @Sendable (Event) -> Void
    ) throws(EngineError) {
        self.source = source
        self.command = command
        self.isLazy = isLazy
        self.note = note
        record = try source.machineRecord()
        guard record.hypervisor == "qemu" else {
            throw EngineError(.mismatch, "the checkpoint is one of \(record.hypervisor), not of QEMU")
        }
        try command.check(against: record)
    }

    /// Passes a signal on to QEMU, if that runs. A machine that waits for memory may not be able to end in order: the second signal
    /// ends it at once.
    public func signal(_ number: Int32) {
        let isLast = interruption.withLock { interruption in
            if interruption.isInterrupted { interruption.signals += 1 }
            return interruption.signals > 1
        }
        guard let process = child.withLock({ $0 }) else { return early.withLock { $0 = number } }
        // One that can't be sent has nobody to take it.
        try? process.kill(signal: isLast ? SIGKILL : number)
    }

    /// Starts QEMU, loads it, and stays until it ends.
    /// - Returns: how it ended.
    /// - Throws: `.mismatch` when the command line makes another machine than the checkpoint's, `.refused` when QEMU did not take the
    ///   state, what the store throws. No QEMU runs then.
    public func run() throws(EngineError) -> ChildProcess.Status {
        let deviceState = try DeviceState(source.blob(record.deviceStateRegion, limit: Self.largestDeviceState))
        let monitor = try InheritedMonitor()
        if early.withLock({ $0 }) != nil { throw EngineError(.cancelled, "the restore was cancelled") }
        let (process, socket) = try spawn(monitor)
        child.withLock { $0 = process }
        // One that came meanwhile is passed on now.
        if let number = early.withLock({ $0 }) { signal(number) }
        let loading = RestoreLoading(
            process: process, socket: socket, source: source, record: record, deviceState: deviceState, isLazy: isLazy
        ) { event in
            if case .interrupted = event { self.interruption.withLock { $0.isInterrupted = true } }
            self.note(event)
        }
        defer { loading.close() }
        do throws(EngineError) { try loading.run(monitor) } catch {
            throw Self.end(process, because: error)
        }
        while true {
            if let status = try process.wait(timeoutMilliseconds: nil) { return status }
        }
    }

    private func spawn(_ monitor: InheritedMonitor) throws(EngineError) -> (ChildProcess, StreamSocket) {
        let (ours, theirs) = try StreamSocket.pair(bufferBytes: isLazy ? Self.lazyBuffers : Self.fullBuffers)
        var arguments = command.arguments
        if isLazy { arguments += ["-global", "migration.x-postcopy-ram=on"] }
        arguments += ["-incoming", "fd:\(InheritedDescriptor.incoming)"] + InheritedMonitor.arguments
        let process = try ChildProcess.spawn(
            executable: command.executable, arguments: arguments,
            inheriting: [(theirs.descriptor, InheritedDescriptor.incoming)] + monitor.inherited, diesWithParent: false)
        // QEMU alone holds its end, so that it shows when QEMU ends.
        theirs.close()
        return (process, ours)
    }

    /// Ends a QEMU that could not be loaded, and says what is known of the cause.
    private static func end(_ process: ChildProcess, because error: EngineError) -> EngineError {
        var own: ChildProcess.Status?
        // A connection breaks because QEMU gave up: then it ends by itself, right after it has said why.
        if error.code == .connection || error.code == .exited { own = try? process.wait(timeoutMilliseconds: patienceMilliseconds) }
        guard let own else {
            try? process.kill()
            _ = try? process.wait(timeoutMilliseconds: patienceMilliseconds)
            return error
        }
        return EngineError(
            .refused, "QEMU did not take the checkpoint and ended (\(own))",
            remedy: "Its own message is above; use the options that the machine was started with.")
    }
}
