// Tracking against the bytes themselves: what a scan leaves out has not changed.

import CheckpointCore
import FaultHarness
import Foundation
import LiveMemory
import Testing
import Units

@Suite(.asRoot) struct WriteTrackerTests {
    @Test func `a scan reports every page whose bytes differ`() async throws {
        try await onPlainThread {
            let seed = UInt64.random(in: .min ... .max)
            var random = SeededGenerator(seed: seed)
            let victim = try Victim(pages: 4096)
            let block = try victim.block()
            try victim.command("write \(random.next()) 500")
            let tracker = try WriteTracker(block)
            try tracker.arm()
            var before = try Image(block)
            for round in 0..<40 {
                try victim.command("write \(random.next()) \(1 + random.below(600))")
                let written = try tracker.scan()
                let after = try Image(block)
                let missed = after.differences(before).filter { !written.contains($0) }
                guard missed.isEmpty else { throw TestFailure("seed \(seed), round \(round): pages \(missed) were missed") }
                before = after
            }
            guard try tracker.scan().isEmpty else { throw TestFailure("seed \(seed): pages were reported twice") }
        }
    }

    @Test func `copying what each scan reports gives the whole memory, though the process never stops writing`() async throws {
        try await onPlainThread {
            for writers in [1, 4] {
                let victim = try Victim(pages: 8192, writers: writers)
                let block = try victim.block()
                try victim.command("write 1 3000")
                try victim.command("run")
                let tracker = try WriteTracker(block)
                try tracker.arm()
                try block.populate()
                var image = try Image(block)
                for _ in 0..<100 { try image.refresh(try tracker.scan(), from: block) }
                try victim.command("pause")
                try image.refresh(try tracker.scan(), from: block)
                let differences = try Image(block).differences(image)
                guard differences.isEmpty else { throw TestFailure("\(writers) writers: \(differences.count) pages differ, first \(differences[0])") }
                guard try tracker.scan().isEmpty else { throw TestFailure("something was written in the pause") }
            }
        }
    }

    @Test func `nothing of the tracking is left, neither by disarm nor when the tracker goes`() async throws {
        try await onPlainThread {
            let victim = try Victim(pages: 1024)
            let block = try victim.block()
            for isDisarmed in [true, false] {
                do {
                    let tracker = try WriteTracker(block)
                    try tracker.arm()
                    guard try victim.flags().contains("uw") else { throw TestFailure("the memory is not tracked") }
                    if isDisarmed { try tracker.disarm() }
                    let open = try victim.target().descriptors().filter { $0.target.contains("userfaultfd") }
                    guard open.isEmpty else { throw TestFailure("the process keeps \(open)") }
                }
                guard try !victim.flags().contains("uw") else { throw TestFailure("the memory is still tracked") }
                try victim.command("write 5 100")
            }
        }
    }

    @Test func `a tracker can be armed again`() async throws {
        try await onPlainThread {
            let victim = try Victim(pages: 1024)
            let tracker = try WriteTracker(try victim.block())
            for _ in 0..<3 {
                try tracker.arm()
                try victim.command("write 9 10")
                guard try !tracker.scan().isEmpty else { throw TestFailure("the writes were missed") }
                try tracker.disarm()
            }
        }
    }

    @Test func `memory that another userfaultfd has is refused as busy`() async throws {
        try await onPlainThread {
            let victim = try Victim(pages: 256)
            try victim.command("protect missing")
            let tracker = try WriteTracker(try victim.block())
            do throws(EngineError) {
                try tracker.arm()
            } catch {
                guard error.code == .busy, !error.remedy.isEmpty else { throw error }
                return
            }
            throw TestFailure("it was armed")
        }
    }

    @Test func `memory that has gone is an error and not unwritten`() async throws {
        try await onPlainThread {
            let victim = try Victim(pages: 256)
            let tracker = try WriteTracker(try victim.block())
            try tracker.arm()
            try victim.command("unmap")
            do throws(EngineError) { _ = try tracker.scan() } catch {
                guard error.code == .notFound else { throw error }
                return
            }
            throw TestFailure("memory that has gone was scanned")
        }
    }

    @Test func `tracking that somebody else has ended is an error and not an empty answer`() async throws {
        try await onPlainThread {
            let victim = try Victim(pages: 256)
            let first = try WriteTracker(try victim.block())
            try first.arm()
            victim.end()
            do throws(EngineError) { _ = try first.scan() } catch {
                guard error.code == .exited else { throw error }
                return
            }
            throw TestFailure("a process that has ended was scanned")
        }
    }
}
