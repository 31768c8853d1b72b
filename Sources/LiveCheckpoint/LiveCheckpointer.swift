// Checkpoints of a running machine: memory and disks copied on write, in the order of the method's flow chart [system A, FIG. 2].
//
// Before the flow chart's stop, memory is protected ahead, so that marking it in the stop [806] concerns only what was written last.
//
// Invariants:
// - The checkpoint is the machine at one instant: the results of disk requests that were under way then are in its memory and disks, and those of
//   later ones are not [claim 23].
// - A checkpoint that fails at any step leaves the machine running, its disks usable and without a lasting overlay, and the store without
//   a trace. What could not be put right at once is tried again by the next checkpoint, and is said.
// - While a machine has a checkpointer, its clean pages stay protected, so that a checkpoint costs what was written since the one before.

import CheckpointCore
import Glibc
import MachineMemory
import StoreFormat
import Threading
import Units
import VirtualDisks

/// Takes checkpoints of one machine. One at a time: calls from several threads queue up. Must be closed before the machine goes.
public final class LiveCheckpointer: Sendable {
    /// How checkpoints are taken.
    public struct Options: Sendable {
        public var memory = CopyOnWriteMemory.Options()
        /// Threads that save.
        public var workers = availableCores()
        /// Called at each step, before it begins.
        public var step: (@Sendable (LiveStep) -> Void)?
        /// Pages of memory saved so far, and all of them.
        public var progress: (@Sendable (PageCount, PageCount) -> Void)?

        public init() {}
    }

    struct State {
        var isBusy = false
        var isClosed = false
        /// What the next checkpoint builds on.
        var parent: String?
        /// Disk checkpoints whose overlays could not be committed yet.
        var unfinished: [DiskCheckpoint] = []
        var overlayCount = 0
    }

    public let machine: any Machine
    let store: any CheckpointDataStore
    let overlayFolder: String
    let options: Options
    let memory: MarkedMemory
    let state = Lock(State())

    /// Registers the machine's memory with the kernel. The machine may be running.
    ///
    /// - Parameters:
    ///   - overlayFolder: an existing folder with room for what the machine writes to its disks during a checkpoint; files that are left there
    ///     by a process that was killed are brought back by `CowFile.recover`.
    /// - Throws: `.permission`, `.unsupported`, `.busy`: see `WriteTrap.init`.
    public init(
        _ machine: any Machine, store: any CheckpointDataStore, overlayFolder: String, options: Options = Options()
    ) throws(EngineError) {
        guard Set(machine.memory.map(\.name)).count == machine.memory.count, Set(machine.disks.map(\.name)).count == machine.disks.count else {
            throw EngineError(.invalidInput, "two pieces of memory or two disks have the same name", remedy: "Give each a name of its own.", place: machine.name)
        }
        self.machine = machine
        self.store = store
        self.overlayFolder = overlayFolder
        self.options = options
        memory = try MarkedMemory(machine.memory, options: options.memory)
        // Reads into memory are writes that don't trap, between checkpoints as well.
        for disk in machine.disks { disk.watch(memory) }
    }

    deinit { close() }

    /// Takes a checkpoint; it is durable when this returns. The machine runs all the time but for the stop.
    ///
    /// - Parameters:
    ///   - parent: what to build on when this is the first checkpoint of this object. Later ones build on the one before.
    ///   - isFull: saves all memory and disks, whatever was written.
    /// - Throws: `.timeout` when the machine does not stop; `.store` and what the store throws; what disks throw. See the invariants above.
    @discardableResult
    public func checkpoint(_ name: String, parent: String? = nil, isFull: Bool = false) throws(EngineError) -> LiveCheckpointReport {
        let last = state.waitFor { state -> String?? in
            precondition(!state.isClosed, "a checkpointer that was closed takes no checkpoints")
            guard !state.isBusy else { return nil }
            state.isBusy = true
            return .some(state.parent)
        }
        defer {
            state.withLock { $0.isBusy = false }
            state.wake()
        }
        try finishOverlays()
        let base = last ?? parent
        let run = CheckpointRun(self, name: name, hasParent: base != nil, isFull: isFull || last == nil)
        do throws(EngineError) {
            let report = try run.take(into: try store.begin(name, parent: base))
            state.withLock { $0.parent = name }
            return report
        } catch {
            throw giveUp(run, error)
        }
    }

