// The memory of one instant, saved while writers go on.

import CLinux
import CheckpointCore
import FaultHarness
import Glibc
@testable import MachineMemory
import Testing
import Threading
import Units

@Suite(.serialized) struct InstantMemoryTests {
    /// Which method, with which options.
    enum Variant: String, CaseIterable {
        case copyOnWrite, protectedInTheStop, nothingKept, fewCopies, singlePages, twoFaultThreads, copyAhead, adaptive

        func make(_ memory: GuestMemory) throws(EngineError) -> any InstantMemory {
            var options = CopyOnWriteMemory.Options()
            switch self {
            case .copyAhead: return try CopyAheadMemory(memory)
            case .adaptive: return try AdaptiveMemory(memory)
            case .copyOnWrite: break
            case .protectedInTheStop: options.mostRounds = 0
            case .nothingKept: options.keepsProtection = false
            case .fewCopies: options.copyLimit = memory.unit
            case .singlePages: options.longestWindow = PageCount(1)
            case .twoFaultThreads: options.faultThreads = 2
            }
            return try CopyOnWriteMemory(memory, options: options)
        }
    }

    private static func checkpoints(
        _ memory: GuestMemory, _ instant: any InstantMemory, rounds: Int, writers count: Int, seed: UInt64
    ) throws {
        var random = SeededGenerator(seed: seed)
        defer { instant.close() }
        // A part is never touched.
        let pages = Int(memory.pageCount.rawValue)
        for _ in 0..<pages / 2 { unsafe memory.bytes.storeBytes(of: random.next(), toByteOffset: random.below(pages / 2) * pageSize, as: UInt64.self) }
        let writers = Writers(memory, count: count, seed: seed, sleepMicroseconds: random.chance(1, in: 2) ? 20 : 0)
        defer { writers.stop() }
        var parent: MemoryRegion?
        for round in 0..<rounds {
            usleep(UInt32(random.below(3000)))
            let isFull = random.chance(1, in: 4)
            let region = MemoryRegion(byteLength: memory.byteLength, parent: parent)
            region.delayMicroseconds = UInt32(random.below(200))
            try instant.prepare(isFull: isFull, into: region, hasParent: parent != nil, workers: 2)
            usleep(UInt32(random.below(1000)))
            writers.pause()
            let truth = memory.image
            try instant.mark(pending: PageRanges())
            writers.resume()
            let isGivenUp = random.chance(1, in: 5)
            if isGivenUp {
                usleep(UInt32(random.below(2000)))
                instant.cancel()
                continue
            }
            try instant.save(into: region, hasParent: parent != nil, workers: 2) { _, _ in }
            if let page = region.firstDifference(truth) {
                throw TestFailure("seed \(seed), round \(round): page \(page) is not as it was at the instant; \(instant.report)")
            }
            if instant is CopyOnWriteMemory, let page = region.putCounts.firstIndex(where: { $0 > 1 }) {
                throw TestFailure("seed \(seed), round \(round): page \(page) was saved \(region.putCounts[page]) times")
            }
            try instant.finish()
            parent = region
        }
    }

    @Test(arguments: Variant.allCases, GuestMemory.Sharing.allCases)
    func `each checkpoint has the memory as it was at its instant, whatever is written`(
        _ variant: Variant, _ sharing: GuestMemory.Sharing
    ) async throws {
        let seed = UInt64.random(in: .min ... .max)
        try await onPlainThread {
            for (pages, megabytes, writers) in [(GuestMemory.Pages.base, UInt64(16), 3), (.transparentHuge, 16, 2)] {
                let memory = try GuestMemory("ram", byteLength: .mebibytes(megabytes), pages: pages, sharing: sharing)
                try Self.checkpoints(memory, variant.make(memory), rounds: 8, writers: writers, seed: seed)
            }
        }
    }

