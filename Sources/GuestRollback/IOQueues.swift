// A guest's I/O queues: requests on their way to devices and back.
//
// Invariants:
// - The lists are reached under one lock; devices and processors are called without it.
// - A request is at most once at each half of its device. What a half that has failed still answers is not looked at.
// - While delivery is stopped nothing is put into memory and no processor is told anything; devices go on.

import CheckpointCore
import Threading
import Units

/// The queues of one guest. Thread-safe.
final class IOQueues: Sendable {
    struct State {
        var lists: QueueState
        var failures: [HalfIndex: EngineError] = [:]
        var isDeliveryStopped = true
        var isDelivering = false
        var isClosed = false
    }

    let devices: [MirroredDevice]
    let processors: [any GuestProcessor]
    let memory: TrackedMemory
    let options: GuestOptions
    let rules: any GuestRules
    let pressure: CheckpointPressure
    let state: Lock<State>

    init(
        devices: [MirroredDevice], processors: [any GuestProcessor], memory: TrackedMemory, options: GuestOptions, rules: any GuestRules,
        pressure: CheckpointPressure
    ) {
        self.devices = devices
        self.processors = processors
        self.memory = memory
        self.options = options
        self.rules = rules
        self.pressure = pressure
        state = Lock(State(lists: QueueState(rules: rules)))
    }

    // MARK: Issuing

    /// Takes a request. See `RollbackGuest.submit`.
    func submit(_ request: GuestRequest) throws(EngineError) {
        try check(request)
        var buffer: TransferBuffer?
        if request.operation == .write {
            let data = TransferBuffer(byteLength: request.byteLength)
            unsafe try memory.load(data.bytes, from: request.address)
            buffer = data
        }
        if state.withLock({ $0.lists.keptBytes + request.byteLength > options.keptLimit }) { pressure.demandAndWait() }
        let starts = try state.withLock { (state) throws(EngineError) in
            let expected = state.lists.expected
            guard !expected.contains(request.id) else {
                throw EngineError(.invalidInput, "request \(request.id) is not finished yet", remedy: "Give each request an id of its own.")
            }
            guard expected.count < options.queueDepth else {
                // Held ones wait for a checkpoint, and now the guest waits for them.
                if !state.lists.held.isEmpty { pressure.demand() }
                throw EngineError(.busy, "\(expected.count) requests are not finished", remedy: "Wait for one of them, or allow more.")
            }
            state.lists.issue(request, buffer: buffer)
            return startReady(&state)
        }
        run(starts)
    }

    /// Checks what comes from a guest.
    func check(_ request: GuestRequest) throws(EngineError) {
        func refuse(_ reason: String) -> EngineError {
            EngineError(.invalidInput, "request \(request.id): \(reason)", remedy: "Look at the guest's driver.", place: memory.memory.name)
        }
        guard request.device.rawValue < UInt64(devices.count) else { throw refuse("there is no device \(request.device)") }
        guard request.processor.rawValue < UInt64(processors.count) else { throw refuse("there is no processor \(request.processor)") }
        let device = devices[request.device.int]
        if request.operation == .flush {
            guard request.offset.rawValue == 0, request.byteLength == .zero else { throw refuse("a flush has no bytes") }
            return
        }
        guard request.byteLength > .zero, request.byteLength <= options.largestTransfer else {
            throw refuse("\(request.byteLength) bytes, where 1 to \(options.largestTransfer) are allowed")
        }
        let size = device.byteLength.rawValue
        guard request.offset.rawValue <= size, request.byteLength.rawValue <= size - request.offset.rawValue
        else { throw refuse("\(request.byteLength) bytes at \(request.offset) are not on \(device.name)") }
        guard request.offset.rawValue % device.blockLength.rawValue == 0, request.byteLength.rawValue % device.blockLength.rawValue == 0
        else {
            throw refuse("no whole blocks of \(device.blockLength) bytes on \(device.name)")
        }
        let length = memory.memory.byteLength.rawValue
        guard request.address.rawValue <= length, request.byteLength.rawValue <= length - request.address.rawValue else {
            throw refuse("\(request.byteLength) bytes at \(request.address) are not in the guest's memory")
        }
    }

