// One guest's memory: rolled back byte for byte, its two kinds of read-only never mixed up.

import CheckpointCore
import FaultHarness
import Glibc
import GuestRollback
import MachineMemory
import Testing
import Threading
import Units

/// A processor that does nothing by itself.
final class IdleProcessor: GuestProcessor {
    let violations = Lock<[PageIndex]>([])
    let content = Lock<[UInt8]>([])
    let completions = Lock<[RequestCompletion]>([])
    let isRunning = Lock(false)

    func pause() { isRunning.withLock { $0 = false } }
    func resume() { isRunning.withLock { $0 = true } }
    func state() -> [UInt8] { content.withLock { $0 } }
    func restore(_ state: [UInt8]) { content.withLock { $0 = state } }
    func complete(_ completion: RequestCompletion) {
        completions.withLock { $0.append(completion) }
        completions.wake()
    }
    func violation(at page: PageIndex) { violations.withLock { $0.append(page) } }
}

/// `==` of raw buffers takes a tenth of a second for this in debug builds.
func isEqual(_ memory: GuestMemory, _ bytes: [UInt8]) -> Bool {
    unsafe bytes.withUnsafeBytes {
        unsafe $0.count == memory.bytes.count && memcmp($0.baseAddress!, memory.bytes.baseAddress!, $0.count) == 0
    }
}

extension RollbackGuest {
    /// Stores one byte for processor 0.
    @discardableResult func put(_ byte: UInt8, at address: Int) throws -> StoreOutcome {
        try unsafe withUnsafeBytes(of: byte) { unsafe try store($0, at: GuestAddress(address), by: ProcessorIndex(UInt64(0))) }
    }
}

@Suite(.serialized) struct GuestMemoryTests {
    @Test(arguments: GuestMemory.Sharing.allCases, [GuestMemory.Pages.base, .transparentHuge])
    func `a rollback restores memory and registers byte for byte, again and again`(
        _ sharing: GuestMemory.Sharing, _ pages: GuestMemory.Pages
    ) async throws {
        let seed = Programme.seed()
        try await onPlainThread {
            var random = SeededGenerator(seed: seed)
            let memory = try GuestMemory("ram", byteLength: .mebibytes(4), pages: pages, sharing: sharing)
            let processor = IdleProcessor()
            let guest = try RollbackGuest("g", memory: memory, processors: [processor])
            defer { guest.close() }
            for index in stride(from: 0, to: 4 << 20, by: 5000) { unsafe memory.bytes[index] = UInt8(truncatingIfNeeded: index) }
            for round in 0..<20 {
                processor.content.withLock { $0 = [UInt8(round)] }
                let before = unsafe Array(memory.bytes)
                try guest.checkpoint()
                for again in 0..<3 {
                    var pages: Set<Int> = []
                    for _ in 0..<random.below(300) {
                        let address = random.below(4 << 20)
                        pages.insert(address / pageSize)
                        try guest.put(UInt8(random.below(256)), at: address)
                    }
                    processor.content.withLock { $0 = [99] }
                    let report = try guest.rollBack()
                    guard report.restoredPages.int == pages.count else {
                        throw TestFailure("\(report.restoredPages) pages put back, \(pages.count) written")
                    }
                    guard isEqual(memory, before), processor.content.withLock({ $0 }) == [UInt8(round)] else {
                        throw TestFailure("round \(round).\(again): not as it was")
                    }
                }
                for _ in 0..<200 { try guest.put(UInt8(random.below(256)), at: random.below(4 << 20)) }
            }
        }
    }

    @Test(arguments: GuestMemory.Sharing.allCases)
    func `property 4: real read-only violations reach the guest, tracking faults never do`(_ sharing: GuestMemory.Sharing) async throws {
        try await onPlainThread {
            let memory = try GuestMemory("ram", byteLength: .mebibytes(1), sharing: sharing)
            let processor = IdleProcessor()
            let guest = try RollbackGuest("g", memory: memory, processors: [processor])
            defer { guest.close() }
            func expect(_ outcome: StoreOutcome, at page: Int, _ what: String, line: Int = #line) throws {
                processor.violations.withLock { $0 = [] }
                let before = unsafe memory.bytes[page * pageSize]
                let faults = guest.trackingFaults
                let got = try guest.put(before &+ 1, at: page * pageSize)
                let told = processor.violations.withLock { $0 }
                let isRefused = outcome != .stored
                guard got == outcome, told == (isRefused ? [PageIndex(page)] : []),
                    unsafe (memory.bytes[page * pageSize] == before) == isRefused
                else { throw TestFailure("line \(line): \(what): \(got), told of \(told)") }
                guard !isRefused || guest.trackingFaults == faults else { throw TestFailure("line \(line): a violation was tracked") }
            }
            let seven = PageIndex(7)..<PageIndex(9)
            try guest.setReadOnly(seven)
            try expect(.readOnly(PageIndex(7)), at: 7, "read-only, not tracked yet")
            try guest.checkpoint()
            try expect(.readOnly(PageIndex(7)), at: 7, "both marks")
            try expect(.stored, at: 6, "tracked alone")
            guard guest.trackingFaults == 1, guest.loggedPages.int == 1 else { throw TestFailure("\(guest.trackingFaults) faults") }
            try expect(.stored, at: 6, "no mark")
            guard guest.trackingFaults == 1 else { throw TestFailure("a second fault of a page") }
            try guest.setReadOnly(PageIndex(6)..<PageIndex(7))
            try expect(.readOnly(PageIndex(6)), at: 6, "read-only after it was written")
            try guest.setReadOnly(seven, false)
            try expect(.stored, at: 7, "writable again: the temporary mark is still there")
            guard guest.trackingFaults == 2, guest.loggedPages.int == 2 else { throw TestFailure("the mark got lost") }
            // A store over both kinds: the part before the read-only page may be there, nothing of that page.
            try guest.rollBack()
            try expect(.readOnly(PageIndex(8)), at: 8, "rolled back")
            try expect(.stored, at: 6, "rolled back: writable")
            let long = [UInt8](repeating: 5, count: 3 * pageSize)
            processor.violations.withLock { $0 = [] }
            let outcome = try unsafe long.withUnsafeBytes {
                unsafe try guest.store($0, at: GuestAddress(5 * pageSize), by: ProcessorIndex(UInt64(0)))
            }
            guard outcome == .readOnly(PageIndex(7)), processor.violations.withLock({ $0 }) == [PageIndex(7)],
                unsafe memory.bytes[7 * pageSize..<9 * pageSize].allSatisfy({ $0 == 0 })
            else { throw TestFailure("a long store: \(outcome)") }
            // A system call is refused as well, and does not hang.
            let file = unsafe open("/dev/zero", O_RDONLY)
            defer { close(file) }
            guard unsafe read(file, memory.bytes.baseAddress! + 7 * pageSize, 8) == -1, errno == EFAULT else {
                throw TestFailure("a system call wrote")
            }
            for bad in [PageIndex(255)..<PageIndex(257)] {
                do {
                    try guest.setReadOnly(bad)
                    throw TestFailure("pages beyond the end")
                } catch let error as EngineError { guard error.code == .invalidInput else { throw error } }
            }
        }
    }

