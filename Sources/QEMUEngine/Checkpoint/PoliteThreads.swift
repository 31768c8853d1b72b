// Threads that give way to the guest while it is being checkpointed.
//
// QEMU copies a guest's memory with one thread, and the guest waits for it where it writes; what compresses and stores on the same
// cores must not be in their way. The stream waits in memory meanwhile.

import CLinux
import Glibc
import Threading

/// A group of threads that can be made to give way and to stop doing so. Thread-safe.
final class PoliteThreads: Sendable {
    private let state = Lock((threads: [id_t](), gives: true))
    private let usualNice = getpriority(Int32(PRIO_PROCESS.rawValue), 0)
    private static let addedNice: Int32 = 15

    /// Joins the calling thread to the group.
    func join() {
        let thread = id_t(ck_thread_id())
        let gives = state.withLock { state in
            state.threads.append(thread)
            return state.gives
        }
        if gives { setNice(thread, usualNice + Self.addedNice) }
    }

    /// From now on the group works as fast as it can. Without the privilege to raise a priority again it stays as it is.
    func stopGivingWay() {
        let threads = state.withLock { state in
            state.gives = false
            return state.threads
        }
        for thread in threads { setNice(thread, usualNice) }
    }

    private func setNice(_ thread: id_t, _ nice: Int32) { _ = setpriority(Int32(PRIO_PROCESS.rawValue), thread, nice) }
}