    // MARK: Devices

    /// What to call when the lock has been released.
    typealias Start = @Sendable () -> Void

    func run(_ starts: [Start]) {
        for start in starts { start() }
        state.wake()
    }

    /// Starts all whose turn it is. Those whose device has failed altogether are finished at once, which may let others go.
    func startReady(_ state: inout State) -> [Start] {
        var starts: [Start] = []
        while true {
            let ready = state.lists.startReady()
            if ready.isEmpty { return starts }
            for queued in ready {
                let working = workingHalves(queued.request.device, state)
                queued.remaining = Set(queued.request.operation == .read ? Array(working.prefix(1)) : working)
                if working.isEmpty { giveUp(queued, &state) }
                for half in queued.remaining.sorted() { starts.append(attempt(queued, half)) }
            }
        }
    }

    private func workingHalves(_ device: DeviceIndex, _ state: State) -> [Int] {
        devices[device.int].halves.indices.filter { state.failures[HalfIndex(device: device, half: $0)] == nil }
    }

    private func giveUp(_ queued: QueuedRequest, _ state: inout State) {
        let device = queued.request.device
        let last = devices[device.int].halves.indices.last!
        let failure = state.failures[HalfIndex(device: device, half: last)] ?? state.failures[HalfIndex(device: device, half: 0)]
        state.lists.finish(queued, .deviceFailed(failure?.description ?? "no device is left"))
    }

    /// The call that has a half carry a request out. Each has a buffer of its own to read into: a half that hangs may fill it much later.
    private func attempt(_ queued: QueuedRequest, _ half: Int) -> Start {
        let request = queued.request
        let device = devices[request.device.int].halves[half]
        switch request.operation {
        case .read:
            let buffer = TransferBuffer(byteLength: request.byteLength)
            return { device.read(at: request.offset, into: buffer) { self.finished(queued, half, buffer, $0) } }
        case .write:
            let buffer = queued.buffer!
            return { device.write(request.id, at: request.offset, buffer) { self.finished(queued, half, nil, $0) } }
        case .flush:
            return { device.flush { self.finished(queued, half, nil, $0) } }
        }
    }

    /// A half answers.
    private func finished(_ queued: QueuedRequest, _ half: Int, _ buffer: TransferBuffer?, _ result: Result<Void, EngineError>) {
        let index = HalfIndex(device: queued.request.device, half: half)
        let starts: [Start] = state.withLock { state in
            guard !state.isClosed, state.failures[index] == nil, queued.remaining.contains(half) else { return [] }
            if case .failure(let error) = result { return failHalf(index, error, &state) + startReady(&state) }
            queued.remaining.remove(half)
            if let buffer { queued.buffer = buffer }
            if queued.remaining.isEmpty { state.lists.finish(queued, .done) }
            return startReady(&state)
        }
        run(starts)
    }

    /// Takes a half out of use. See `RollbackGuest.fail`.
    func fail(_ index: HalfIndex, _ error: EngineError) {
        let starts: [Start] = state.withLock { state in
            guard !state.isClosed, state.failures[index] == nil else { return [] }
            return failHalf(index, error, &state) + startReady(&state)
        }
        run(starts)
    }

    /// A half is out: what it had not finished goes to the other one.
    private func failHalf(_ index: HalfIndex, _ error: EngineError, _ state: inout State) -> [Start] {
        state.failures[index] = error
        let next = rules.failureRedirects ? workingHalves(index.device, state).first : nil
        var starts: [Start] = []
        for queued in state.lists.unfinished where queued.request.device == index.device && queued.remaining.contains(index.half) {
            queued.remaining.remove(index.half)
            if let next, queued.request.operation == .read {
                queued.remaining = [next]
                starts.append(attempt(queued, next))
            } else if queued.remaining.isEmpty {
                // A write has been at the other half since it began, and that one is finished with it, unless it has failed too.
                if next != nil { state.lists.finish(queued, .done) } else { giveUp(queued, &state) }
            }
        }
        return starts
    }
}
