// Memory seen from outside: the right bytes, and nothing allocated by looking.

import CheckpointCore
import FaultHarness
import Foundation
import LiveMemory
import Testing
import Units

@Suite(.asRoot) struct BlockTests {
    @Test func `pages that were never touched stay holes and read as zero`() async throws {
        try await onPlainThread {
            let victim = try Victim(pages: 4096, writers: 1)
            let block = try victim.block()
            try victim.command("write 3 40")
            let blocks = try victim.command("blocks")
            let present = try block.populate()
            guard present.count.int <= 40, !present.isEmpty else { throw TestFailure("\(present.count) pages are present") }
            let image = try Image(block)
            for page in 0..<4096 where !present.contains(page) {
                guard image.bytes[page * pageSize..<(page + 1) * pageSize].allSatisfy({ $0 == 0 }) else {
                    throw TestFailure("page \(page) is not zero")
                }
            }
            try victim.command("blocks").expect(blocks)
        }
    }

    @Test func `pages given back read as zero, mapped before or not`() async throws {
        try await onPlainThread {
            let victim = try Victim(pages: 64, writers: 1)
            let block = try victim.block()
            try victim.command("write 3 1000")
            guard try block.populate().count.int == 64 else { throw TestFailure("not all pages were written") }
            try victim.command("punch 10 20")
            guard try block.presentPages().count.int == 44 else { throw TestFailure("the hole is not seen") }
            let image = try Image(block)
            guard image.bytes[10 * pageSize..<30 * pageSize].allSatisfy({ $0 == 0 }) else { throw TestFailure("old bytes") }
        }
    }

    @Test func `private memory and memory that has gone are refused`() async throws {
        try await onPlainThread {
            let victim = try Victim(pages: 64)
            let target = try victim.target()
            let mappings = try target.mappings()
            for mapping in [mappings.first { !$0.isShared && $0.isWritable }!] {
                do throws(EngineError) { _ = try SharedMemoryBlock(target, mapping) } catch {
                    guard error.code == .invalidInput else { throw error }
                    continue
                }
                throw TestFailure("\(mapping) was opened")
            }
            let region = mappings.sharedRegions.first { $0.addresses.lowerBound == victim.address }!
            victim.end()
            do throws(EngineError) { _ = try SharedMemoryBlock(target, region) } catch {
                guard error.code == .exited else { throw error }
                return
            }
            throw TestFailure("the memory of a process that has ended was opened")
        }
    }
}
