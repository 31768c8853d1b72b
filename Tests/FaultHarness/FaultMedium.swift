// A handle on a simulated device: what the store engine gets instead of a real medium.
//
// Invariants:
// - A call yields to the simulator first (when there is one), then asks the fault plans, then acts on
//   the device in one step under the device's mutex. So calls are atomic and come in the order of the log.
// - A failing call has done nothing to the device unless its effect says otherwise.

import Foundation
import Media
import Units

/// A handle on a `SimulatedDevice`, as one open of a real medium would be. Thread-safe.
///
/// What the methods promise is said at `Medium`; each can also throw what a fault rule makes it throw,
/// and `killed` once its simulated process is dead.
public final class FaultMedium: Medium {
    struct HandleState {
        var size: ByteCount
        var isClosed = false
        var lastWrite: MediumOffset?
    }

    /// The device behind this and other handles.
    public let device: SimulatedDevice
    /// This handle's number on the device.
    public let number: HandleNumber
    /// Faults that hit this handle alone, after those of the device.
    public let faults = FaultPlan()
    /// The device's traits, read-only when this handle is.
    public let traits: MediumTraits
    /// The device's locator.
    public let name: String
    let process: SimulatedProcess?
    let handle: Guarded<HandleState>

    /// Opens a handle. In a simulation, `SimulatedProcess.open` is the way to get one.
    public convenience init(_ device: SimulatedDevice, isReadOnly: Bool = false) {
        self.init(device, isReadOnly: isReadOnly, process: nil, holder: LockHolder(process: nil, command: "test"))
    }

    init(_ device: SimulatedDevice, isReadOnly: Bool, process: SimulatedProcess?, holder: LockHolder) {
        self.device = device
        self.process = process
        let (number, options, size) = device.state.with { state in
            state.handleCount += 1
            let number = HandleNumber(state.handleCount)
            state.holders[number] = holder
            state.append(.open(name: holder.command, isReadOnly: isReadOnly), by: number)
            return (number, state.options, state.size)
        }
        self.number = number
        name = options.name
        var traits = options.traits
        traits.isReadOnly = isReadOnly
        self.traits = traits
        handle = Guarded(HandleState(size: size))
    }

    public var size: ByteCount { handle.with { $0.size } }
    public var locks: any LockSpace { HandleLocks(medium: self) }

    @discardableResult public func refreshSize() throws(MediumError) -> ByteCount {
        let call = MediumCall(operation: .refreshSize, handle: number)
        if let effect = try begin(call) { throw failure(effect, call) }
        let size = device.size
        handle.with { $0.size = size }
        return size
    }

    public func read(at offset: MediumOffset, into buffer: UnsafeMutableRawBufferPointer) throws(MediumError) {
        let call = MediumCall(operation: .read, handle: number, offset: offset, length: ByteCount(buffer.count))
        let effect = try begin(call)
        try checkRange(call)
        let source = device.state.with { state in
            if state.options.logsReads { state.append(.read(offset, call.length!), by: number) }
            if case .readStale = effect { return state.power.durable }
            return state.visible
        }
        switch effect {
        case nil, .readStale: unsafe source.read(at: offset.rawValue, into: buffer)
        case .misdirect(let elsewhere): unsafe source.read(at: elsewhere.rawValue, into: buffer)
        case .flipBits(let count, let seed):
            unsafe source.read(at: offset.rawValue, into: buffer)
            unsafe FaultMedium.flipBits(count, seed: seed, in: buffer)
        case .shorten(let landed, _)?:
            let count = min(landed.int, buffer.count)
            unsafe source.read(at: offset.rawValue, into: UnsafeMutableRawBufferPointer(rebasing: buffer[..<count]))
            throw failure(effect!, call)
        case .some(let effect): throw failure(effect, call)
        }
    }

