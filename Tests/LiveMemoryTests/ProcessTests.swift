// What the kernel says about a process, read strictly, and never about another one.

import CheckpointCore
import FaultHarness
import Foundation
@testable import LiveMemory
import Testing
import Units

@Suite struct ProcessTests {
    private static func parse(_ line: String) -> MemoryMapping? { MemoryMapping(line: Array(line.utf8)[...]) }

    @Test func `mappings are understood whole or not at all`() throws {
        let mapping = try #require(Self.parse("7f0000000000-7f0000100000 rw-s 00002000 00:01 278                        /memfd:a b (deleted)"))
        #expect(mapping.addresses == TargetAddress(0x7f00_0000_0000 as UInt64)..<TargetAddress(0x7f00_0010_0000 as UInt64))
        #expect(mapping.isReadable && mapping.isWritable && !mapping.isExecutable && mapping.isShared)
        #expect(mapping.fileOffset == ByteCount(0x2000 as UInt64) && mapping.file == FileIdentity(major: 0, minor: 1, inode: 278))
        #expect(mapping.path == "/memfd:a b (deleted)")
        #expect(Self.parse("7f0000000000-7f0000001000 ---p 00000000 00:00 0 ")?.file == nil)
        for damaged in [
            "", "7f0000000000 rw-s 00002000 00:01 278", "7f00-7e00 rw-s 0 00:01 278", "7f00-7f00 rw-s 0 00:01 278", "7f00-8f00 rw-x 0 00:01 278",
            "7f00-8f00 rw-s 0 0001 278", "7f00-8f00 rw-s 0 00:01 -278", "7f00-8f00 rw-s 0 00:01", "7f00-8f00 rw-sp 0 00:01 1",
            "+7f00-8f00 rw-s 0 00:01 1", "7f00-8f00 rw-s g 00:01 1", "7f00-10000000000000000 rw-s 0 00:01 1", "Size: 4 kB", "VmFlags: rd wr",
        ] {
            #expect(Self.parse(damaged) == nil, "'\(damaged)'")
        }
    }

