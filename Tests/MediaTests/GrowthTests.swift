import Foundation
import Media
import Synchronization
import Testing
import Units

@Test func `what another handle has added is seen without asking`() throws {
    let directory = try ScratchDirectory()
    for locator in [try directory.locator(), try Locator(kind: .ram, target: "test-\(UUID())")] {
        defer { try? removeMedium(locator) }
        let writer = try createMedium(locator)
        let reader = try openMedium(locator, access: .readOnly)
        let second = try openMedium(locator, access: .readWrite)
        defer { [writer, reader, second].forEach { $0.close() } }
        #expect(reader.size == .zero)
        expectFailure(.outOfRange) { _ = try reader.bytes(at: 0, count: 1) }
        try writer.resize(to: ByteCount(10_000))
        try writer.write(pattern(1, count: 10_000), at: 0)
        #expect(try reader.bytes(at: 0, count: 10_000) == pattern(1, count: 10_000))
        #expect(reader.size == ByteCount(10_000))
        try second.write(pattern(2, count: 1000), at: 9_000)
        #expect(try reader.bytes(at: 9_000, count: 1000) == pattern(2, count: 1000))
        try writer.resize(to: .mebibytes(5))
        #expect(try second.refreshSize() == .mebibytes(5))
    }
}

@Test func `growing past the reserved addresses keeps everything readable`() throws {
    let directory = try ScratchDirectory()
    let medium = try createMedium(directory.locator(), size: .mebibytes(1))
    defer { medium.close() }
    try medium.write(pattern(7, count: 1 << 20), at: 0)
    for gigabytes in [1, 3, 9, 40] as [UInt64] {
        try medium.resize(to: .gibibytes(gigabytes))
        #expect(try medium.bytes(at: 0, count: 1 << 20) == pattern(7, count: 1 << 20))
        let end = medium.size.int - 5000
        try medium.write(pattern(gigabytes, count: 5000), at: end)
        #expect(try medium.bytes(at: end, count: 5000) == pattern(gigabytes, count: 5000))
    }
}

@Test func `a size that no address space holds is refused and leaves the medium as it was`() throws {
    let directory = try ScratchDirectory()
    for locator in [try directory.locator(), try Locator(kind: .ram, target: "test-\(UUID())")] {
        defer { try? removeMedium(locator) }
        let medium = try createMedium(locator, size: .mebibytes(1))
        defer { medium.close() }
        try medium.write(pattern(1, count: 4096), at: 0)
        for size in [UInt64.max, UInt64(Int64.max), 1 << 62] {
            #expect(throws: MediumError.self) { try medium.resize(to: ByteCount(size)) }
            #expect(try medium.refreshSize() == .mebibytes(1))
        }
        #expect(try medium.bytes(at: 0, count: 4096) == pattern(1, count: 4096))
    }
}

@Test func `readers run on while the medium grows under them`() throws {
    let directory = try ScratchDirectory()
    let locator = try directory.locator()
    let writer = try createMedium(locator, size: .mebibytes(1))
    let reader = try openMedium(locator, access: .readOnly)
    defer { [writer, reader].forEach { $0.close() } }
    let unit = 64 << 10
    let units = Atomic(0)
    let failure = Mutex<String?>(nil)
    @Sendable func content(_ index: Int) -> [UInt8] { pattern(UInt64(index), count: unit) }
    onThreads(4) { thread in
        do {
            if thread == 0 {
                // Three times past what a mapping of a gigabyte reserves, with content at each step.
                for index in 0..<300 {
                    let offset = index * (24 << 20)
                    try writer.resize(to: ByteCount(offset + unit))
                    try writer.write(content(index), at: offset)
                    units.store(index + 1, ordering: .releasing)
                }
            } else {
                var generator = SeededGenerator(seed: UInt64(thread))
                while units.load(ordering: .acquiring) < 300 {
                    let there = units.load(ordering: .acquiring)
                    guard there > 0 else { continue }
                    let index = Int.random(in: max(0, there - 3)..<there, using: &generator)
                    guard try reader.bytes(at: index * (24 << 20), count: unit) == content(index) else {
                        throw Failed(text: "unit \(index) of \(there) differs")
                    }
                }
            }
        } catch {
            failure.withLock { $0 = "thread \(thread): \(error)" }
            units.store(300, ordering: .releasing)
        }
    }
    #expect(failure.withLock { $0 } == nil)
}
