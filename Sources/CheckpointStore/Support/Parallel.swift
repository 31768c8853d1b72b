// Work spread over plain threads.
//
// Threads of our own and not tasks: the work blocks in system calls and page faults, which would
// stall the cooperative pool.

import Glibc
import Units

/// How many cores this process may use.
func availableCores() -> Int { max(1, Int(sysconf(Int32(_SC_NPROCESSORS_ONLN)))) }

/// A thread that runs one closure and can be waited for.
@safe final class PlainThread: @unchecked Sendable {
    private final class Start {
        let body: @Sendable () -> Void
        init(_ body: @escaping @Sendable () -> Void) { self.body = body }
    }
    private let id: pthread_t

    /// Starts a thread; nil when the system has none to give.
    init?(_ body: @escaping @Sendable () -> Void) {
        let start = unsafe Unmanaged.passRetained(Start(body))
        var id = pthread_t()
        let status = unsafe pthread_create(
            &id, nil,
            { pointer in
                unsafe Unmanaged<Start>.fromOpaque(pointer!).takeRetainedValue().body()
                return nil
            }, start.toOpaque())
        guard status == 0 else {
            unsafe start.release()
            return nil
        }
        self.id = id
    }

    /// Waits until the closure has returned. Call it exactly once.
    func join() { pthread_join(id, nil) }
}

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
