// The guests that all other tests of running machines rely on.

import CheckpointCore
import Glibc
import QEMUTesting
import QMP
import Testing
import Threading
import Units

/// Runs a test's blocking body on a thread of its own and throws what it throws.
func onPlainThread(_ body: @escaping @Sendable () throws -> Void) async throws {
    try await withCheckedThrowingContinuation { (continuation: CheckedContinuation<Void, any Error>) in
        let thread = PlainThread { continuation.resume(with: Result(catching: body)) }
        if thread == nil { continuation.resume(throwing: GuestTrouble("no thread for the test")) }
    }
}

@Suite(.serialized) struct GuestTests {
    @Test func `the workload checks its own memory and disks, and the ticks show a stop`() async throws {
        try await onPlainThread {
            let guest = try Guest.start(
                GuestOptions(memory: .shared, virtualCPUs: 2, disks: [GuestOptions.Disk(.raw), GuestOptions.Disk(.qcow2, style: .drive)]))
            try guest.fill(mebibytes: 32)
            try guest.dirty(pagesPerSecond: 5000, mebibytes: 16)
            try guest.writeDisks(threads: 3)
            try guest.mark(7)
            let monitor = try guest.monitor()
            let start = Monotonic.now()
            try monitor.execute("stop")
            let stopped = Monotonic.now()
            while Monotonic.now() < stopped + 200_000_000 { sched_yield() }
            try monitor.execute("cont")
            let before = try guest.status()
            let gap = guest.ticks.longestGapMicroseconds(since: start)
            let after = try guest.check()
            try require(gap >= 190_000, "the stop of 200 ms shows as \(gap) us")
            try require(after.ok && after.mark == 7 && after.fillPages == 32 * 256, "\(after)")
            try require(after.ticks > before.ticks && after.dirtyWritten > before.dirtyWritten, "\(before) -> \(after)")
            try require(after.disks.count == 2 && after.disks.allSatisfy { $0.completed > 0 }, "\(after)")
            try require(guest.machine.options.memoryBlockName == "ram", "the block is the memory backend's")
        }
    }
}

/// An expectation off the test's own thread.
func require(_ condition: Bool, _ text: String) throws {
    if !condition { throw GuestTrouble(text) }
}
