// Threads, time and chance for measuring.

import Glibc
import Synchronization

/// State that several threads of the bench share.
final class BenchLock<State>: @unchecked Sendable {
    private let mutex = Mutex(())
    private nonisolated(unsafe) var state: State
    init(_ state: State) { unsafe self.state = state }
    func withLock<R>(_ body: (inout State) throws -> R) rethrows -> R {
        try mutex.withLock { _ in unsafe try body(&state) }
    }
}

/// Runs `body(0)` … `body(count - 1)` at once, each on a thread of its own (the first on the calling one), and
/// rethrows the first error.
func inBenchThreads(_ count: Int, _ body: @escaping @Sendable (Int) throws -> Void) throws {
    let failure = BenchLock<(any Error)?>(nil)
    let work = ThreadBody { number in
        do { try body(number) } catch { failure.withLock { $0 = $0 ?? error } }
    }
    var threads: [pthread_t] = []
    for number in 1..<max(count, 1) {
        var thread = pthread_t()
        let start = unsafe Unmanaged.passRetained(ThreadBody { _ in work.body(number) })
        let status = unsafe pthread_create(
            &thread, nil,
            { pointer in
                unsafe Unmanaged<ThreadBody>.fromOpaque(pointer!).takeRetainedValue().body(0)
                return nil
            }, start.toOpaque())
        guard status == 0 else {
            unsafe start.release()
            failure.withLock { $0 = systemError("start", "a thread", status) }
            break
        }
        threads.append(thread)
    }
    work.body(0)
    for thread in threads { pthread_join(thread, nil) }
    if let error = failure.withLock({ $0 }) { throw error }
}

private final class ThreadBody: Sendable {
    let body: @Sendable (Int) -> Void
    init(_ body: @escaping @Sendable (Int) -> Void) { self.body = body }
}

/// Hands out the numbers below `end`, `step` at a time, to whoever asks.
final class WorkCursor: Sendable {
    private let next = Atomic(0)
    private let end: Int
    private let step: Int
    init(_ end: Int, step: Int) {
        self.end = end
        self.step = step
    }
    /// The next piece; nil when all are taken.
    func advance() -> Range<Int>? {
        let low = next.wrappingAdd(step, ordering: .relaxed).oldValue
        return low < end ? low..<min(low + step, end) : nil
    }
}

/// Seconds on a clock that only goes forward.
func monotonicSeconds() -> Double { Double(monotonicNanoseconds()) / 1e9 }

func monotonicNanoseconds() -> UInt64 {
    var now = timespec()
    unsafe clock_gettime(CLOCK_MONOTONIC, &now)
    return UInt64(now.tv_sec) * 1_000_000_000 + UInt64(now.tv_nsec)
}

/// How long `body` takes.
func seconds(_ body: () throws -> Void) rethrows -> Double {
    let start = monotonicSeconds()
    try body()
    return monotonicSeconds() - start
}

/// The same numbers in every run: SplitMix64.
struct BenchRandom: RandomNumberGenerator {
    private var state: UInt64
    init(seed: UInt64) { state = seed }
    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
        return z ^ (z >> 31)
    }
}