    @Test(.enabled(if: HugePagePool.hasFree(16), "needs 16 free huge pages: sysctl vm.nr_hugepages"), arguments: GuestMemory.Sharing.allCases)
    func `huge pages are copied as wholes`(_ sharing: GuestMemory.Sharing) async throws {
        let seed = UInt64.random(in: .min ... .max)
        try await onPlainThread {
            for variant in [Variant.copyOnWrite, .protectedInTheStop, .fewCopies, .copyAhead] {
                let memory = try GuestMemory("ram", byteLength: .mebibytes(16), pages: .huge, sharing: sharing)
                try Self.checkpoints(memory, variant.make(memory), rounds: 6, writers: 2, seed: seed)
            }
        }
    }

    @Test func `a program's own memory is taken as it lies`() async throws {
        let seed = UInt64.random(in: .min ... .max)
        try await onPlainThread {
            let length = 8 << 20
            let own = unsafe mmap(nil, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)!
            defer { unsafe munmap(own, length) }
            let memory = try unsafe GuestMemory("table", adopting: UnsafeMutableRawBufferPointer(start: own, count: length))
            try Self.checkpoints(memory, Variant.copyOnWrite.make(memory), rounds: 5, writers: 2, seed: seed)
        }
    }

    @Test func `a checkpoint costs what was written since the last one`() async throws {
        try await onPlainThread {
            for variant in [Variant.copyOnWrite, .copyAhead] {
                let memory = try GuestMemory("ram", byteLength: .mebibytes(32))
                unsafe memset(memory.bytes.baseAddress!, 1, memory.bytes.count)
                let instant = try variant.make(memory)
                defer { instant.close() }
                let region = MemoryRegion(byteLength: memory.byteLength)
                func checkpoint() throws -> InstantReport {
                    try instant.prepare(isFull: false, into: region, hasParent: true, workers: 1)
                    try instant.mark(pending: PageRanges())
                    try instant.save(into: region, hasParent: true, workers: 1) { _, _ in }
                    try instant.finish()
                    return instant.report
                }
                guard try checkpoint().wantedPages == memory.pageCount else { throw TestFailure("\(variant): the first is not full") }
                for page in stride(from: 5, to: 8000, by: 80) { unsafe memory.bytes[page * pageSize] = 9 }
                let report = try checkpoint()
                guard report.wantedPages == PageCount(100) else { throw TestFailure("\(variant): \(report) after 100 writes") }
                guard try checkpoint().wantedPages == .zero else { throw TestFailure("\(variant): pages without a write") }
            }
        }
    }

    /// Takes one checkpoint, with `meanwhile` between the instant and the save.
    private static func take(_ instant: any InstantMemory, isFull: Bool, into region: MemoryRegion, hasParent: Bool, meanwhile: () -> Void = {}) throws {
        try instant.prepare(isFull: isFull, into: region, hasParent: hasParent, workers: 1)
        try instant.mark(pending: PageRanges())
        meanwhile()
        try instant.save(into: region, hasParent: hasParent, workers: 1) { _, _ in }
        try instant.finish()
    }

    @Test func `a checkpoint that fails while it is prepared loses no write`() async throws {
        try await onPlainThread {
            for variant in Variant.allCases {
                let memory = try GuestMemory("ram", byteLength: .mebibytes(4))
                for page in 0..<500 { unsafe memory.bytes[page * pageSize] = 1 }
                let instant = try variant.make(memory)
                defer { instant.close() }
                let region = MemoryRegion(byteLength: memory.byteLength)
                try Self.take(instant, isFull: true, into: region, hasParent: false)
                unsafe memory.bytes[3 * pageSize] = 2
                region.failsZeros = true
                do throws(EngineError) {
                    try instant.prepare(isFull: true, into: region, hasParent: true, workers: 1)
                    try instant.mark(pending: PageRanges())
                    try instant.save(into: region, hasParent: true, workers: 1) { _, _ in }
                    throw EngineError(.invalidInput, "nothing failed")
                } catch {
                    guard error.code == .noSpace else { throw error }
                }
                instant.cancel()
                region.failsZeros = false
                unsafe memory.bytes[4 * pageSize] = 2
                try Self.take(instant, isFull: false, into: region, hasParent: true)
                if let page = region.firstDifference(memory.image) { throw TestFailure("\(variant): page \(page) is missing") }
            }
        }
    }

