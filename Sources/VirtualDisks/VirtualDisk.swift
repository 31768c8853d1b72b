// A machine's disk: asynchronous requests, kept in the order in which they were issued, and checkpoints while it is in use.
//
// Invariants:
// - Requests that overlap, one of them a write, take effect in issue order: a later one is not started before the earlier one's reading or
//   writing has ended. All others run side by side.
// - Nobody is called with the lock held: neither backends, nor overlays' I/O, nor memory, nor completions.

import CheckpointCore
import Threading
import Units

/// A virtual disk. Thread-safe.
public final class VirtualDisk: Sendable {
    /// What people know it by.
    public let name: String
    public let geometry: DiskGeometry
    let parent: any DiskBackend
    let workers: any DiskWorkers
    let rules: any DiskRules
    let state = Lock(DiskState())

    /// A disk whose content is the parent's.
    ///
    /// - Parameters:
    ///   - workers: do what blocks on overlays. They are the caller's and outlive the disk's use.
    ///   - groupSize: what is copied on write as one piece.
    /// - Throws: `.invalidInput` for a parent of no whole number of sectors.
    public convenience init(
        _ name: String, parent: any DiskBackend, workers: any DiskWorkers, groupSize: ByteCount = DiskGeometry.standardGroupSize
    ) throws(EngineError) {
        try self.init(name, parent: parent, workers: workers, groupSize: groupSize, rules: StandardDiskRules())
    }

    package init(
        _ name: String, parent: any DiskBackend, workers: any DiskWorkers, groupSize: ByteCount, rules: any DiskRules
    ) throws(EngineError) {
        self.name = name
        geometry = try DiskGeometry(diskLength: parent.byteLength, groupSize: groupSize)
        self.parent = parent
        self.workers = workers
        self.rules = rules
    }

    /// Starts a request, or puts it behind those that it has to wait for. Returns at once; the request's completion is called when it is
    /// done, perhaps before this returns. Requests that make no sense fail with `.invalidInput`.
    @discardableResult
    public func submit(_ request: DiskRequest) -> RequestID {
        let range = Result { () throws(EngineError) in try request.checkedRange(geometry, place: name) }
        var id = RequestID(UInt64(0))
        act { state in
            state.requestCount += 1
            id = RequestID(state.requestCount)
            guard case .success(let range) = range else { return [] }
            let active = ActiveRequest(id, request, range, geometry)
            // Noted before it happens: a write that fails may have changed something as well.
            if active.operation == .write { state.changed?.insert(active.groups) }
            state.requests.append(active)
            // Under the lock that `watch` takes: whoever watches hears of every read, of those before it from `watch`.
            return announcement(of: active, to: state.observer) + startable(&state)
        }
        if case .failure(let error) = range { request.completion(.failure(error)) }
        return id
    }

    /// Tells somebody of the memory that reads are about to write, those under way among them, from now on; nil: nobody any more.
    public func watch(_ observer: (any DeviceWriteObserver)?) {
        act { state in
            state.observer = observer
            return state.requests.filter { !$0.isDone }.flatMap { announcement(of: $0, to: observer) }
        }
    }

    private func announcement(of request: ActiveRequest, to observer: (any DeviceWriteObserver)?) -> [Action] {
        guard let observer, request.operation == .read, let buffer = request.buffer else { return [] }
        return [{ observer.willBeWritten(buffer.memory, buffer.pages) }]
    }

    /// The requests whose completion has not returned yet, in issue order.
    public var pendingRequests: [PendingRequest] { state.withLock { $0.requests.map(\.summary) } }

    /// Waits until there are no requests. Not to be called by a completion.
    public func drain() { state.waitFor { $0.requests.isEmpty ? () : nil } }

    // MARK: The way of a request

    typealias Action = @Sendable () -> Void

    /// Changes the state, then does what follows from that, outside of the lock.
    func act(_ change: (inout DiskState) -> [Action]) {
        let actions = state.withLock { change(&$0) }
        state.wake()
        for action in actions { action() }
    }

