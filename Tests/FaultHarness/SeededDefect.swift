// Engine bugs, emulated by the medium: what a store with that bug would do to its medium is done to it
// from below. A harness that does not notice them would not notice the bugs either.

import Media
import Units

/// A bug that an engine could have, made of fault rules.
public struct SeededDefect: Sendable, CustomStringConvertible {
    /// What is wrong, as a phrase.
    public var description: String
    /// What emulates it.
    public var rules: [FaultRule]

    public init(_ description: String, _ rules: FaultRule...) {
        self.description = description
        self.rules = rules
    }

    /// Makes everybody who uses the device have the bug.
    public func install(on device: SimulatedDevice) {
        for rule in rules { device.faults.add(rule) }
    }

    /// Flushes are forgotten whose last write before them, by the same handle, was in `range`: one
    /// class of flushes, such as those of the data or those of the slots.
    public static func skipsFlushes(afterWritesIn range: Range<MediumOffset>, _ occurrence: Occurrence = .from(1))
        -> SeededDefect
    {
        SeededDefect(
            "skips flushes after writes in \(range)",
            FaultRule(.flush, occurrence, .ignoreFlush) { isIn(range, $0.previousWrite) })
    }

    /// Some flushes are forgotten, counted over all handles.
    public static func skipsFlushes(_ occurrence: Occurrence) -> SeededDefect {
        SeededDefect("skips flushes (\(occurrence))", FaultRule(.flush, occurrence, .ignoreFlush))
    }

    /// Writes in `range` are issued behind the flush that should have covered them: they change places
    /// with their successors across it.
    public static func swapsAcrossFlush(writesIn range: Range<MediumOffset>, _ occurrence: Occurrence = .from(1))
        -> SeededDefect
    {
        SeededDefect(
            "swaps writes in \(range) across a flush",
            FaultRule(.write, occurrence, .delay(flushes: 1)) { isIn(range, $0.offset) })
    }

    /// Writes in `range` are forgotten.
    public static func forgets(writesIn range: Range<MediumOffset>, _ occurrence: Occurrence = .from(1)) -> SeededDefect
    {
        SeededDefect(
            "forgets writes in \(range)",
            FaultRule(.write, occurrence, .lose) { isIn(range, $0.offset) })
    }

    /// Locks in `range` are believed to be held without having been taken.
    public static func forgetsLocks(in range: Range<UInt64>) -> SeededDefect {
        SeededDefect(
            "forgets locks in \(range)",
            FaultRule(.lock, .from(1), .pretendLock) { isIn(range, $0.lockRange?.start) })
    }

    /// Locks in `range` are never given up.
    public static func forgetsUnlocks(in range: Range<UInt64>) -> SeededDefect {
        SeededDefect(
            "never unlocks in \(range)",
            FaultRule(.unlock, .from(1), .pretendLock) { isIn(range, $0.lockRange?.start) })
    }

    /// Locks of others in `range` are not looked for: everything seems free.
    public static func overlooksHolders(in range: Range<UInt64>) -> SeededDefect {
        SeededDefect(
            "overlooks holders in \(range)",
            FaultRule(.queryLock, .from(1), .pretendLock) { isIn(range, $0.lockRange?.start) })
    }

    private static func isIn<Bound>(_ range: Range<Bound>, _ place: Bound?) -> Bool {
        place.map { range.contains($0) } ?? false
    }
}
