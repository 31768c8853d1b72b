// What a medium holds for certain, and what may or may not arrive when power is cut now.
//
// Invariants:
// - `durable` changes only by flushes (and damage); every unflushed change is in `pending`, oldest first.
// - Applying the events of a log one after the other gives the state at every crash point, so that a
//   walk over all points costs one pass.

import Units

/// A change that no flush has covered.
enum PendingChange: Sendable {
    case write(WriteRecord)
    case resize(ByteCount)
}

/// The durable content, its size, and the unflushed changes.
struct PowerState: Sendable {
    var durable = SparseContent()
    var durableSize: ByteCount
    var pending: [PendingChange] = []

    /// Moves the state behind `event`.
    mutating func apply(_ event: DeviceEvent) {
        switch event.kind {
        case .write(let record), .discard(_, _, .some(let record)): add(record)
        case .resize(let size): pending.append(.resize(size))
        case .flush: flush()
        case .failedFlush(let fates): settle(fates)
        case .damage(let record): for piece in record.pieces { durable.apply(piece) }
        case .open, .close, .read, .ignoredFlush, .reserve, .discard, .lock, .unlock, .failure, .kill, .mark: break
        }
    }

    private mutating func add(_ record: WriteRecord) {
        switch record.persistence {
        case .ordinary, .afterFlushes: pending.append(.write(record))
        case .never, .lost: break
        }
    }

    private mutating func flush() {
        var later: [PendingChange] = []
        for change in pending {
            if case .write(var record) = change, case .afterFlushes(let count) = record.persistence, count > 0 {
                record.persistence = count > 1 ? .afterFlushes(count - 1) : .ordinary
                later.append(.write(record))
            } else {
                makeDurable(change)
            }
        }
        pending = later
        durable.consolidate()
    }

    private mutating func settle(_ fates: [WriteFate]) {
        var kept: [PendingChange] = []
        for (change, fate) in zip(pending, fates) {
            switch fate {
            case .durable: makeDurable(change)
            case .kept: kept.append(change)
            case .dropped, .reverted: break
            }
        }
        pending = kept
    }

    private mutating func makeDurable(_ change: PendingChange) {
        switch change {
        case .write(let record): for piece in record.pieces { durable.apply(piece) }
        case .resize(let size):
            if size < durableSize { durable.truncate(to: size.rawValue) }
            durableSize = size
        }
    }
}
