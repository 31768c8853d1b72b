// Pages of a stream in every order that a guest can cause, gathered into spans; and the memory that streams are written into.

import CLinux
import CheckpointCore
import FaultHarness
import Foundation
import Glibc
import MigrationStream
import StoreFormat
import Testing
import Threading
import Units

@testable import QEMUEngine

/// A region in memory that counts how often each page was put, and can be made to fail.
private final class CountingRegion: RegionSink {
    struct State {
        var bytes: [UInt8]
        var puts: [Int]
        var callsUntilFailure: Int?
    }
    let state: Lock<State>

    init(pages: Int, callsUntilFailure: Int? = nil) {
        state = Lock(
            State(
                bytes: [UInt8](repeating: 0xEE, count: pages * pageSize), puts: [Int](repeating: 0, count: pages),
                callsUntilFailure: callsUntilFailure))
    }

    func write(_ bytes: UnsafeRawBufferPointer, at first: PageIndex, isStable: Bool) throws(EngineError) {
        let failed = state.withLock { state in
            if let left = state.callsUntilFailure {
                guard left > 0 else { return true }
                state.callsUntilFailure = left - 1
            }
            for index in 0..<bytes.count / pageSize { state.puts[first.int + index] += 1 }
            let start = first.int * pageSize
            unsafe state.bytes.replaceSubrange(start..<start + bytes.count, with: bytes)
            return false
        }
        if failed { throw EngineError(.noSpace, "full on purpose") }
    }

    func put(page: PageIndex, _ bytes: UnsafeRawBufferPointer) throws(EngineError) {
        try unsafe write(bytes, at: page, isStable: true)
    }

    func putZeros(_ pages: Range<PageIndex>) throws(EngineError) {
        preconditionFailure("a collector puts zeros as pages")
    }
}

@Suite struct SpanCollectorTests {
    @Test func `pages of a stream reach their regions whatever order they come in, each once unless it comes again`() throws {
        let seed = ProcessInfo.processInfo.environment["CKSTORE_TEST_SEED"].flatMap { UInt64($0) } ?? UInt64.random(in: 0...UInt64.max)
        var random = SeededGenerator(seed: seed)
        for round in 0..<30 {
            let sizes = (0..<Int.random(in: 1...3, using: &random)).map { _ in Int.random(in: 1...2000, using: &random) }
            let regions = sizes.map { CountingRegion(pages: $0) }
            let collector = try SpanCollector(
                blocks: zip(sizes, regions).map { SpanCollector.Block(region: $1, pageCount: PageCount($0)) }, workers: 2) {}
            for (block, page) in Self.order(sizes, &random) {
                let value = Self.value(block, page)
                let bytes = [UInt8](repeating: value, count: pageSize)
                unsafe try bytes.withUnsafeBytes { bytes in
                    unsafe try collector.put(block: block, page: PageIndex(page), value == 0 ? nil : bytes)
                }
            }
            try collector.finish()
            for (block, region) in regions.enumerated() {
                let state = region.state.withLock { $0 }
                #expect(state.puts.allSatisfy { $0 == 1 }, "seed \(seed), round \(round), block \(block)")
                let isRight = (0..<sizes[block]).allSatisfy { page in
                    state.bytes[page * pageSize] == Self.value(block, page) && state.bytes[page * pageSize + 4095] == Self.value(block, page)
                }
                #expect(isRight, "seed \(seed), round \(round), block \(block)")
            }
        }
    }

    @Test func `a region that fails ends the collection with its error and no thread waits for ever`() throws {
        let region = CountingRegion(pages: 40_000, callsUntilFailure: 3)
        let collector = try SpanCollector(
            blocks: [SpanCollector.Block(region: region, pageCount: PageCount(40_000))], workers: 2) {}
        let bytes = [UInt8](repeating: 1, count: pageSize)
        let error = #expect(throws: EngineError.self) {
            for page in 0..<40_000 {
                unsafe try bytes.withUnsafeBytes { bytes in unsafe try collector.put(block: 0, page: PageIndex(page), bytes) }
            }
            try collector.finish()
        }
        #expect(error?.code == .noSpace)
    }

    /// Ascending, with jumps ahead as a guest's write faults cause them, one page at a time or many in a row.
    private static func order(_ sizes: [Int], _ random: inout SeededGenerator) -> [(block: Int, page: Int)] {
        var order: [(block: Int, page: Int)] = []
        for (block, size) in sizes.enumerated() {
            var sent = [Bool](repeating: false, count: size)
            let jumpiness = [0, 3, 30, 300].randomElement(using: &random)!
            for page in 0..<size {
                if Int.random(in: 0..<1000, using: &random) < jumpiness {
                    let start = Int.random(in: 0..<size, using: &random)
                    for ahead in start..<min(size, start + [1, 1, 20, 700].randomElement(using: &random)!) where !sent[ahead] {
                        sent[ahead] = true
                        order.append((block, ahead))
                    }
                }
                if !sent[page] {
                    sent[page] = true
                    order.append((block, page))
                }
            }
        }
        return order
    }

    /// What a page is filled with; some are zero.
    private static func value(_ block: Int, _ page: Int) -> UInt8 { page % 7 == 3 ? 0 : UInt8((page * 31 + block * 17) % 255 + 1) }
}

@Suite struct PhysicalMapTests {
    @Test func `the flat view of the memory address space is read, and no other one`() {
        let text = """
            FlatView #0
             AS "I/O", root: io
             Root memory region: io
              0000000000000000-0000000000000007 (prio 0, ram): not this
            FlatView #1
             AS "memory", root: system
             AS "cpu-memory-0", root: system
             Root memory region: system
              0000000000000000-00000000000c2fff (prio 0, ram): pc.ram
              00000000000c3000-00000000000e7fff (prio 0, rom): pc.ram @00000000000c3000
              00000000febf8000-00000000febf8fff (prio 0, i/o): virtio-pci-common-virtio-blk
              0000000100000000-000000013fffffff (prio 0, ram): a name with blanks @00000000c0000000 KVM

            """
        let ranges = PhysicalMap.ranges(text)
        #expect(
            ranges == [
                MachineRecord.PhysicalRange(block: "pc.ram", blockOffset: 0, physicalAddress: 0, byteLength: 0xC3000),
                MachineRecord.PhysicalRange(block: "pc.ram", blockOffset: 0xC3000, physicalAddress: 0xC3000, byteLength: 0x25000),
                MachineRecord.PhysicalRange(
                    block: "a name with blanks", blockOffset: 0xC000_0000, physicalAddress: 0x1_0000_0000, byteLength: 0x4000_0000),
            ])
        #expect(PhysicalMap.ranges("nothing of the kind").isEmpty)
    }
}
