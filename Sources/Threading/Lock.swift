// Exclusion and waiting between the threads of one process.
//
// A pthread mutex and not `Synchronization.Mutex`: on few cores with many threads the latter's
// spinning cost hundreds of times as much for an operation (measured: 8 threads on 2 cores).

import Glibc

/// State that one thread at a time may touch, and a condition to wait for changes of it.
@safe public final class Lock<State>: @unchecked Sendable {
    @usableFromInline let mutex: UnsafeMutablePointer<pthread_mutex_t>
    @usableFromInline let condition: UnsafeMutablePointer<pthread_cond_t>
    @usableFromInline var state: State

    /// A lock around `state`.
    public init(_ state: State) {
        self.state = state
        unsafe mutex = .allocate(capacity: 1)
        unsafe condition = .allocate(capacity: 1)
        unsafe pthread_mutex_init(mutex, nil)
        // Timed waits count on the monotonic clock: steps of the wall clock don't lengthen them.
        var attributes = pthread_condattr_t()
        unsafe pthread_condattr_init(&attributes)
        unsafe pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC)
        unsafe pthread_cond_init(condition, &attributes)
        unsafe pthread_condattr_destroy(&attributes)
    }

    deinit {
        unsafe pthread_cond_destroy(condition)
        unsafe pthread_mutex_destroy(mutex)
        unsafe condition.deallocate()
        unsafe mutex.deallocate()
    }

    /// Runs `body` with the state, excluding all other users. Not re-entrant.
    @inlinable public func withLock<R, E: Error>(_ body: (inout State) throws(E) -> R) throws(E) -> R {
        unsafe pthread_mutex_lock(mutex)
        defer { unsafe pthread_mutex_unlock(mutex) }
        return try body(&state)
    }

    /// Like `withLock`, but `body` may answer nil: "not yet". It is run again after each `wake`.
    @inlinable public func waitFor<R, E: Error>(_ body: (inout State) throws(E) -> R?) throws(E) -> R {
        unsafe pthread_mutex_lock(mutex)
        defer { unsafe pthread_mutex_unlock(mutex) }
        while true {
            if let result = try body(&state) { return result }
            unsafe pthread_cond_wait(condition, mutex)
        }
    }

    /// Like `waitFor` without a limit, but answers nil when `body` has not answered before `milliseconds` have passed.
    @inlinable public func waitFor<R, E: Error>(
        milliseconds: Int, _ body: (inout State) throws(E) -> R?
    ) throws(E) -> R? {
        precondition(milliseconds >= 0)
        var deadline = timespec()
        unsafe clock_gettime(CLOCK_MONOTONIC, &deadline)
        let nanoseconds = deadline.tv_nsec + milliseconds % 1000 * 1_000_000
        deadline.tv_sec += milliseconds / 1000 + nanoseconds / 1_000_000_000
        deadline.tv_nsec = nanoseconds % 1_000_000_000
        unsafe pthread_mutex_lock(mutex)
        defer { unsafe pthread_mutex_unlock(mutex) }
        while true {
            if let result = try body(&state) { return result }
            if unsafe pthread_cond_timedwait(condition, mutex, &deadline) == ETIMEDOUT { return try body(&state) }
        }
    }

    /// Lets every thread in `waitFor` look at the state again.
    @inlinable public func wake() { unsafe pthread_cond_broadcast(condition) }
}

/// Hands a value that is not `Sendable` to other threads; whoever makes one vouches that their uses
/// don't overlap.
@safe public struct Handed<T>: @unchecked Sendable {
    /// What is handed over.
    public let value: T
    /// Vouches for `value`.
    @inlinable public init(_ value: T) { self.value = value }
}
