// The medium behind any number of simulated handles and processes.
//
// Invariants:
// - Readers see `visible`: every write that has returned. `power` knows what would survive a power cut.
//   A flush through any handle covers the writes of all.
// - Everything that changes state is in the log, in the order it happened; the log and the state
//   at its start (`origin`) are enough to rebuild the device at any point in between.
// - One mutex guards all of it; the fault plan has its own and is consulted before, never under, it.

import Foundation
import Media
import Units

/// A medium in memory that remembers what was done to it, and what of it a power cut may lose.
///
/// Thread-safe. Sparse: costs memory for the blocks that were written and for the log.
public final class SimulatedDevice: Sendable {
    /// What a discarded range reads as afterwards.
    public enum DiscardBehaviour: Sendable { case zeros, garbage, kept }

    /// What the device is like.
    public struct Options: Sendable {
        /// The locator that handles report.
        public var name = "file:simulated"
        /// What handles report; `isReadOnly` is decided by each handle.
        public var traits = MediumTraits(
            kind: .file, isReadOnly: false, isPersistent: true, isPersistentMemory: false, reservesSpace: true,
            directAlignment: 4096, eraseUnit: .zero, writeMethod: "simulated")
        /// How much may be allocated by writing and reserving, in whole blocks of 4 KiB; nil: all of it.
        public var capacityLimit: ByteCount?
        /// What a discard does.
        public var discardBehaviour = DiscardBehaviour.zeros
        /// Whether the size can be changed.
        public var isResizable = true
        /// Whether reads are logged: off by default, they are many and change nothing.
        public var logsReads = false
        /// A file of changeable size on a medium without limits.
        public init() {}
    }

    struct State {
        var options: Options
        var size: ByteCount
        var visible: SparseContent
        var power: PowerState
        var origin: PowerState
        var log: [DeviceEvent] = []
        var locks = SimulatedLockTable()
        var holders: [HandleNumber: LockHolder] = [:]
        var handleCount = 0
        var reserved: Set<UInt64> = []
        /// Blocks written or reserved; counted only while there is a capacity limit.
        var allocated: Set<UInt64>?
    }

    let state: Guarded<State>
    /// Faults of the device itself: they hit every handle. Handles can have plans of their own as well.
    public let faults = FaultPlan()

    /// An empty device whose bytes are all zero.
    public convenience init(size: ByteCount, options: Options = Options()) {
        self.init(content: SparseContent(), size: size, options: options)
    }

    /// A device with this content, all of it durable.
    convenience init(content: SparseContent, size: ByteCount, options: Options) {
        let power = PowerState(durable: content, durableSize: size)
        self.init(State(options: options, size: size, visible: content, power: power, origin: power))
    }

    private init(_ state: State) {
        var state = state
        state.allocated = state.options.capacityLimit == nil ? nil : state.visible.blockIndexes
        self.state = Guarded(state)
    }

    /// What the device is like. The capacity limit can be changed at any time.
    public var options: Options { state.with { $0.options } }
    /// The capacity as it is now.
    public var size: ByteCount { state.with { $0.size } }
    /// Everything that has happened since the device was made or the log was last forgotten.
    public var log: [DeviceEvent] { state.with { $0.log } }
    /// How many events the log holds.
    public var logCount: Int { state.with { $0.log.count } }
    /// How many changes no flush has covered.
    public var unflushedCount: Int { state.with { $0.power.pending.count } }

    /// A device of its own with the same visible and durable content and the same unflushed writes, an
    /// empty log, no handles, locks or faults. O(recently changed blocks).
    public func fork() -> SimulatedDevice {
        state.with { state in
            state.visible.consolidate()
            var copy = State(
                options: state.options, size: state.size, visible: state.visible, power: state.power,
                origin: state.power)
            copy.reserved = state.reserved
            return SimulatedDevice(copy)
        }
    }

    /// Starts the log anew: crash points count from here.
    public func forgetLog() {
        state.with { state in
            state.origin = state.power
            state.log = []
        }
    }

    /// Notes something in the log, so that a check knows whether it came before the crash.
    public func mark(_ text: String) {
        state.with { $0.append(.mark(text), by: nil) }
    }

    /// Changes how much may be allocated; nil lifts the limit. What is allocated already stays so.
    public func setCapacityLimit(_ limit: ByteCount?) {
        state.with { state in
            state.options.capacityLimit = limit
            state.allocated = limit == nil ? nil : state.visible.blockIndexes.union(state.reserved)
        }
    }

    /// How much is allocated by writes and reservations, in whole blocks.
    public var allocated: ByteCount {
        state.with { state in
            let blocks = state.allocated ?? state.visible.blockIndexes.union(state.reserved)
            return ByteCount(blocks.count * Block.size)
        }
    }

