// One time limit over several waits.

import Glibc

/// A moment on the monotonic clock, or never.
struct Deadline {
    private let moment: Int64?

    /// `milliseconds` from now; nil: never.
    init(milliseconds: Int?) {
        precondition(milliseconds ?? 0 >= 0, "a time limit is not negative")
        // A limit beyond what the clock can tell is none.
        moment = milliseconds.flatMap { $0 > 1 << 40 ? nil : Deadline.now() + Int64($0) }
    }

    /// What is left; 0 when it is over, nil when there is no limit.
    var remaining: Int? { moment.map { Int(max(0, $0 - Deadline.now())) } }

    /// What is left, as poll wants it; a longer limit is looked at again after that.
    var forPoll: Int32 { remaining.map { Int32(clamping: $0) } ?? -1 }

    private static func now() -> Int64 {
        var now = timespec()
        unsafe clock_gettime(CLOCK_MONOTONIC, &now)
        return Int64(now.tv_sec) * 1000 + Int64(now.tv_nsec) / 1_000_000
    }
}
