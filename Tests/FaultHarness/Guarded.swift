// Mutable state behind a plain mutex, with waiting.
//
// Invariant: the state is reached only while the mutex is held, and never while waiting.

import Foundation

/// State that one thread at a time may touch. A pthread mutex rather than `Synchronization.Mutex`,
/// which collapses when more threads than cores contend.
package final class Guarded<State>: @unchecked Sendable {
    private let condition = NSCondition()
    private var state: State

    package init(_ state: State) { self.state = state }

    /// Runs `body` while holding the mutex. Must not be nested for the same object.
    package func with<Result, Failure: Error>(_ body: (inout State) throws(Failure) -> Result) throws(Failure) -> Result {
        condition.lock()
        defer { condition.unlock() }
        return try body(&state)
    }

    /// Runs `body` until it returns a value, sleeping for a `broadcast` in between; nil when
    /// `deadline` (nil: none) passes first.
    func wait<Result>(until deadline: Date?, for body: (inout State) -> Result?) -> Result? {
        condition.lock()
        defer { condition.unlock() }
        while true {
            if let result = body(&state) { return result }
            if let deadline {
                if !condition.wait(until: deadline) { return body(&state) }
            } else {
                condition.wait()
            }
        }
    }

    /// Wakes everybody who waits in `wait`.
    func broadcast() { condition.broadcast() }
}
