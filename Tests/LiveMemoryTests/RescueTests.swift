// Processes whose memory is protected by somebody who does not answer.

import CheckpointCore
import FaultHarness
import Foundation
@testable import LiveMemory
import Testing
import Units

@Suite(.asRoot) struct RescueTests {
    @Test func `a process that protected itself and forgot about it goes on, and again is harmless`() async throws {
        try await onPlainThread {
            let victim = try Victim(pages: 512)
            try victim.command("write 1 2000")
            let number = Int32(try victim.command("protect wp"))!
            try victim.send("write 2 10")
            guard try victim.answer(withinMilliseconds: 200) == nil else { throw TestFailure("the negative control: nothing was protected") }
            let target = try victim.target()
            let other = try UserfaultRescue.release(target, only: [number + 1])
            guard other.released.isEmpty, other.descriptors.isEmpty, try victim.answer(withinMilliseconds: 100) == nil else {
                throw TestFailure("another descriptor was released: \(other)")
            }
            let report = try UserfaultRescue.release(target)
            guard report.descriptors == [number], report.released.map(\.lowerBound) == [victim.address], report.leftAlone.isEmpty else {
                throw TestFailure("released \(report)")
            }
            guard try victim.answer() == "ok" else { throw TestFailure("the process still waits") }
            try victim.command("run")
            try victim.waitForWrites()
            guard try UserfaultRescue.release(target).released.isEmpty else { throw TestFailure("released twice") }
        }
    }

    @Test func `who serves missing pages is left alone`() async throws {
        try await onPlainThread {
            let victim = try Victim(pages: 64)
            try victim.command("protect missing")
            let report = try UserfaultRescue.release(try victim.target())
            guard report.released.isEmpty, report.leftAlone.map(\.lowerBound) == [victim.address] else { throw TestFailure("\(report)") }
            guard try victim.flags().contains("um") else { throw TestFailure("no longer registered") }
        }
    }

    @Test func `tracking and copying from outside are not the process's own and are left alone`() async throws {
        try await onPlainThread {
            let victim = try Victim(pages: 64)
            let tracker = try WriteTracker(try victim.block())
            try tracker.arm()
            let report = try UserfaultRescue.release(try victim.target())
            guard report.released.isEmpty, report.heldByOthers.count == 1 else { throw TestFailure("\(report)") }
            try victim.command("write 1 5")
            guard try !tracker.scan().isEmpty else { throw TestFailure("the tracking has ended") }
        }
    }
}
