// What happened on a simulated device, in order: the recording from which crash images are made.
//
// Invariant: an event says what became of an operation (landed, lost, failed …) and not merely what
// was asked for, so that replaying the events rebuilds the device without consulting fault plans.

import Media
import Units

/// The number of a handle on a device, in the order of opening, from 1.
public struct HandleNumber: Hashable, Comparable, Sendable, CustomStringConvertible {
    /// The number.
    public var rawValue: Int
    /// Wraps a number.
    public init(_ rawValue: Int) { self.rawValue = rawValue }
    public static func < (a: HandleNumber, b: HandleNumber) -> Bool { a.rawValue < b.rawValue }
    public var description: String { "handle \(rawValue)" }
}

/// The kinds of call that a medium takes; what fault rules and yields are selected by.
public enum OperationKind: String, Sendable, CaseIterable {
    case read, write, flush, reserve, discard, resize, refreshSize, lock, unlock, queryLock
}

/// When a write becomes durable.
public enum Persistence: Hashable, Sendable {
    /// With the next flush that succeeds.
    case ordinary
    /// Never: readers see it until power is cut.
    case never
    /// With the flush after this many others: as if the write had been issued behind them.
    case afterFlushes(Int)
    /// It did not happen at all, though it was acknowledged.
    case lost
}

/// One write as it landed.
public struct WriteRecord: Sendable {
    /// Where it landed.
    public var offset: MediumOffset
    /// How many bytes.
    public var length: ByteCount
    /// Where it was meant to land, when that is elsewhere.
    public var intendedOffset: MediumOffset?
    /// When it becomes durable.
    public var persistence: Persistence
    var pieces: [Piece]

    /// The bytes written. O(length).
    public var bytes: [UInt8] {
        pieces.flatMap { piece in
            unsafe [UInt8](
                UnsafeRawBufferPointer(start: piece.block.bytes + piece.range.lowerBound, count: piece.range.count))
        }
    }
}

/// What a failed flush did to one unflushed write.
public enum WriteFate: Hashable, Sendable {
    /// It reached the medium before the failure.
    case durable
    /// It stays unflushed: a later flush covers it.
    case kept
    /// It is marked clean but was never written: visible, and gone at a power cut, whatever is flushed later.
    case dropped
    /// As `dropped`, and the cache has forgotten it as well: readers see the old content again.
    case reverted
}

/// One thing that happened on a device.
public struct DeviceEvent: Sendable, CustomStringConvertible {
    /// What happened.
    public enum Kind: Sendable {
        case open(name: String, isReadOnly: Bool)
        case close
        case read(MediumOffset, ByteCount)
        case write(WriteRecord)
        /// Everything written before is durable.
        case flush
        /// The flush was acknowledged and nothing was made durable.
        case ignoredFlush
        /// The flush failed; one fate per unflushed write, oldest first.
        case failedFlush([WriteFate])
        case reserve(MediumOffset, ByteCount)
        /// A discard and what it put in the range; nil when it left the content alone.
        case discard(MediumOffset, ByteCount, WriteRecord?)
        case resize(ByteCount)
        case lock(LockRange, LockMode, isGranted: Bool)
        case unlock(LockRange)
        /// An operation threw and did nothing.
        case failure(OperationKind, MediumError.Code)
        /// The process behind the handle was killed; its locks are gone.
        case kill
        /// What a workload noted, such as "commit 3 acknowledged".
        case mark(String)
        /// Content changed at rest, behind everybody's back.
        case damage(WriteRecord)
    }

    /// The place in the log, from 0.
    public var index: Int
    /// Through which handle; nil for marks and damage.
    public var handle: HandleNumber?
    /// What happened.
    public var kind: Kind

    /// True when a crash after this event can leave something else than a crash before it, or be
    /// judged differently.
    public var changesCrashState: Bool {
        switch kind {
        case .write, .flush, .failedFlush, .discard, .resize, .mark, .damage: true
        case .open, .close, .read, .ignoredFlush, .reserve, .lock, .unlock, .failure, .kill: false
        }
    }

    /// One line without content: equal for two runs that did the same operations in the same order.
    public var description: String {
        "\(index) \(handle.map { "\($0)" } ?? "device"): \(kind.summary)"
    }
}

extension DeviceEvent.Kind {
    var summary: String {
        switch self {
        case .open(let name, let isReadOnly): "open by \(name)\(isReadOnly ? " for reading" : "")"
        case .close: "close"
        case .read(let offset, let length): "read \(offset)+\(length)"
        case .write(let record): "write \(record.summary)"
        case .flush: "flush"
        case .ignoredFlush: "flush (ignored)"
        case .failedFlush(let fates): "flush failed \(fates.map { "\($0)" })"
        case .reserve(let offset, let length): "reserve \(offset)+\(length)"
        case .discard(let offset, let length, let record):
            "discard \(offset)+\(length)\(record == nil ? " (kept)" : "")"
        case .resize(let size): "resize to \(size)"
        case .lock(let range, let mode, let isGranted):
            "lock \(range.start)+\(range.count) \(mode)\(isGranted ? "" : " refused")"
        case .unlock(let range): "unlock \(range.start)+\(range.count)"
        case .failure(let operation, let code): "\(operation) failed: \(code)"
        case .kill: "killed"
        case .mark(let text): "mark \(text)"
        case .damage(let record): "damage \(record.summary)"
        }
    }
}

extension WriteRecord {
    var summary: String {
        var text = "\(offset)+\(length)"
        if let intendedOffset { text += " meant for \(intendedOffset)" }
        return persistence == .ordinary ? text : text + " (\(persistence))"
    }
}
