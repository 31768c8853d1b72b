// The memory of one instant, although the process goes on writing.

import CheckpointCore
import FaultHarness
import Foundation
@testable import LiveMemory
import Testing
import Threading
import Units

@Suite(.asRoot, .serialized) struct CopyOnWriteTests {
    /// Delivers everything into an image; throws when a page comes twice or was not asked for.
    private static func collect(_ ranges: CopyOnWriteRanges, _ pages: PageRanges, into image: inout Image) throws {
        var seen = PageRanges()
        unsafe try ranges.deliver { (first, bytes) throws(EngineError) in
            let range = first..<first + PageCount(bytes.count / pageSize)
            guard seen.intersection(PageRanges([range])).isEmpty else {
                throw EngineError(.protocolViolation, "pages \(range) came twice")
            }
            seen = seen.union(PageRanges([range]))
            unsafe image.bytes.withUnsafeMutableBytes {
                unsafe UnsafeMutableRawBufferPointer(rebasing: $0[first.int * pageSize..<first.int * pageSize + bytes.count]).copyMemory(from: bytes)
            }
        }
        guard seen == pages else { throw TestFailure("\(seen.count) pages came instead of \(pages.count)") }
    }

    private static func checkpoints(pages: Int, writers: Int, isHuge: Bool, rounds: Int) throws {
        let seed = UInt64.random(in: .min ... .max)
        var random = SeededGenerator(seed: seed)
        let victim = try Victim(pages: pages, isHuge: isHuge, writers: writers)
        let block = try victim.block()
        try victim.command("write \(random.next()) \(pages)")
        let tracker = try WriteTracker(block)
        try tracker.arm()
        try block.populate()
        var image = try Image(block)
        for round in 0..<rounds {
            try victim.command("run")
            if round % 2 == 0 { usleep(UInt32(random.below(5000))) }
            let ranges = try CopyOnWriteRanges(block)
            // What is prepared, and what is scanned in the stop, make up all that was written.
            let before = try tracker.scan()
            try image.refresh(before, from: block)
            try ranges.prepare(before.longRuns(atLeast: PageCount(random.below(40)), bridging: PageCount(random.below(3))), from: tracker)
            if round % 2 == 1 { usleep(UInt32(random.below(5000))) }
            try victim.command("pause")
            try ranges.protect()
            try image.refresh(try tracker.scan(), from: block)
            let truth = try Image(block)
            try victim.command("run")
            let dirty = ranges.pages
            try collect(ranges, dirty, into: &image)
            let differences = image.differences(truth)
            guard differences.isEmpty else {
                throw TestFailure("seed \(seed), round \(round): \(differences.count) of \(dirty.count) pages differ, first \(differences[0])")
            }
        }
        try victim.command("pause")
        try image.refresh(try tracker.scan(), from: block)
        guard try image.differences(Image(block)).isEmpty else { throw TestFailure("seed \(seed): a write after the copying was missed") }
    }

    @Test func `hard writers don't reach what is delivered, and tracking goes on afterwards`() async throws {
        try await onPlainThread {
            try Self.checkpoints(pages: 8192, writers: 2, isHuge: false, rounds: 6)
            try Self.checkpoints(pages: 4096, writers: 4, isHuge: false, rounds: 6)
        }
    }

    @Test func `scattered pages are delivered and nothing else`() async throws {
        try await onPlainThread {
            let victim = try Victim(pages: 4096)
            let block = try victim.block()
            try victim.command("write 1 4096")
            var image = try Image(block)
            let truth = image
            let pages = PageRanges(stride(from: 3, to: 4000, by: 7).map { PageIndex($0)..<PageIndex($0 + 1) })
            let ranges = try CopyOnWriteRanges(block)
            try ranges.prepare(pages)
            try ranges.protect()
            try victim.command("run")
            try victim.command("write 2 500")
            try Self.collect(ranges, pages, into: &image)
            guard truth.differences(image).isEmpty else { throw TestFailure("other bytes than at the instant") }
        }
    }

    @Test func `a cancel, and an error of the receiver, let the process go on`() async throws {
        try await onPlainThread {
            for isCancelled in [true, false] {
                let victim = try Victim(pages: 4096)
                let block = try victim.block()
                try victim.command("write 1 9000")
                let ranges = try CopyOnWriteRanges(block)
                try ranges.prepare(PageRanges([block.pages]))
                try ranges.protect()
                try victim.command("run")
                if isCancelled {
                    try ranges.cancel()
                    try ranges.cancel()
                } else {
                    do throws(EngineError) {
                        unsafe try ranges.deliver { (_, _) throws(EngineError) in throw EngineError(.noSpace, "the store is full") }
                    } catch {
                        guard error.code == .noSpace else { throw error }
                    }
                }
                guard try !victim.flags().contains("uw") else { throw TestFailure("still protected") }
                try victim.command("write 2 500")
                try victim.waitForWrites()
            }
        }
    }

    @Test func `a process that ends meanwhile has left its memory as it was`() async throws {
        try await onPlainThread {
            let victim = try Victim(pages: 4096)
            let block = try victim.block()
            try victim.command("write 1 9000")
            let truth = try Image(block)
            var image = truth
            image.bytes = [UInt8](repeating: 0xEE, count: truth.bytes.count)
            let ranges = try CopyOnWriteRanges(block)
            try ranges.prepare(PageRanges([block.pages]))
                try ranges.protect()
            try victim.command("run")
            usleep(1000)
            victim.end()
            try Self.collect(ranges, PageRanges([block.pages]), into: &image)
            guard truth.differences(image).isEmpty else { throw TestFailure("other bytes than at the instant") }
        }
    }

    @Test func `huge pages are tracked and copied on write`() async throws {
        try await onPlainThread {
            try HugePages.with(32) {
                try Self.checkpoints(pages: 512 * 12, writers: 3, isHuge: true, rounds: 4)
            }
        }
    }

    @Test func `when the one who protected is killed, the kernel lets the process go on`() async throws {
        let victim = try await onPlainThread {
            let victim = try Victim(pages: 2048)
            try victim.command("write 1 9000")
            try victim.command("run")
            return Handed(victim)
        }.value
        await #expect(processExitsWith: .signal(SIGKILL)) { [pid = victim.pid as Int32] in
            let target = try TargetProcess(pid: pid)
            let block = try SharedMemoryBlock(target, target.mappings().sharedRegions.first { $0.path.hasPrefix("/memfd:victim") }!)
            let tracker = try WriteTracker(block)
            try tracker.arm()
            let ranges = try CopyOnWriteRanges(block)
            try ranges.prepare(PageRanges([block.pages]), from: tracker)
            try ranges.protect()
            // In the middle of serving faults: only contents would need a process that stands still.
            usleep(500)
            kill(getpid(), SIGKILL)
        }
        let handed = Handed(victim)
        try await onPlainThread {
            let victim = handed.value
            try victim.command("write 2 500")
            try victim.waitForWrites()
            guard try victim.flags().isDisjoint(with: ["uw", "um"]) else { throw TestFailure("still registered") }
        }
    }
}