    @Test func `pieces of one mapping count as one`() throws {
        func line(_ text: String) throws -> MemoryMapping { try #require(Self.parse(text)) }
        let mappings = try [
            line("1000-3000 rw-s 00000000 00:01 5 /memfd:m (deleted)"), line("3000-4000 rw-s 00002000 00:01 5 /memfd:m (deleted)"),
            line("4000-5000 rw-s 00000000 00:01 5 /memfd:m (deleted)"), line("5000-6000 rw-p 00001000 00:01 5 /memfd:m (deleted)"),
            line("6000-7000 r--s 00002000 00:01 5 /memfd:m (deleted)"), line("7000-8000 rw-s 00001000 00:01 6 /memfd:n (deleted)"),
        ]
        #expect(mappings.sharedRegions.map(\.addresses.lowerBound.rawValue) == [0x1000, 0x4000, 0x7000])
        #expect(mappings.sharedRegions.map(\.length.rawValue) == [0x3000, 0x1000, 0x1000])
    }

    @Test func `sets of pages behave like sets`() {
        let seed = UInt64.random(in: .min ... .max)
        var random = SeededGenerator(seed: seed)
        for _ in 0..<2000 {
            func some() -> PageRanges {
                PageRanges((0..<random.below(6)).map { _ in
                    let first = random.below(40)
                    return PageIndex(first)..<PageIndex(first + random.below(8))
                })
            }
            func members(_ pages: PageRanges) -> Set<Int> { Set(pages.ranges.flatMap { $0.lowerBound.int..<$0.upperBound.int }) }
            let (a, b) = (some(), some())
            #expect(members(a.union(b)) == members(a).union(members(b)), "seed \(seed)")
            #expect(members(a.subtracting(b)) == members(a).subtracting(members(b)), "seed \(seed)")
            #expect(members(a.intersection(b)) == members(a).intersection(members(b)), "seed \(seed)")
            #expect(a.count.int == members(a).count, "seed \(seed)")
            var inside = Set<Int>()
            var all: [Int] = []
            a.split(PageIndex(5)..<PageIndex(35)) { (piece, isMember) in
                all += piece.lowerBound.int..<piece.upperBound.int
                if isMember { inside.formUnion(piece.lowerBound.int..<piece.upperBound.int) }
            }
            #expect(all == Array(5..<35) && inside == members(a).intersection(5..<35), "seed \(seed)")
            let (minimum, gap) = (random.below(6), random.below(4))
            let runs = a.longRuns(atLeast: PageCount(minimum), bridging: PageCount(gap))
            for run in runs.ranges {
                #expect((run.upperBound - run.lowerBound).int >= minimum && a.contains(run.lowerBound.int), "seed \(seed)")
            }
            #expect(a.longRuns(atLeast: .zero, bridging: .zero) == a, "seed \(seed)")
            #expect(a.subtracting(a.longRuns(atLeast: .zero, bridging: PageCount(gap))).isEmpty, "seed \(seed)")
        }
    }

    @Test(.asRoot) func `a process is known by its start, and its end is noticed`() async throws {
        try await onPlainThread {
            let victim = try Victim(pages: 16)
            let target = try TargetProcess(pid: victim.pid)
            _ = try TargetProcess(pid: victim.pid, startTime: target.startTime)
            try Self.expect(.notFound) { () throws(EngineError) in
                _ = try TargetProcess(pid: victim.pid, startTime: ProcessStartTime(target.startTime.rawValue + 1))
            }
            guard try target.descriptors().contains(where: { $0.target.hasPrefix("/memfd:victim") }), try target.threads().count == 3 else {
                throw TestFailure("descriptors or threads are missing")
            }
            try Self.expect(.notFound) { () throws(EngineError) in _ = try target.duplicate(descriptor: 999) }
            victim.end()
            try Self.expect(.exited) { () throws(EngineError) in _ = try target.mappings() }
            try Self.expect(.exited) { () throws(EngineError) in _ = try target.descriptors() }
            try Self.expect(.exited) { () throws(EngineError) in try target.checkRunning() }
            try Self.expect(.notFound) { () throws(EngineError) in _ = try TargetProcess(pid: victim.pid) }
        }
    }

    private static func expect(_ code: EngineError.Code, _ body: () throws(EngineError) -> Void) throws {
        do throws(EngineError) { try body() } catch {
            guard error.code == code else { throw TestFailure("\(error.code) instead of \(code): \(error)") }
            return
        }
        throw TestFailure("no error instead of \(code)")
    }

    @Test func `the least of the host and all control groups is available`() throws {
        let available = try HostMemory.available()
        #expect(available > .mebibytes(1) && available < .gibibytes(1 << 20))
        #expect(try HostMemory.available(to: getpid()) > .mebibytes(1))
        let root = FileManager.default.temporaryDirectory.appendingPathComponent("ckstore-groups-\(UUID().uuidString)")
        defer { try? FileManager.default.removeItem(at: root) }
        func group(_ path: String, limit: String, usage: String, reclaimable: Int) throws {
            let folder = root.appendingPathComponent(path)
            try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
            for (name, text) in [("memory.max", limit), ("memory.current", usage), ("memory.stat", "anon 5\ninactive_file \(reclaimable)")] {
                try (text + "\n").write(to: folder.appendingPathComponent(name), atomically: false, encoding: .utf8)
            }
        }
        func room(_ line: String) throws -> UInt64? {
            try HostMemory.groupAvailable([Array(line.utf8)[...]], root: root.path, place: "groups")?.rawValue
        }
        try group("a", limit: "1000", usage: "900", reclaimable: 300)
        try group("a/b", limit: "max", usage: "100", reclaimable: 0)
        try group("a/c", limit: "150", usage: "100", reclaimable: 0)
        try group("a/d", limit: "50", usage: "100", reclaimable: 0)
        #expect(try room("0::/a/b") == 400)
        #expect(try room("0::/a/c") == 50)
        #expect(try room("0::/a/d") == 0)
        #expect(try room("0::/elsewhere") == nil)
        #expect(throws: EngineError.self) { try room("nonsense") }
        try group("e", limit: "many", usage: "100", reclaimable: 0)
        #expect(throws: EngineError.self) { try room("0::/e") }
    }
}