    /// Marks what can be started now as issued; the result starts it.
    func startable(_ state: inout DiskState) -> [Action] {
        var actions: [Action] = []
        for (index, request) in state.requests.enumerated() where request.phase == .waiting {
            guard !state.isHeld || request.isPending, !mustWait(request, for: state.requests[..<index], state) else { continue }
            request.phase = .issued
            actions.append(start(request, state))
        }
        return actions
    }

    private func mustWait(_ later: ActiveRequest, for earlier: ArraySlice<ActiveRequest>, _ state: DiskState) -> Bool {
        // A flush is about writes that have completed.
        guard later.operation != .flush else { return false }
        return earlier.contains { earlier in
            guard earlier.isUnderWay, earlier.operation != .flush, earlier.operation == .write || later.operation == .write else { return false }
            if earlier.range.overlaps(later.range) { return true }
            guard earlier.operation == .write, later.operation == .write, !later.isPending else { return false }
            if earlier.isPending { return rules.holds(later.ruled, forPending: earlier.ruled) }
            // An overlay's group is one writer's at a time.
            return !state.overlays.isEmpty && earlier.groups.overlaps(later.groups)
        }
    }

    private func start(_ request: ActiveRequest, _ state: DiskState) -> Action {
        // What was pending at the instant belongs to the checkpoint as well, whose disk is the parent [claim 23].
        let view = view(request.isPending ? [] : state.overlays)
        let done: DiskCompletion = { self.finished(request, $0) }
        let overlayFailed: DiskView.OverlayFailed = { error in self.state.withLock { _ in request.overlayFailure = error } }
        switch request.operation {
        case .flush: return { view.flush(overlayFailed, done) }
        case .write:
            request.target = view.overlays.first
            return { view.write(request.range, from: request.buffer!.deviceBytes, overlayFailed, done) }
        case .read:
            let memory = request.isPending ? nil : state.checkpoint?.memory
            let rules = rules
            return {
                let buffer = request.buffer!
                let pages = rules.pagesToPreserve(before: buffer)
                if let memory, !pages.isEmpty { memory.preserve(buffer.memory, pages) }
                view.read(request.range, into: buffer.deviceBytes, done)
            }
        }
    }

    func view(_ overlays: [CowFile]) -> DiskView { DiskView(parent: parent, overlays: overlays, geometry: geometry, workers: workers) }

    /// A request's own reading or writing has ended.
    private func finished(_ request: ActiveRequest, _ result: Result<Void, EngineError>) {
        act { state in
            if let error = request.overlayFailure, state.checkpoint?.onFailure != nil { return stall(request, error, &state) }
            request.outcome = result
            request.phase = .settling
            if request.isPending, request.operation == .read, case .success = result {
                return [{ self.considerReissue(request, at: .originalCompleted) }] + startable(&state)
            }
            return deliver(request, &state) + startable(&state)
        }
    }

    /// An overlay has failed, which is the checkpoint's trouble and not the machine's: the request waits until there are no overlays any more,
    /// and is done again.
    private func stall(_ request: ActiveRequest, _ error: EngineError, _ state: inout DiskState) -> [Action] {
        request.phase = .waiting
        request.target = nil
        request.overlayFailure = nil
        state.isHeld = true
        guard state.checkpoint?.overlayFailure == nil, let onFailure = state.checkpoint?.onFailure else { return [] }
        state.checkpoint?.overlayFailure = error
        return [{ onFailure(error) }]
    }

    /// The request is over: its outcome goes to who submitted it.
    func deliver(_ request: ActiveRequest, _ state: inout DiskState) -> [Action] {
        request.phase = .delivering
        return [
            {
                request.completion(request.outcome!)
                self.act { state in
                    request.phase = .delivered
                    state.requests.removeAll { $0 === request }
                    return []
                }
            }
        ]
    }
}
