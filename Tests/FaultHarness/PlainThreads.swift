// Long and blocking work on threads of its own, never inside the cooperative pool.

import Dispatch
import Foundation

/// Threads of our own for test programmes.
package enum PlainThreads {
    /// Runs `body` on `count` threads at once, with the number of each from 0, and waits for all.
    package static func run(_ count: Int, _ body: @escaping @Sendable (Int) -> Void) {
        let group = DispatchGroup()
        for number in 0..<count {
            group.enter()
            let thread = Thread {
                body(number)
                group.leave()
            }
            thread.stackSize = 8 << 20
            thread.start()
        }
        group.wait()
    }
}

/// Runs blocking work (a simulation, an exploration) on a thread of its own while the calling task waits.
public func onPlainThread<Result: Sendable>(_ body: @escaping @Sendable () throws -> Result) async throws -> Result {
    try await withCheckedThrowingContinuation { continuation in
        let thread = Thread { continuation.resume(with: Swift.Result { try body() }) }
        thread.stackSize = 8 << 20
        thread.start()
    }
}
