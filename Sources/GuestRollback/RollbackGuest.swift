// A guest that is checkpointed and rolled back alone.
//
// Invariants:
// - Checkpoint and rollback stop this guest and no other. The last checkpoint and, unless a rollback has failed half-way, the present state are
//   each of one moment: memory, processors and requests.
// - A write or flush reaches its device once, whatever is rolled back: it leaves only at a checkpoint, which knows that the guest has
//   issued it, and the guest is never rolled back to an older one.
// - A request that the checkpoint knows as unfinished completes once in the life that goes on from there: by its device, or from its kept buffer.
// - A checkpoint that fails leaves the last one whole and the guest running.

import CheckpointCore
import MachineMemory
import Threading
import Units

/// One guest: memory, processors, devices. Thread-safe.
///
/// Before the first `checkpoint` nothing can be rolled back and no write leaves. Its owner ends it with `close`.
public final class RollbackGuest: Sendable {
    public let name: String
    let processors: [any GuestProcessor]
    let memory: TrackedMemory
    let queues: IOQueues
    let options: GuestOptions
    let rules: any GuestRules
    let pressure = CheckpointPressure()
    /// Held for the whole of a checkpoint, a rollback, a save.
    let saved: Lock<Saved>
    private let life = Lock(Life())

    /// The last checkpoint, besides what the log and the lists have of it.
    struct Saved {
        var states: [[UInt8]]?
        var readOnlyPages = PageRanges()
        /// A rollback has begun and has not come to its end: what the guest is now belongs to no moment.
        var isTorn = false
        /// Where the checkpoint was saved last, or one before it.
        var lastSave: CheckpointID?
    }

    private struct Life {
        var threads: [PlainThread] = []
        var isClosed = false
        var failure: EngineError?
        var forcedCheckpoints: UInt64 = 0
    }

    /// Makes a guest of its parts. Its processors stand still, and go on with its first checkpoint.
    ///
    /// - Throws: `.permission`, `.unsupported` when writes to the memory can't be caught; `.busy` when somebody else catches them.
    public convenience init(
        _ name: String, memory: GuestMemory, processors: [any GuestProcessor], devices: [MirroredDevice] = [],
        options: GuestOptions = GuestOptions()
    ) throws(EngineError) {
        try self.init(name, memory: memory, processors: processors, devices: devices, options: options, rules: StandardGuestRules())
    }

    package init(
        _ name: String, memory: GuestMemory, processors: [any GuestProcessor], devices: [MirroredDevice], options: GuestOptions,
        rules: any GuestRules
    ) throws(EngineError) {
        precondition(!processors.isEmpty && options.queueDepth > 0, "a guest has a processor and room for requests")
        self.name = name
        self.processors = processors
        self.options = options
        self.rules = rules
        saved = Lock(Saved())
        self.memory = try TrackedMemory(memory, limit: options.logLimit, pressure: pressure)
        queues = IOQueues(
            devices: devices, processors: processors, memory: self.memory, options: options, rules: rules, pressure: pressure)
        for body in [{ @Sendable in self.queues.deliver() }, { @Sendable in self.takeCheckpoints() }] {
            guard let thread = PlainThread(body) else {
                close()
                throw EngineError(.noMemory, "can't start a guest's threads", remedy: "End other threads.", place: name)
            }
            life.withLock { $0.threads.append(thread) }
        }
    }

    deinit { precondition(life.withLock { $0.isClosed }, "a guest is closed by its owner") }

    /// Ends everything: the processors stand still, nobody is tracked or told any more. What devices have under way they finish. Held requests are
    /// forgotten. Harmless when that was done before. A step that fails shows in `failure`, and the others are done.
    public func close() {
        let threads: [PlainThread]? = life.withLock { life in
            if life.isClosed { return nil }
            life.isClosed = true
            defer { life.threads = [] }
            return life.threads
        }
        guard let threads else { return }
        pressure.end()
        saved.withLock { _ in
            for processor in processors { note { () throws(EngineError) in try processor.pause() } }
        }
        queues.close()
        for thread in threads { thread.join() }
        note { () throws(EngineError) in try memory.close() }
    }

    /// Carries out a step of an end that goes on whatever happens; what happened is to be seen in `failure`.
    private func note(_ step: () throws(EngineError) -> Void) {
        do throws(EngineError) { try step() } catch { life.withLock { $0.failure = $0.failure ?? error } }
    }

    // MARK: The guest's side

    /// Stores bytes for a processor. A page that is not logged yet keeps the store waiting for microseconds; a full log, until the guest is
    /// being stopped for a checkpoint. When a page is really read-only the processor is told by `violation` before this returns.
    ///
    /// - Throws: `.invalidInput` when the bytes are not in the memory; `.ioFailed` when the memory itself fails.
    @discardableResult
    public func store(
        _ bytes: UnsafeRawBufferPointer, at address: GuestAddress, by processor: ProcessorIndex
    ) throws(EngineError) -> StoreOutcome {
        let outcome = unsafe try memory.store(bytes, at: address)
        if case .readOnly(let page) = outcome { processors[processor.int].violation(at: page) }
        return outcome
    }

