// The time of day.

import Glibc

/// Nanoseconds since 1970-01-01 UTC.
public func wallClockNanoseconds() -> UInt64 {
    var time = timespec()
    unsafe clock_gettime(CLOCK_REALTIME, &time)
    return UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
}
