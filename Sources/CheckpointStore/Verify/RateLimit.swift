// A bound on bytes a second, kept over all threads.
//
// Invariant: in any stretch of time t, no more than rate x t bytes plus the burst are let through.

import Glibc
import Threading
import Units

/// Where a rate limit gets its time from, and how it waits. Tests give their own.
package struct RateClock: Sendable {
    /// Microseconds of a clock that never steps.
    package var nowMicroseconds: @Sendable () -> UInt64
    /// Waits so many microseconds, about.
    package var sleepMicroseconds: @Sendable (UInt64) -> Void

    package init(nowMicroseconds: @escaping @Sendable () -> UInt64, sleepMicroseconds: @escaping @Sendable (UInt64) -> Void) {
        self.nowMicroseconds = nowMicroseconds
        self.sleepMicroseconds = sleepMicroseconds
    }

    /// The system's.
    package static let monotonic = RateClock(
        nowMicroseconds: monotonicMicroseconds,
        sleepMicroseconds: { wait in
            var rest = timespec(tv_sec: Int(wait / 1_000_000), tv_nsec: Int(wait % 1_000_000) * 1000)
            while true {
                var request = rest
                guard unsafe nanosleep(&request, &rest) != 0, errno == EINTR else { return }
            }
        })
}

/// A token bucket: bytes are paid for before they are read. Thread-safe; who takes first is let through first.
package final class RateLimit: Sendable {
    private let bytesPerSecond: UInt64
    private let clock: RateClock
    /// When everything that was taken so far is paid for, in nanoseconds: many small takes don't add up to rounding errors.
    private let paidAt: Lock<UInt64>
    /// How much may be taken at once after a pause, as time.
    private static let burstNanoseconds: UInt64 = 50_000_000

    /// - Parameter bytesPerSecond: at least 1.
    package init(bytesPerSecond: ByteCount, clock: RateClock = .monotonic) {
        precondition(bytesPerSecond > .zero)
        self.bytesPerSecond = bytesPerSecond.rawValue
        self.clock = clock
        paidAt = Lock(clock.nowMicroseconds() * 1000)
    }

    /// Takes `count` bytes, and waits until the rate allows them.
    package func take(_ count: ByteCount) {
        let now = clock.nowMicroseconds() * 1000
        let wait = paidAt.withLock { paidAt -> UInt64 in
            let start = max(paidAt, now > Self.burstNanoseconds ? now - Self.burstNanoseconds : 0)
            paidAt = start + nanoseconds(count)
            return paidAt > now ? paidAt - now : 0
        }
        if wait >= 1000 { clock.sleepMicroseconds(wait / 1000) }
    }

    /// The time that the rate gives `count` bytes, rounded up.
    private func nanoseconds(_ count: ByteCount) -> UInt64 {
        let product = count.rawValue.multipliedFullWidth(by: 1_000_000_000)
        guard product.high < bytesPerSecond else { return UInt64.max / 2 }
        let (quotient, remainder) = bytesPerSecond.dividingFullWidth(product)
        return min(quotient, UInt64.max / 4) + (remainder > 0 ? 1 : 0)
    }
}