    /// The visible bytes of a range, past all fault plans and without an event.
    public func bytes(at offset: MediumOffset, count: Int) -> [UInt8] {
        state.with { $0.visible }.bytes(at: offset.rawValue, count: count)
    }

    /// The bytes of a range as a power cut that loses every unflushed write would leave them.
    public func durableBytes(at offset: MediumOffset, count: Int) -> [UInt8] {
        state.with { $0.power.durable }.bytes(at: offset.rawValue, count: count)
    }

    /// Who holds which lock bytes, one line each.
    public var lockSummary: [String] {
        state.with { state in
            state.locks.held.map { lock in
                let holder = state.holders[lock.owner].map { "\($0)" } ?? "nobody"
                return "\(lock.owner) of \(holder): \(lock.mode) \(lock.range)"
            }
        }
    }
}

extension SparseContent {
    func bytes(at offset: UInt64, count: Int) -> [UInt8] {
        unsafe [UInt8](unsafeUninitializedCapacity: count) { buffer, initializedCount in
            unsafe read(
                at: offset,
                into: UnsafeMutableRawBufferPointer(rebasing: UnsafeMutableRawBufferPointer(buffer)[..<count]))
            initializedCount = count
        }
    }
}

extension SimulatedDevice.State {
    mutating func append(_ kind: DeviceEvent.Kind, by handle: HandleNumber?) {
        let event = DeviceEvent(index: log.count, handle: handle, kind: kind)
        log.append(event)
        power.apply(event)
    }

    /// Lets a write land: visible at once unless it is lost, durable when its persistence says so.
    mutating func land(_ record: WriteRecord, by handle: HandleNumber) {
        if record.persistence != .lost {
            for piece in record.pieces { visible.apply(piece) }
            allocated?.formUnion(record.pieces.lazy.map(\.index))
        }
        append(.write(record), by: handle)
    }

    /// True when allocating all blocks of the range as well stays within the capacity limit.
    func hasRoom(for range: Range<UInt64>) -> Bool {
        guard let limit = options.capacityLimit, let allocated, !range.isEmpty else { return true }
        let size = UInt64(Block.size)
        let added = (range.lowerBound / size...(range.upperBound - 1) / size).lazy.filter { !allocated.contains($0) }
            .count
        return UInt64(allocated.count + added) * size <= limit.rawValue
    }

    mutating func reserve(_ range: Range<UInt64>) {
        guard !range.isEmpty else { return }
        let size = UInt64(Block.size)
        let blocks = range.lowerBound / size...(range.upperBound - 1) / size
        reserved.formUnion(blocks)
        allocated?.formUnion(blocks)
    }

    /// What a discard of the range leaves there; nil when it leaves the content alone.
    mutating func discard(_ range: Range<UInt64>) -> WriteRecord? {
        let size = UInt64(Block.size)
        let whole =
            (range.lowerBound + size - 1) / size..<max((range.lowerBound + size - 1) / size, range.upperBound / size)
        reserved.subtract(whole)
        allocated?.subtract(whole)
        let filling: Block
        switch options.discardBehaviour {
        case .kept: return nil
        case .zeros: filling = .zero
        case .garbage: filling = .garbage
        }
        let record = WriteRecord(
            offset: MediumOffset(range.lowerBound), length: ByteCount(UInt64(range.count)), persistence: .ordinary,
            pieces: SparseContent.pieces(filling: range, with: filling))
        for piece in record.pieces { visible.apply(piece) }
        return record
    }

    /// Applies the fates of a failed flush to what readers see.
    mutating func failFlush(_ fates: [WriteFate], by handle: HandleNumber) {
        let before = power.pending
        append(.failedFlush(fates), by: handle)
        guard fates.contains(.reverted) else { return }
        for (change, fate) in zip(before, fates) where fate == .reverted {
            guard case .write(let record) = change else { continue }
            for piece in record.pieces {
                visible.apply(Piece(index: piece.index, range: piece.range, block: power.durable[piece.index] ?? .zero))
            }
        }
        for case .write(let record) in power.pending {
            for piece in record.pieces { visible.apply(piece) }
        }
    }
}

extension Block {
    /// What a discarded block reads as on a device that leaves rubbish there.
    static let garbage = unsafe Block { target in
        var generator = SeededGenerator(seed: 0xD15C_A4D0)
        for word in 0..<Block.size / 8 {
            unsafe target.storeBytes(of: generator.next(), toByteOffset: word * 8, as: UInt64.self)
        }
    }
}
