// Byte-range locks with the semantics of Linux open file description locks.
//
// Invariants:
// - The owner is the handle. Locks of one owner never conflict, and for one owner no two held ranges
//   overlap: taking a range again changes its mode there (upgrade, downgrade), splitting what it cuts.
// - No range is held exclusively by one owner and at all by another.

import Media

/// Who holds which lock bytes of a device.
struct SimulatedLockTable: Sendable {
    struct Held: Sendable, Hashable {
        var owner: HandleNumber
        var range: Range<UInt64>
        var mode: LockMode
    }

    private(set) var held: [Held] = []

    /// Locks of others that exclude `mode` on `range`.
    func conflicts(for owner: HandleNumber, _ range: LockRange, _ mode: LockMode) -> [Held] {
        let bytes = SimulatedLockTable.bytes(range)
        return held.filter { other in
            other.owner != owner && other.range.overlaps(bytes) && (mode == .exclusive || other.mode == .exclusive)
        }
    }

    /// Locks of others on `range`, whatever their mode.
    func others(than owner: HandleNumber, on range: LockRange) -> [Held] {
        let bytes = SimulatedLockTable.bytes(range)
        return held.filter { $0.owner != owner && $0.range.overlaps(bytes) }
    }

    /// Takes the lock unless somebody else's excludes it. On refusal nothing has changed: an upgrade
    /// that fails keeps the shared lock.
    mutating func take(_ range: LockRange, _ mode: LockMode, for owner: HandleNumber) -> Bool {
        guard conflicts(for: owner, range, mode).isEmpty else { return false }
        release(range, of: owner)
        held.append(Held(owner: owner, range: SimulatedLockTable.bytes(range), mode: mode))
        return true
    }

    /// Gives up the owner's locks on exactly these bytes, keeping what lies around them.
    mutating func release(_ range: LockRange, of owner: HandleNumber) {
        let bytes = SimulatedLockTable.bytes(range)
        var remaining: [Held] = []
        for lock in held {
            guard lock.owner == owner, lock.range.overlaps(bytes) else {
                remaining.append(lock)
                continue
            }
            for rest in [
                lock.range.lowerBound..<max(lock.range.lowerBound, bytes.lowerBound),
                min(lock.range.upperBound, bytes.upperBound)..<lock.range.upperBound,
            ] where !rest.isEmpty {
                remaining.append(Held(owner: owner, range: rest, mode: lock.mode))
            }
        }
        held = remaining
    }

    /// Gives up everything the owner holds, as closing its handle does.
    mutating func releaseAll(of owner: HandleNumber) { held.removeAll { $0.owner == owner } }

    private static func bytes(_ range: LockRange) -> Range<UInt64> {
        precondition(range.count >= 1 && range.start < 1 << 62, "a lock range is not empty and starts below 2^62")
        return range.start..<range.start + range.count
    }
}