    /// Copies bytes out of the guest's memory.
    /// - Throws: `.invalidInput` when they are not in the memory.
    public func load(_ buffer: UnsafeMutableRawBufferPointer, from address: GuestAddress) throws(EngineError) {
        unsafe try memory.load(buffer, from: address)
    }

    /// Makes pages really read-only, for processors and devices, or writable again. Part of the guest's state: a rollback undoes it.
    ///
    /// - Throws: `.invalidInput` for pages that the memory has not, or parts of huge pages; `.noMemory` when the mapping has too many pieces.
    public func setReadOnly(_ pages: Range<PageIndex>, _ isReadOnly: Bool = true) throws(EngineError) {
        try memory.setReadOnly(pages, isReadOnly)
    }

    /// Issues a request for a processor. What is written is copied before this returns. Reads go to their device at once, writes and flushes with
    /// the next checkpoint; requests for the same bytes take effect in the order of their issue.
    ///
    /// It may wait for the guest to be stopped for a checkpoint when too much is kept.
    ///
    /// - Throws: `.invalidInput` for a request that can't be meant; `.busy` when too many are unfinished: the guest waits for one first. When some
    ///   of them are held, a checkpoint is asked for.
    public func submit(_ request: GuestRequest) throws(EngineError) { try queues.submit(request) }

    // MARK: The owner's side

    /// Takes a half of a device out of use, as when it had answered with an error: one that hangs. Its unfinished requests go to the
    /// alternate. The guest hears of it only when there is none.
    public func fail(_ device: DeviceIndex, half: Int, because reason: String) {
        precondition(
            device.int < queues.devices.count && queues.devices[device.int].halves.indices.contains(half), "one of the guest's devices")
        let name = queues.devices[device.int].halves[half].name
        queues.fail(HalfIndex(device: device, half: half), EngineError(.ioFailed, reason, remedy: "Replace the device.", place: name))
    }

    /// Devices that have failed, with what each said.
    public var failedDevices: [EngineError] { queues.state.withLock { Array($0.failures.values) } }
    /// Why a checkpoint that nobody asked for could not be taken: none is after it, and the log grows as it must. Or what went wrong when the guest
    /// was closed.
    public var failure: EngineError? { life.withLock { $0.failure } }
    /// How many checkpoints were forced by a full log or too many kept buffers.
    public var forcedCheckpoints: UInt64 { life.withLock { $0.forcedCheckpoints } }
    /// How often a writer waited for a page to be logged.
    public var trackingFaults: UInt64 { memory.trackingFaults }
    /// What has been written since the checkpoint.
    public var loggedPages: PageCount { memory.loggedPages }
    /// The guest's requests at this moment.
    public var queueReport: GuestQueueReport {
        queues.state.withLock { state in
            GuestQueueReport(
                held: state.lists.held.map(\.request.id), unfinished: state.lists.unfinished.map(\.request.id),
                completed: state.lists.completed.map(\.request.id), keptBytes: state.lists.keptBytes)
        }
    }

    var isClosed: Bool { life.withLock { $0.isClosed } }

    /// Waits until nothing is left that could be delivered. False: not before `milliseconds` have passed.
    package func waitUntilSettled(milliseconds: Int) -> Bool {
        queues.state.waitFor(milliseconds: milliseconds) { state in
            !state.isDelivering && !state.lists.hasDelivery ? true : nil
        } ?? false
    }

    /// Whether there are reads that the guest issued before a rollback and has not issued again.
    package var hasDisownedReads: Bool {
        queues.state.withLock { $0.lists.hasDisownedReads }
    }

    /// Takes the checkpoints that nobody asks for: forced ones, and those at intervals.
    private func takeCheckpoints() {
        while true {
            let call = pressure.nextCall(milliseconds: options.intervalMilliseconds)
            if call == .end { return }
            if call == .interval, !isDue { continue }
            do throws(EngineError) {
                _ = try checkpoint()
                if call == .demand { life.withLock { $0.forcedCheckpoints += 1 } }
            } catch {
                life.withLock { $0.failure = $0.failure ?? error }
                // Whoever waits goes on: the log grows past its bound rather than losing something.
                return pressure.end()
            }
        }
    }

    /// Whether there is something to checkpoint, and a guest that can be.
    private var isDue: Bool {
        let canBe = saved.withLock { $0.states != nil && !$0.isTorn }
        return canBe && (memory.loggedPages > .zero || queues.state.withLock { !$0.lists.held.isEmpty || !$0.lists.delivered.isEmpty })
    }
}