    @Test func `a full log forces a checkpoint, and nothing is lost`() async throws {
        try await onPlainThread {
            let machine = ToyMachine(layout: ToyLayout(workPages: 64), seed: 5, length: 4000)
            let test = try TestGuest([machine], options: GuestOptions(logLimit: PageCount(8))) { ThreadProcessor($0) }
            let server = MoodyServer(test.devices[0], seed: 1, mostMicroseconds: 0)
            defer {
                test.guest.close()
                server.end()
                test.processors[0].end()
                test.close()
            }
            try test.guest.checkpoint()
            var most = PageCount.zero
            while try !test.processors[0].waitUntilHalted(milliseconds: 1) {
                most = max(most, test.guest.loggedPages)
                // What is held waits for checkpoints; when the guest waits for it, it writes nothing that would force one.
                if !test.guest.queueReport.held.isEmpty, test.guest.queueReport.unfinished.isEmpty { try test.guest.checkpoint() }
            }
            guard test.guest.forcedCheckpoints > 5 else { throw TestFailure("\(test.guest.forcedCheckpoints) forced checkpoints") }
            // What is written until the processor stands still comes on top. The program writes 71 pages.
            guard most.int <= 24 else { throw TestFailure("\(most) pages in a log for 8") }
            if let failure = test.guest.failure { throw failure }
            try test.check()
        }
    }

    @Test func `a rollback without a checkpoint, of a closed guest, or torn in the middle is said to be so`() async throws {
        try await onPlainThread {
            let test = try TestGuest(stepped: [ToyMachine(layout: ToyLayout(), seed: 3, length: 50)])
            func code(_ body: () throws -> Void) -> EngineError.Code? {
                do { try body() } catch { return (error as? EngineError)?.code }
                return nil
            }
            guard code({ try test.guest.rollBack() }) == .invalidInput else { throw TestFailure("rolled back to nothing") }
            try test.guest.checkpoint()
            defer { test.close() }
            let before = test.memoryBytes
            let state = test.processors[0].machine.encoded()
            for _ in 0..<30 where try test.processors[0].step() == .blocked {}
            test.processors[0].failsToRestore.withLock { $0 = true }
            guard code({ try test.guest.rollBack() }) == .refused else { throw TestFailure("a failed rollback") }
            guard code({ try test.guest.checkpoint() }) == .busy else { throw TestFailure("a torn guest became a checkpoint") }
            try test.guest.rollBack()
            guard test.memoryBytes == before, test.processors[0].machine.encoded() == state else { throw TestFailure("not as it was") }
            test.guest.close()
            guard code({ try test.guest.checkpoint() }) == .invalidInput else { throw TestFailure("a closed guest") }
        }
    }

    @Test func `a checkpoint and a rollback cost what was written: figures for 256 MiB, 1 % written`() async throws {
        try await onPlainThread {
            let memory = try GuestMemory("ram", byteLength: .mebibytes(256), pages: .transparentHuge)
            unsafe memset(memory.bytes.baseAddress!, 1, memory.bytes.count)
            let guest = try RollbackGuest("g", memory: memory, processors: [IdleProcessor()])
            defer { guest.close() }
            let first = try guest.checkpoint()
            let pages = memory.pageCount.int / 100
            func write() throws -> Duration {
                try ContinuousClock().measure { for page in 0..<pages { try guest.put(2, at: page * 97 * pageSize) } }
            }
            let firstWrites = try write()
            let again = try write()
            let checkpoint = try guest.checkpoint()
            _ = try write()
            let rollback = try guest.rollBack()
            print(
                "first checkpoint \(first.stopMicroseconds) us; \(pages) first writes \(firstWrites), again \(again); checkpoint "
                    + "\(checkpoint.stopMicroseconds) us; rollback \(rollback.stopMicroseconds) us")
            guard first.writtenPages == memory.pageCount, checkpoint.writtenPages.int == pages, rollback.restoredPages.int == pages else {
                throw TestFailure("\(checkpoint) \(rollback)")
            }
        }
    }
}
