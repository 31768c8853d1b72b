// Memory that is used before it has been read.

import CLinux
import CheckpointCore
import CheckpointStore
import FaultHarness
import Glibc
import LiveCheckpoint
import MachineMemory
import StoreTesting
import Testing
import Threading
import Units

@Suite(.serialized) struct LazyRestoreTests {
    /// A checkpoint with a third of its pages written, and its content.
    private static func checkpoint(_ store: StoreBackedDataStore, pages: Int, seed: UInt64) throws -> [UInt8] {
        var random = SeededGenerator(seed: seed)
        let memory = try GuestMemory("ram", byteLength: PageCount(pages).bytes)
        for _ in 0..<pages / 3 { unsafe memory.bytes.storeBytes(of: random.next(), toByteOffset: random.below(pages * 512) * 8, as: UInt64.self) }
        let checkpointer = MemoryCheckpointer(store)
        defer { checkpointer.close() }
        try checkpointer.register(memory)
        try checkpointer.checkpoint("one")
        return unsafe [UInt8](memory.bytes)
    }

    @Test(arguments: [GuestMemory.Sharing.anonymous, .shared], [GuestMemory.Pages.base, .transparentHuge])
    func `every page reads as it was, whoever touches it first, and writes stay`(
        _ sharing: GuestMemory.Sharing, _ kind: GuestMemory.Pages
    ) async throws {
        let seed = UInt64.random(in: .min ... .max)
        try await onPlainThread {
            let scratch = try ScratchStore()
            let store = StoreBackedDataStore(scratch.store)
            let pages = 4096
            let truth = try Self.checkpoint(store, pages: pages, seed: seed)
            for round in 0..<5 {
                let memory = try GuestMemory("ram", byteLength: PageCount(pages).bytes, pages: kind, sharing: sharing)
                let restore = try LazyRestore([("ram", memory)], of: try store.source("one"))
                defer { restore.close() }
                let wrong = Lock<[Int]>([])
                PlainThreads.run(3) { number in
                    var random = SeededGenerator(seed: seed, UInt64(round), UInt64(number))
                    for _ in 0..<500 {
                        // The first half of each page is read, also as devices do, a word of the second half is written.
                        let page = random.below(pages)
                        let bytes = unsafe number == 2 ? memory.deviceBytes : memory.bytes
                        let start = page * pageSize
                        if unsafe memcmp(bytes.baseAddress! + start, Array(truth[start..<start + 2048]), 2048) != 0 { wrong.withLock { $0.append(page) } }
                        unsafe bytes.storeBytes(of: UInt64(page), toByteOffset: start + 4088, as: UInt64.self)
                    }
                }
                try restore.wait()
                guard restore.isComplete, wrong.withLock({ $0.isEmpty }) else { throw TestFailure("seed \(seed): pages \(wrong.withLock { $0 }) were wrong") }
                for page in 0..<pages {
                    let start = page * pageSize
                    let isRight = unsafe memcmp(memory.bytes.baseAddress! + start, Array(truth[start..<start + 4088]), 4088) == 0
                    let word = unsafe memory.bytes.loadUnaligned(fromByteOffset: start + 4088, as: UInt64.self)
                    let old = truth[start + 4088..<start + 4096].reversed().reduce(UInt64(0)) { $0 << 8 | UInt64($1) }
                    guard isRight, word == old || word == UInt64(page) else { throw TestFailure("seed \(seed), round \(round): page \(page) is wrong") }
                }
                // From here on it is ordinary memory.
                let instant = try CopyOnWriteMemory(memory)
                instant.close()
            }
        }
    }

    @Test func `memory that was touched before is refused, and nobody reads it as restored`() async throws {
        let seed = UInt64.random(in: .min ... .max)
        try await onPlainThread {
            let scratch = try ScratchStore()
            let store = StoreBackedDataStore(scratch.store)
            _ = try Self.checkpoint(store, pages: 256, seed: seed)
            let memory = try GuestMemory("ram", byteLength: PageCount(256).bytes)
            unsafe memset(memory.bytes.baseAddress!, 0, memory.bytes.count)
            let restore = try LazyRestore([("ram", memory)], of: try store.source("one"))
            defer { restore.close() }
            do throws(EngineError) {
                try restore.wait()
                throw EngineError(.ioFailed, "the restore is complete")
            } catch {
                guard error.code == .busy, !restore.isComplete else { throw error }
            }
        }
    }

    @Test func `a page that can't be read ends in SIGBUS and an error, never in other bytes`() async throws {
        let seed = UInt64.random(in: .min ... .max)
        try await onPlainThread {
            try checked(ck_guard_install(), "install the fault handler")
            let memory = try GuestMemory("ram", byteLength: .mebibytes(4), sharing: .shared)
            let restore = try LazyRestore([("ram", memory)], of: BrokenSource())
            defer { restore.close() }
            var page = [UInt8](repeating: 1, count: pageSize)
            var fault = ck_fault()
            let status = unsafe page.withUnsafeMutableBytes { unsafe ck_guarded_load($0.baseAddress!, memory.bytes.baseAddress! + 100 * pageSize, pageSize, &fault) }
            guard status == -1, fault.signal == SIGBUS else { throw TestFailure("seed \(seed): the page was read: \(page[0])") }
            do throws(EngineError) {
                try restore.wait()
                throw EngineError(.ioFailed, "the restore is complete")
            } catch {
                guard error.code == .corrupt else { throw error }
            }
        }
    }
}

/// A checkpoint of one region whose pages are damaged.
private struct BrokenSource: CheckpointSource, RegionSource {
    let name = "broken"
    let id = CheckpointID(UInt64(1))
    let regions = [RegionSummary(name: "ram", kind: .memory, byteLength: .mebibytes(4))]
    let byteLength = ByteCount.mebibytes(4)

    func region(_ name: String) throws(EngineError) -> any RegionSource { self }
    func blob(_ name: String, limit: ByteCount) throws(EngineError) -> [UInt8] { [] }
    func read(pages: Range<PageIndex>, into buffer: UnsafeMutableRawBufferPointer) throws(EngineError) {
        throw EngineError(.corrupt, "the pages are damaged")
    }
    func forEachSpanOfData(
        _ body: @escaping @Sendable (PageIndex, [Range<Int>], UnsafeRawBufferPointer) throws(EngineError) -> Void
    ) throws(EngineError) { throw EngineError(.corrupt, "the pages are damaged") }
    func dataRanges() throws(EngineError) -> [Range<PageIndex>] { [PageIndex(UInt64(0))..<PageIndex(UInt64(1024))] }
}