    public func write(at offset: MediumOffset, _ bytes: UnsafeRawBufferPointer) throws(MediumError) {
        let call = MediumCall(operation: .write, handle: number, offset: offset, length: ByteCount(bytes.count))
        let effect = try begin(call)
        try checkWritable(call)
        try checkRange(call)
        switch effect {
        case nil:
            if let process, let cut = process.splitPoint(of: bytes.count) {
                unsafe try land(UnsafeRawBufferPointer(rebasing: bytes[..<cut]), at: offset, call)
                try process.step(call)
                unsafe try land(UnsafeRawBufferPointer(rebasing: bytes[cut...]), at: offset + ByteCount(cut), call)
            } else {
                unsafe try land(bytes, at: offset, call)
            }
        case .lose: unsafe try land(bytes, at: offset, call, .lost)
        case .loseAtPowerCut: unsafe try land(bytes, at: offset, call, .never)
        case .delay(let flushes): unsafe try land(bytes, at: offset, call, .afterFlushes(flushes))
        case .misdirect(let elsewhere): unsafe try land(bytes, at: elsewhere, call)
        case .duplicate(let elsewhere):
            unsafe try land(bytes, at: offset, call)
            unsafe try land(bytes, at: elsewhere, call)
        case .flipBits(let count, let seed):
            let copy = UnsafeMutableRawBufferPointer.allocate(byteCount: bytes.count, alignment: 16)
            defer { unsafe copy.deallocate() }
            unsafe copy.copyMemory(from: bytes)
            unsafe FaultMedium.flipBits(count, seed: seed, in: copy)
            unsafe try land(UnsafeRawBufferPointer(copy), at: offset, call)
        case .shorten(let landed, _)?:
            let count = min(landed.int, bytes.count)
            unsafe try land(UnsafeRawBufferPointer(rebasing: bytes[..<count]), at: offset, call)
            throw failure(effect!, call)
        case .some(let effect): throw failure(effect, call)
        }
    }

    public func reserve(at offset: MediumOffset, _ length: ByteCount) throws(MediumError) {
        let call = MediumCall(operation: .reserve, handle: number, offset: offset, length: length)
        let effect = try begin(call)
        try checkWritable(call)
        try checkRange(call)
        if case .lose = effect { return }
        if let effect { throw failure(effect, call) }
        let range = offset.rawValue..<offset.rawValue + length.rawValue
        try device.state.with { state throws(MediumError) in
            guard state.hasRoom(for: range) else { throw full(call) }
            if state.options.traits.reservesSpace { state.reserve(range) }
            state.append(.reserve(offset, length), by: number)
        }
    }

    public func flush() throws(MediumError) {
        let call = MediumCall(operation: .flush, handle: number)
        let effect = try begin(call)
        switch effect {
        case nil: device.state.with { $0.append(.flush, by: number) }
        case .ignoreFlush: device.state.with { $0.append(.ignoredFlush, by: number) }
        case .failFlush(let how)?:
            device.state.with { $0.failFlush(how.fates(count: $0.power.pending.count), by: number) }
            throw error(.flushFailed, call, errno: EIO, reason: "injected flush failure")
        case .some(let effect): throw failure(effect, call)
        }
    }

    public func discard(at offset: MediumOffset, _ length: ByteCount) throws(MediumError) {
        let call = MediumCall(operation: .discard, handle: number, offset: offset, length: length)
        let effect = try begin(call)
        try checkWritable(call)
        try checkRange(call)
        if case .lose = effect { return }
        if let effect { throw failure(effect, call) }
        device.state.with { state in
            let record = state.discard(offset.rawValue..<offset.rawValue + length.rawValue)
            state.append(.discard(offset, length, record), by: number)
        }
    }

