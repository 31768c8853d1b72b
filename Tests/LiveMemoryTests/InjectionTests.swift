// Being led through two system calls must be invisible to a thread, whatever it was doing.

import CheckpointCore
import FaultHarness
import Foundation
import LiveMemory
import Testing
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
}

extension String {
    func expect(_ other: String) throws {
        guard self == other else { throw TestFailure("'\(self)' instead of '\(other)'") }
    }
}
