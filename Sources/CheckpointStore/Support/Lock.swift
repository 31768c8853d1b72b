// Exclusion and waiting between the threads of one process.
//
// A pthread mutex and not `Synchronization.Mutex`: on few cores with many threads the latter's
// spinning cost hundreds of times as much for an operation (measured: 8 threads on 2 cores).

import Glibc

/// State that one thread at a time may touch, and a condition to wait for changes of it.
@safe final class Lock<State>: @unchecked Sendable {
    private let mutex: UnsafeMutablePointer<pthread_mutex_t>
    private let condition: UnsafeMutablePointer<pthread_cond_t>
    private var state: State

    init(_ state: State) {
        self.state = state
        unsafe mutex = .allocate(capacity: 1)
        unsafe condition = .allocate(capacity: 1)
        unsafe pthread_mutex_init(mutex, nil)
        unsafe pthread_cond_init(condition, nil)
    }

    deinit {
        unsafe pthread_cond_destroy(condition)
        unsafe pthread_mutex_destroy(mutex)
        unsafe condition.deallocate()
        unsafe mutex.deallocate()
    }

    /// Runs `body` with the state, excluding all other users. Not re-entrant.
    func withLock<R, E: Error>(_ body: (inout State) throws(E) -> R) throws(E) -> R {
        unsafe pthread_mutex_lock(mutex)
        defer { unsafe pthread_mutex_unlock(mutex) }
        return try body(&state)
    }

    /// Like `withLock`, but `body` may answer nil: "not yet". It is run again after each `wake`.
    func waitFor<R, E: Error>(_ body: (inout State) throws(E) -> R?) throws(E) -> R {
        unsafe pthread_mutex_lock(mutex)
        defer { unsafe pthread_mutex_unlock(mutex) }
        while true {
            if let result = try body(&state) { return result }
            unsafe pthread_cond_wait(condition, mutex)
        }
    }

    /// Lets every thread in `waitFor` look at the state again.
    func wake() { unsafe pthread_cond_broadcast(condition) }
}

/// Hands a value that is not `Sendable` to other threads; whoever makes one vouches that their uses
/// don't overlap.
@safe struct Handed<T>: @unchecked Sendable {
    let value: T
    init(_ value: T) { self.value = value }
}