    @Test func `a full checkpoint has everything, also what was given back to the system before`() async throws {
        try await onPlainThread {
            for variant in Variant.allCases {
                let memory = try GuestMemory("ram", byteLength: .mebibytes(4))
                for page in 0..<1024 { unsafe memory.bytes[page * pageSize] = 1 }
                let instant = try variant.make(memory)
                defer { instant.close() }
                try Self.take(instant, isFull: false, into: MemoryRegion(byteLength: memory.byteLength), hasParent: false)
                unsafe madvise(memory.bytes.baseAddress! + 7 * pageSize, pageSize, MADV_DONTNEED)
                unsafe memory.bytes[7 * pageSize + 1] = 5
                let truth = memory.image
                let full = MemoryRegion(byteLength: memory.byteLength)
                try Self.take(instant, isFull: true, into: full, hasParent: false) { unsafe memory.bytes[7 * pageSize] = 9 }
                if let page = full.firstDifference(truth) { throw TestFailure("\(variant): page \(page) of the full checkpoint differs") }
                try Self.take(instant, isFull: false, into: full, hasParent: true)
                if let page = full.firstDifference(memory.image) { throw TestFailure("\(variant): page \(page) of the next one differs") }
            }
        }
    }

    @Test(arguments: GuestMemory.Sharing.allCases)
    func `pages that were never touched take no memory and are not put`(_ sharing: GuestMemory.Sharing) async throws {
        try await onPlainThread {
            let memory = try GuestMemory("ram", byteLength: .gibibytes(4), sharing: sharing)
            unsafe memory.bytes[123 * pageSize] = 1
            let instant = try CopyOnWriteMemory(memory)
            defer { instant.close() }
            try instant.prepare(isFull: true)
            unsafe memory.bytes[456 * pageSize] = 1
            try instant.mark()
            unsafe memory.bytes[789 * pageSize] = 1
            guard instant.wantedPages == PageRanges([PageIndex(123)..<PageIndex(124), PageIndex(456)..<PageIndex(457)]) else {
                throw TestFailure("wanted: \(instant.wantedPages)")
            }
            instant.cancel()
        }
    }

    @Test func `what devices deliver after the copy of a page reaches the checkpoint's copy`() async throws {
        try await onPlainThread {
            let memory = try GuestMemory("ram", byteLength: .mebibytes(1), sharing: .shared)
            unsafe memset(memory.bytes.baseAddress!, 1, memory.bytes.count)
            let instant = try CopyOnWriteMemory(memory)
            defer { instant.close() }
            let region = MemoryRegion(byteLength: memory.byteLength)
            try instant.prepare(isFull: true)
            try instant.mark(pending: PageRanges([PageIndex(7)..<PageIndex(9)]))
            guard !instant.wasCopied(PageIndex(7)) else { throw TestFailure("copied without a write") }
            unsafe memory.bytes[7 * pageSize + 4000] = 2
            guard instant.wasCopied(PageIndex(7)), !instant.wasCopied(PageIndex(8)) else { throw TestFailure("the write's page alone is copied") }
            var copied: [PageIndex] = []
            instant.withCopies(of: PageIndex(6)..<PageIndex(9)) { copies in
                copied = copies.map(\.page)
                for copy in copies { unsafe memset(copy.bytes.baseAddress! + 512, 5, 512) }
            }
            guard copied == [PageIndex(7)] else { throw TestFailure("copies of pages \(copied)") }
            // A new read: its page is copied first, so that the checkpoint does not see it.
            instant.preserve(PageIndex(20)..<PageIndex(21))
            unsafe memory.deviceBytes[20 * pageSize] = 6
            try instant.save(into: region, hasParent: false, workers: 1) { _, _ in }
            let page = 7 * pageSize
            guard region.bytes[page + 511] == 1, region.bytes[page + 512] == 5, region.bytes[page + 1023] == 5, region.bytes[page + 4000] == 1,
                region.bytes[20 * pageSize] == 1
            else { throw TestFailure("the checkpoint has other bytes") }
            try instant.finish()
            try instant.prepare(isFull: false)
            try instant.mark()
            guard instant.wantedPages.contains(PageIndex(20)), instant.wantedPages.contains(PageIndex(7)) else {
                throw TestFailure("the device's write is not the next checkpoint's")
            }
            instant.cancel()
        }
    }

