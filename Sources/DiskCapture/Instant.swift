// Clocks: one to measure waits, and the difference of the two clocks that a step of the wall clock shows in.

import Glibc

/// An instant of the monotonic clock, in milliseconds.
struct Instant: Comparable, Sendable {
    private let milliseconds: Int

    static var now: Instant { Instant(milliseconds: Int(nanoseconds(CLOCK_MONOTONIC) / 1_000_000)) }
    static func + (a: Instant, milliseconds: Int) -> Instant { Instant(milliseconds: a.milliseconds + milliseconds) }
    /// Milliseconds from `b` to `a`.
    static func - (a: Instant, b: Instant) -> Int { a.milliseconds - b.milliseconds }
    static func < (a: Instant, b: Instant) -> Bool { a.milliseconds < b.milliseconds }

    private init(milliseconds: Int) { self.milliseconds = milliseconds }

    /// How far the wall clock is ahead of the monotonic one, in nanoseconds. It changes only when the wall clock is set.
    static var wallClockLeadNanoseconds: Int64 {
        var lead: Int64 = 0
        // A thread that is held up between the readings reads again.
        for _ in 0..<100 {
            let before = nanoseconds(CLOCK_MONOTONIC)
            lead = nanoseconds(CLOCK_REALTIME) - before
            if nanoseconds(CLOCK_MONOTONIC) - before < 50_000 { break }
        }
        return lead
    }

    /// The wall clock, since 1970.
    static var wallClockMicroseconds: Int64 { nanoseconds(CLOCK_REALTIME) / 1000 }

    private static func nanoseconds(_ clock: clockid_t) -> Int64 {
        var time = timespec()
        unsafe clock_gettime(clock, &time)
        return Int64(time.tv_sec) * 1_000_000_000 + Int64(time.tv_nsec)
    }
}