    public func resize(to size: ByteCount) throws(MediumError) {
        let call = MediumCall(operation: .resize, handle: number, length: size)
        let effect = try begin(call)
        try checkWritable(call)
        if let effect { throw failure(effect, call) }
        try device.state.with { state throws(MediumError) in
            guard state.options.isResizable else {
                throw error(.unsupported, call, reason: "the size of this medium is fixed")
            }
            if size < state.size { state.visible.truncate(to: size.rawValue) }
            state.size = size
            state.append(.resize(size), by: number)
        }
        handle.with { $0.size = size }
    }

    public func close() {
        let wasClosed = handle.with { handle in
            defer { handle.isClosed = true }
            return handle.isClosed
        }
        guard !wasClosed else { return }
        device.state.with { state in
            state.locks.releaseAll(of: number)
            state.append(.close, by: number)
        }
        device.state.broadcast()
    }
}

extension FaultMedium {
    /// Yields to the simulator, then asks the plans.
    func begin(_ call: MediumCall) throws(MediumError) -> FaultEffect? {
        try process?.step(call)
        var call = call
        call.previousWrite = handle.with { handle in
            precondition(!handle.isClosed, "\(name): used after close")
            defer { if call.operation == .write { handle.lastWrite = call.offset } }
            return handle.lastWrite
        }
        let effect = device.faults.effect(on: call)
        let ownEffect = faults.effect(on: call)
        return effect ?? ownEffect
    }

    private func land(
        _ bytes: UnsafeRawBufferPointer, at offset: MediumOffset, _ call: MediumCall,
        _ persistence: Persistence = .ordinary
    ) throws(MediumError) {
        precondition(
            offset + ByteCount(bytes.count) <= MediumOffset(device.size.rawValue), "a fault leads off the device")
        let record = WriteRecord(
            offset: offset, length: ByteCount(bytes.count), intendedOffset: offset == call.offset ? nil : call.offset,
            persistence: persistence, pieces: unsafe SparseContent.pieces(of: bytes, at: offset.rawValue))
        try device.state.with { state throws(MediumError) in
            guard state.hasRoom(for: offset.rawValue..<offset.rawValue + record.length.rawValue) else {
                throw full(call)
            }
            state.land(record, by: number)
        }
    }

    private func checkWritable(_ call: MediumCall) throws(MediumError) {
        guard !traits.isReadOnly else { throw error(.readOnly, call, reason: "opened for reading only") }
    }

    private func checkRange(_ call: MediumCall) throws(MediumError) {
        guard let offset = call.offset, let length = call.length else { return }
        let limit = min(size, device.size)
        guard let end = offset.checkedAdd(length), end.rawValue <= limit.rawValue else {
            throw error(.outOfRange, call, reason: "the medium ends at \(limit)")
        }
    }

    private func full(_ call: MediumCall) -> MediumError {
        error(.noSpace, call, errno: ENOSPC, reason: "the simulated medium is full")
    }

    /// The error that an effect throws, noted in the log.
    func failure(_ effect: FaultEffect, _ call: MediumCall) -> MediumError {
        let (code, number): (MediumError.Code, Int32) =
            switch effect {
            case .fail(let code, let number): (code, number)
            case .shorten(_, let code): (code, EIO)
            default: preconditionFailure("\(effect) throws nothing")
            }
        device.state.with { $0.append(.failure(call.operation, code), by: self.number) }
        return error(code, call, errno: number, reason: "injected failure")
    }

    func error(_ code: MediumError.Code, _ call: MediumCall, errno: Int32 = 0, reason: String) -> MediumError {
        MediumError(
            code, medium: name, operation: call.operation.rawValue, offset: call.offset, length: call.length,
            errno: errno,
            reason: reason)
    }

    private static func flipBits(_ count: Int, seed: UInt64, in buffer: UnsafeMutableRawBufferPointer) {
        guard unsafe !buffer.isEmpty else { return }
        var generator = SeededGenerator(seed: seed)
        for _ in 0..<count {
            let byte = generator.below(buffer.count)
            unsafe buffer[byte] ^= 1 << UInt8(generator.below(8))
        }
    }
}