    @Test func `a region that fails leaves everything to the next checkpoint, and no writer waiting`() async throws {
        let seed = UInt64.random(in: .min ... .max)
        try await onPlainThread {
            for variant in Variant.allCases {
                let memory = try GuestMemory("ram", byteLength: .mebibytes(16))
                unsafe memset(memory.bytes.baseAddress!, 1, memory.bytes.count)
                let instant = try variant.make(memory)
                defer { instant.close() }
                let writers = Writers(memory, count: 2, seed: seed, sleepMicroseconds: 50)
                defer { writers.stop() }
                let broken = MemoryRegion(byteLength: memory.byteLength)
                broken.failsAfter = 3
                do throws(EngineError) {
                    try instant.prepare(isFull: false, into: broken, hasParent: false, workers: 2)
                    try instant.mark(pending: PageRanges())
                    try instant.save(into: broken, hasParent: false, workers: 2) { _, _ in }
                    throw EngineError(.invalidInput, "the region did not fail")
                } catch {
                    guard error.code == .noSpace else { throw error }
                }
                instant.cancel()
                let region = MemoryRegion(byteLength: memory.byteLength)
                try instant.prepare(isFull: false, into: region, hasParent: false, workers: 2)
                writers.pause()
                let truth = memory.image
                try instant.mark(pending: PageRanges())
                writers.resume()
                try instant.save(into: region, hasParent: false, workers: 2) { _, _ in }
                if let page = region.firstDifference(truth) { throw TestFailure("seed \(seed), \(variant): page \(page) differs") }
                try instant.finish()
            }
        }
    }

    @Test func `memory that can't be protected, or is watched already, is refused with a remedy`() async throws {
        try await onPlainThread {
            let file = try checked(unsafe ck_open("/var/tmp", UInt32(CK_READ_WRITE.rawValue | CK_TEMPORARY.rawValue)), "open a file")
            try checked(ck_set_size(file, 1 << 20), "give it a size")
            defer { close(file) }
            let mapped = unsafe mmap(nil, 1 << 20, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0)!
            defer { unsafe munmap(mapped, 1 << 20) }
            let onDisk = try unsafe GuestMemory("file", adopting: UnsafeMutableRawBufferPointer(start: mapped, count: 1 << 20))
            try Self.expect(.unsupported) { () throws(EngineError) in _ = try CopyOnWriteMemory(onDisk) }
            let ofFile = unsafe mmap(nil, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0)!
            defer { unsafe munmap(ofFile, 1 << 20) }
            try Self.expect(.unsupported) { () throws(EngineError) in
                _ = try unsafe GuestMemory("private", adopting: UnsafeMutableRawBufferPointer(start: ofFile, count: 1 << 20))
            }
            let memory = try GuestMemory("ram", byteLength: .mebibytes(1))
            let first = try CopyOnWriteMemory(memory)
            defer { first.close() }
            try Self.expect(.busy) { () throws(EngineError) in _ = try CopyOnWriteMemory(memory) }
            try Self.expect(.busy) { () throws(EngineError) in _ = try CopyAheadMemory(memory) }
            try Self.expect(.invalidInput) { () throws(EngineError) in
                _ = try unsafe GuestMemory("odd", adopting: UnsafeMutableRawBufferPointer(rebasing: memory.bytes[100..<5000]))
            }
            try Self.expect(.invalidInput) { () throws(EngineError) in _ = try GuestMemory("odd", byteLength: ByteCount(5000 as UInt64)) }
        }
    }

    private static func expect(_ code: EngineError.Code, _ body: () throws(EngineError) -> Void) throws {
        do throws(EngineError) { try body() } catch {
            guard error.code == code, !error.remedy.isEmpty else { throw error }
            return
        }
        throw TestFailure("no error of \(code)")
    }
}

/// The system's pool of huge pages.
enum HugePagePool {
    static func hasFree(_ count: UInt64) -> Bool {
        guard let number = try? MappedKind.number("/proc/meminfo", "HugePages_Free:") else { return false }
        return number >= count
    }
}
