// One QEMU that has been started and is being loaded.
//
// Invariants:
// - Nothing is sent before the machine has been compared with the checkpoint.
// - Once the machine has its state, nothing here ends it.

import CheckpointCore
import CheckpointStore
import Glibc
import MigrationStream
import QMP
import Threading
import Units

/// Loads one QEMU. `run` is called once, `close` at the end.
final class RestoreLoading: Sendable {
    private struct State {
        var feeder: PlainThread?
        /// How feeding ended.
        var outcome: Result<Void, EngineError>?
        var isLoaded = false
        var postcopy: PostcopySource?
    }
    private let process: ChildProcess
    private let socket: StreamSocket
    private let source: any CheckpointSource
    private let record: MachineRecord
    private let deviceState: DeviceState
    private let isLazy: Bool
    private let note: @Sendable (QEMURestore.Event) -> Void
    private let counts: FeedCounts
    private let state = Lock(State())

    private static let pollMilliseconds = 50
    /// How long a QEMU that ends may live on after its connections have gone.
    private static let endingMilliseconds = 500
    /// QEMU takes memory to put a page of that size in its place in one go; larger ones would stall the machine for long.
    private static let largestLazyPage = UInt64(2) << 20

    init(
        process: ChildProcess, socket: StreamSocket, source: any CheckpointSource, record: MachineRecord, deviceState: DeviceState,
        isLazy: Bool, note: @escaping @Sendable (QEMURestore.Event) -> Void
    ) {
        self.process = process
        self.socket = socket
        self.source = source
        self.record = record
        self.deviceState = deviceState
        self.isLazy = isLazy
        self.note = note
        counts = FeedCounts { note(.progress($0)) }
    }

    /// Loads it. Returns when the machine has its state; a lazy restore then goes on by itself.
    func run(_ monitor: InheritedMonitor) throws(EngineError) {
        // Pages are read while QEMU starts.
        let feed = isLazy ? nil : try fullFeed()
        do throws(EngineError) {
            let qmp = try monitor.connect()
            let plan = try RestorePlan(record, machine: try IncomingMachine(qmp))
            try begin(plan, feed, monitor, qmp)
            try waitUntilLoaded(qmp)
        } catch {
            feed?.close()
            throw error
        }
    }

    /// Breaks off what is under way and waits for it. Harmless when done twice.
    func close() {
        socket.shutDown()
        let (feeder, postcopy) = state.withLock { state in
            defer { state.feeder = nil }
            return (state.feeder, state.postcopy)
        }
        postcopy?.close()
        feeder?.join()
    }

    private func fullFeed() throws(EngineError) -> PageFeed {
        var blocks: [PageFeed.Block] = []
        for block in record.memoryBlocks { blocks.append(PageFeed.Block(region: try source.region(block.region))) }
        return try PageFeed(blocks)
    }

    // MARK: feeding

    /// Starts the thread that sends.
    private func begin(
        _ plan: RestorePlan, _ feed: PageFeed?, _ monitor: InheritedMonitor, _ qmp: QMPClient
    ) throws(EngineError) {
        if let feed {
            try start { () throws(EngineError) in
                defer { feed.close() }
                try FullStream.feed(plan, deviceState: self.deviceState, from: feed, to: self.socket, counts: self.counts)
                self.note(.complete(self.counts.value))
            }
            return
        }
        if let block = plan.blocks.first(where: { $0.pageBytes > Self.largestLazyPage }) {
            throw EngineError(
                .unsupported, "the RAM block \(block.name) has host pages of \(RestorePlan.size(block.pageBytes))",
                remedy: "Restore it without --lazy, or use pages of 2 MiB at most.", place: block.name)
        }
        // Before anything is sent: from then on somebody else may have to go on.
        try RestoreNote(plan, of: source.id).write(to: monitor.note)
        let postcopy = try PostcopySource(plan, socket: socket, counts: counts)
        state.withLock { $0.postcopy = postcopy }
        try start { () throws(EngineError) in
            try postcopy.start(self.source, deviceState: self.deviceState)
            // Left on, it would forbid background snapshots of this machine.
            try PostcopyCapability.clear(qmp)
            self.note(.complete(self.counts.value))
        }
    }

    private func start(_ body: @escaping @Sendable () throws(EngineError) -> Void) throws(EngineError) {
        let thread = PlainThread {
            let outcome: Result<Void, EngineError>
            do throws(EngineError) { outcome = .success(try body()) } catch { outcome = .failure(error) }
            let isLoaded = self.state.withLock { state in
                state.outcome = outcome
                return state.isLoaded
            }
            self.state.wake()
            if isLoaded { self.tellOfInterruption() }
        }
        guard let thread else { throw EngineError(.noMemory, "can't start a thread that feeds the machine") }
        state.withLock { $0.feeder = thread }
    }

    /// Says that feeding broke off, if it did and the machine is still there.
    private func tellOfInterruption() {
        guard case .failure(let error) = state.withLock({ $0.outcome }) else { return }
        // A QEMU that ends takes its connections with it, and that is nothing to tell.
        if (try? process.wait(timeoutMilliseconds: Self.endingMilliseconds)) ?? nil != nil { return }
        note(.interrupted(error, process: process.pid))
    }

    // MARK: waiting

    /// Waits until the machine has its state.
    /// - Throws: why it never will.
    private func waitUntilLoaded(_ qmp: QMPClient) throws(EngineError) {
        while true {
            if case .failure(let error) = state.withLock({ $0.outcome }) {
                // It may have come after all: then the machine runs, and is not to be touched.
                guard isLazy, try qmp.execute("query-status")["status"]?.string != "inmigrate" else { throw error }
                return loaded(qmp, isRunning: true)
            }
            do throws(EngineError) {
                _ = try qmp.waitForEvent(after: 0, timeoutMilliseconds: Self.pollMilliseconds) { $0.name == "RESUME" }
                return loaded(qmp, isRunning: true)
            } catch { guard error.code == .timeout else { throw error } }
            // A machine that was paused, or is to be (-S), stands still when it has been loaded.
            let status = try qmp.execute("query-status")["status"]?.string
            if let status, status != "inmigrate" { return loaded(qmp, isRunning: status == "running") }
        }
    }

    private func loaded(_ qmp: QMPClient, isRunning: Bool) {
        let event = qmp.events(after: 0).first { $0.name == "RESUME" }
        let instant = event.map { UInt64(clamping: $0.timestampMicroseconds) } ?? wallClockNanoseconds() / 1000
        note(.loaded(atMicroseconds: instant, isRunning: isRunning))
        let hasEnded = state.withLock { state in
            state.isLoaded = true
            return state.outcome != nil
        }
        if hasEnded { tellOfInterruption() }
    }
}
