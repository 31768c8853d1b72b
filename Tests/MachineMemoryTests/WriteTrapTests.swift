// Writes are caught before they happen, on every kind of memory.

import CheckpointCore
import FaultHarness
import Glibc
import MachineMemory
import Testing
import Threading
import Units

@Suite(.serialized) struct WriteTrapTests {
    @Test(arguments: GuestMemory.Sharing.allCases, [GuestMemory.Pages.base, .transparentHuge])
    func `a write waits until its page is released, and the handler sees the old content`(
        _ sharing: GuestMemory.Sharing, _ pages: GuestMemory.Pages
    ) async throws {
        try await onPlainThread {
            let memory = try GuestMemory("ram", byteLength: .mebibytes(8), pages: pages, sharing: sharing)
            unsafe memory.bytes[5 * pageSize] = 7
            let seen = Lock<[PageIndex: UInt8]>([:])
            let trap = try WriteTrap(memory) { page, trap in
                seen.withLock { unsafe $0[page] = memory.bytes[page.int * pageSize] }
                try! trap.release(page..<page + PageCount(1))
            }
            defer { trap.close() }
            try trap.protect(memory.allPages)
            for page in [5, 9, 2047] { unsafe memory.bytes[page * pageSize] = 200 }
            unsafe memory.bytes[5 * pageSize + 1] = 201
            guard seen.withLock({ $0 == [PageIndex(5): 7, PageIndex(9): 0, PageIndex(2047): 0] }) else {
                throw TestFailure("seen: \(seen.withLock { $0 })")
            }
        }
    }

    @Test func `a system call that writes waits as well`() async throws {
        try await onPlainThread {
            let memory = try GuestMemory("ram", byteLength: .mebibytes(1), sharing: .shared)
            let faults = Lock(0)
            let trap = try WriteTrap(memory) { page, trap in
                faults.withLock { $0 += 1 }
                try! trap.release(page..<page + PageCount(1))
            }
            defer { trap.close() }
            try trap.protect(memory.allPages)
            let file = unsafe open("/dev/urandom", O_RDONLY)
            defer { close(file) }
            guard unsafe read(file, memory.bytes.baseAddress!, 3 * pageSize) == 3 * pageSize else { throw TestFailure("read failed") }
            guard faults.withLock({ $0 }) == 3 else { throw TestFailure("\(faults.withLock { $0 }) faults") }
            // The device's mapping does not trap.
            unsafe memory.deviceBytes[100 * pageSize] = 3
            guard faults.withLock({ $0 }) == 3, unsafe memory.bytes[100 * pageSize] == 3 else { throw TestFailure("the device's write trapped") }
        }
    }
}
