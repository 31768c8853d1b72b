// Work spread over plain threads.

import Threading

/// Runs `body(0)`, `body(1)`, … on `workers` threads, the calling one being the first. Returns when all have
/// returned; throws the first error that any of them threw. Fewer threads run when the system has no more
/// to give, so `body` must take its work from a common source and not by its number.
func inParallel(
    workers: Int, _ body: @escaping @Sendable (Int) throws(StoreError) -> Void
) throws(StoreError) {
    precondition(workers >= 1)
    let failure = Lock<StoreError?>(nil)
    let run: @Sendable (Int) -> Void = { number in
        do throws(StoreError) { try body(number) } catch { failure.withLock { $0 = $0 ?? error } }
    }
    let threads = (1..<workers).compactMap { number in PlainThread { run(number) } }
    run(0)
    for thread in threads { thread.join() }
    if let error = failure.withLock({ $0 }) { throw error }
}
