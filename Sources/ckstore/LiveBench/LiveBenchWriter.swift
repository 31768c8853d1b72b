// Threads that write memory while it is being saved.
//
// Invariant: a writer's own work is a few nanoseconds a write: what it loses is what keeps it waiting.

import Glibc
import MachineMemory
import Synchronization
import Threading
import Units

/// Writes words at random places of a memory as fast as it can, or at a rate.
final class LiveBenchWriter: Sendable {
    private let isStopping = Atomic(false)
    private let count = Atomic<UInt64>(0)
    /// While this is set the writer stands still between two writes.
    private let gate = Atomic(false)
    private let isStanding = Atomic(false)
    private let thread = Lock<PlainThread?>(nil)

    /// - Parameter perSecond: writes each second; nil: no limit.
    init(_ memory: GuestMemory, seed: UInt64, perSecond: Double? = nil) throws {
        let thread = PlainThread { [self] in write(memory, seed, perSecond) }
        guard let thread else { throw systemError("start", "a thread", EAGAIN) }
        self.thread.withLock { $0 = thread }
    }

    /// Writes so far.
    var writes: UInt64 { count.load(ordering: .relaxed) }

    /// Runs `body` between two writes.
    func stopping(_ body: () -> Void) {
        gate.store(true, ordering: .sequentiallyConsistent)
        while !isStanding.load(ordering: .sequentiallyConsistent) { sched_yield() }
        body()
        gate.store(false, ordering: .sequentiallyConsistent)
    }

    func stop() {
        isStopping.store(true, ordering: .relaxed)
        thread.withLock { thread in
            thread?.join()
            thread = nil
        }
    }

    private func write(_ memory: GuestMemory, _ seed: UInt64, _ perSecond: Double?) {
        var random = BenchRandom(seed: seed)
        let words = UInt64(memory.byteLength.rawValue / 8)
        let start = monotonicSeconds()
        var done: UInt64 = 0
        while !isStopping.load(ordering: .relaxed) {
            for _ in 0..<16 {
                if gate.load(ordering: .sequentiallyConsistent) {
                    isStanding.store(true, ordering: .sequentiallyConsistent)
                    while gate.load(ordering: .sequentiallyConsistent) { sched_yield() }
                    isStanding.store(false, ordering: .sequentiallyConsistent)
                }
                let value = random.next()
                unsafe memory.bytes.storeBytes(of: value, toByteOffset: Int(value.multipliedFullWidth(by: words).high) * 8, as: UInt64.self)
                done += 1
                count.store(done, ordering: .relaxed)
            }
            if let perSecond {
                let ahead = Double(done) / perSecond - (monotonicSeconds() - start)
                if ahead > 0 { usleep(UInt32(ahead * 1e6)) }
            }
        }
    }
}
