// Threads that give way to the guest while it is being checkpointed.
//
// QEMU copies a guest's memory with one thread, and the guest waits for it where it writes; what compresses and stores on the same
// cores must not be in their way. The stream waits in memory meanwhile.

import CLinux
import Glibc
import Threading

/// A group of threads that can be made to give way and to stop doing so. Thread-safe.
final class PoliteThreads: Sendable {
    private let state = Lock((threads: [pid_t](), gives: true))

    /// Joins the calling thread to the group.
    func join() {
        let thread = ck_thread_id()
        state.withLock { state in
            state.threads.append(thread)
            if state.gives { _ = ck_set_idle(thread, true) }
        }
    }

    /// From now on the group works as fast as it can. Where a thread may not be raised again it goes on giving way, which
    /// makes the checkpoint later and nothing else.
    func stopGivingWay() {
        state.withLock { state in
            state.gives = false
            for thread in state.threads { _ = ck_set_idle(thread, false) }
        }
    }
}
