// Being led through two system calls must be invisible to a thread, whatever it was doing.

import CheckpointCore
import FaultHarness
import Foundation
import LiveMemory
import Testing
import Threading
import Units

@Suite(.asRoot) struct InjectionTests {
    /// How each wait ends when nobody disturbs it: result and errno.
    private static let endings = [
        "poll": "0 0", "ppoll": "0 0", "select": "0 0", "epoll": "0 0", "nanosleep": "0 0", "futex": "-1 110", "read": "1 0",
        "compute": "0 0",
    ]

    @Test(arguments: endings.keys.sorted()) func `a thread goes on as if nothing had been`(kind: String) async throws {
        try await onPlainThread {
            let victim = try Victim(pages: 256, writers: 1)
            let block = try victim.block()
            try victim.command("wait \(kind) 1500").expect("waiting")
            for _ in 0..<20 {
                let tracker = try WriteTracker(block)
                try tracker.arm()
                usleep(10_000)
            }
            guard let answer = try victim.answer(), let time = answer.split(separator: " ").last.flatMap({ Double($0) }) else {
                throw TestFailure("no answer")
            }
            guard answer.hasPrefix(Self.endings[kind]! + " "), time >= 1.4 else { throw TestFailure("the wait ended as \(answer)") }
            try victim.command("written").expect("0")
        }
    }

    @Test func `whoever leads a thread may be killed at any moment, and the process goes on`() async throws {
        let victim = try await onPlainThread { Handed(try Victim(pages: 256, writers: 1)) }.value
        try victim.command("loop").expect("looping")
        for _ in 0..<8 {
            await #expect(processExitsWith: .signal(SIGKILL)) { [pid = victim.pid as Int32] in
                let target = try TargetProcess(pid: pid)
                let block = try SharedMemoryBlock(target, target.mappings().sharedRegions.first { $0.path.hasPrefix("/memfd:victim") }!)
                let killer = PlainThread {
                    usleep(UInt32.random(in: 1000...20_000))
                    kill(getpid(), SIGKILL)
                }
                guard killer != nil else { return }
                while true { _ = try WriteTracker(block) }
            }
        }
        let handed = Handed(victim)
        try await onPlainThread {
            // At the worst one of its waits ended early with a wrong count.
            try handed.value.send("stop")
            guard let answer = try handed.value.answer(), answer == "ok" else { throw TestFailure("the waits failed") }
            try handed.value.command("written").expect("0")
        }
    }
}

extension String {
    func expect(_ other: String) throws {
        guard self == other else { throw TestFailure("'\(self)' instead of '\(other)'") }
    }
}