    /// Forgets what the last checkpoint was: the next one is a full one. For when that one has been deleted.
    public func forgetParent() {
        state.waitFor { state -> Void? in
            guard !state.isBusy else { return nil }
            state.parent = nil
            return ()
        }
    }

    /// Puts everything back; the error says also what could not be.
    private func giveUp(_ run: CheckpointRun, _ error: EngineError) -> EngineError {
        // An overlay that fails cancels what is under way: it is the reason then.
        var error = run.overlayFailure.withLock { $0 } ?? error
        for problem in run.undo() { error = error.adding(problem) }
        // After the marks were cleared nobody knows any more what this checkpoint would have saved.
        if run.hasClearedMarks { state.withLock { $0.parent = nil } }
        return error
    }

    /// Commits the overlays that an earlier checkpoint had to leave.
    private func finishOverlays() throws(EngineError) {
        while let checkpoint = state.withLock({ $0.unfinished.first }) {
            try checkpoint.commit { (parent) throws(EngineError) in try makeOverlay(checkpoint.disk, over: parent) }
            state.withLock { _ = $0.unfinished.removeFirst() }
        }
    }

    /// An empty copy-on-write file in the folder.
    func makeOverlay(_ disk: VirtualDisk, over parent: OverlayID? = nil) throws(EngineError) -> CowFile {
        let number = state.withLock { state in
            state.overlayCount += 1
            return state.overlayCount
        }
        // The name is ours alone, whatever the disk is called; the file says itself what it belongs to.
        let name = "ckstore-\(getpid())-\(UInt32.random(in: .min ... .max))-\(number).cow"
        return try CowFile.create("\(overlayFolder)/\(name)", geometry: disk.geometry, parent: parent)
    }

    /// Waits for the checkpoint under way, ends the protection of memory, and commits overlays that are left. Harmless to repeat.
    /// - Returns: what could not be committed; the machine's disks go on over their overlays then.
    @discardableResult
    public func close() -> EngineError? {
        let isFirst = state.waitFor { state -> Bool? in
            guard !state.isBusy else { return nil }
            defer { state.isClosed = true }
            return !state.isClosed
        }
        guard isFirst else { return nil }
        for disk in machine.disks { disk.watch(nil) }
        memory.close()
        do throws(EngineError) { try finishOverlays() } catch { return error }
        return nil
    }
}

/// What a checkpoint of a machine came to.
public struct LiveCheckpointReport: Sendable {
    public var receipt: CheckpointReceipt
    /// From before the machine was told to stop until it had been told to go on.
    public var stopMicroseconds: UInt64
    /// Of these: marking memory, capturing the device state, switching the disks, waiting for requests.
    public var markMicroseconds: UInt64
    public var deviceStateMicroseconds: UInt64
    public var switchMicroseconds: UInt64
    public var waitMicroseconds: UInt64
    /// From the call to the end of the commit.
    public var totalMicroseconds: UInt64
    /// The steps that were done, in their order.
    public var steps: [LiveStep]
    /// By the memory's name.
    public var memory: [String: InstantReport]
    /// Bytes of each disk that were read for the store.
    public var diskBytesRead: [String: ByteCount]
    /// Commits of overlays, by the disk's name; one that is missing has failed, and is tried again by the next checkpoint.
    public var commits: [String: CommitReport]
    /// Why commits of overlays failed. The checkpoint is complete all the same.
    public var unfinished: [EngineError]
}
