// Every kind of medium against a model in memory: writes and reads of all alignments, through two
// handles, with growth and discarding in between.

import Foundation
import Media
import Synchronization
import Testing
import Units

/// Random operations on a medium and on an array must agree.
private func compareWithModel(_ locator: Locator, seed: UInt64, canResize: Bool, steps: Int = 250) throws {
    var generator = SeededGenerator(seed: seed)
    let handles = [try openMedium(locator, access: .readWrite), try openMedium(locator, access: .readWrite)]
    let reader = try openMedium(locator, access: .readOnly)
    defer { (handles + [reader]).forEach { $0.close() } }
    var model = [UInt8](repeating: 0, count: handles[0].size.int)
    let page = handles[0].traits.directAlignment
    func range(_ most: Int) -> Range<Int> {
        let aligned = Bool.random(using: &generator)
        var start = Int.random(in: 0..<model.count, using: &generator)
        var count = Int.random(in: 1...min(most, model.count - start), using: &generator)
        if aligned {
            start = start / page * page
            count = min((count + page - 1) / page * page, model.count - start)
        }
        return start..<start + count
    }
    for step in 0..<steps {
        let handle = handles.randomElement(using: &generator)!
        switch Int.random(in: 0..<20, using: &generator) {
        case 0..<8:
            let place = range(1 << 20)
            let bytes = pattern(generator.next(), count: place.count)
            try handle.write(bytes, at: place.lowerBound)
            model.replaceSubrange(place, with: bytes)
        case 8..<16:
            let place = range(1 << 20)
            let from = Bool.random(using: &generator) ? reader : handle
            #expect(
                try from.bytes(at: place.lowerBound, count: place.count) == Array(model[place]),
                "\(locator), seed \(seed), step \(step), \(place)")
        case 16:
            let place = range(1 << 20)
            try handle.reserve(at: MediumOffset(place.lowerBound), ByteCount(place.count))
        case 17: try handle.flush()
        case 18:
            // What was discarded may read as anything, so it is written again.
            let place = range(1 << 18)
            try handle.discard(at: MediumOffset(place.lowerBound), ByteCount(place.count))
            let bytes = pattern(generator.next(), count: place.count)
            try handle.write(bytes, at: place.lowerBound)
            model.replaceSubrange(place, with: bytes)
        default:
            guard canResize, model.count < 12 << 20 else { continue }
            let growth = Int.random(in: 1...(1 << 20), using: &generator)
            try handle.resize(to: ByteCount(model.count + growth))
            model += [UInt8](repeating: 0, count: growth)
        }
    }
    try handles[0].flush()
    #expect(try reader.bytes(at: 0, count: model.count) == model, "\(locator), seed \(seed)")
}

@Test func `a file holds what was written, whichever way it went`() throws {
    let directory = try ScratchDirectory()
    for seed in UInt64(1)...4 {
        try createMedium(directory.locator(), size: .mebibytes(4), force: true).close()
        try compareWithModel(directory.locator(), seed: seed, canResize: true)
    }
}

@Test func `shared memory holds what was written`() throws {
    let locator = try Locator(kind: .ram, target: "test-\(UUID())")
    defer { try? removeMedium(locator) }
    for seed in UInt64(11)...14 {
        try createMedium(locator, size: .mebibytes(4), force: true).close()
        try compareWithModel(locator, seed: seed, canResize: true)
    }
}

@Test func `flash without direct access holds what was written`() throws {
    let directory = try ScratchDirectory()
    let locator = try Locator(kind: .flash, target: directory.file())
    try createMedium(locator, size: .mebibytes(4)).close()
    try compareWithModel(locator, seed: 21, canResize: true)
}

@Test(.enabled(if: LoopDevice.isAvailable, LoopDevice.need))
func `a device holds what was written`() throws {
    let directory = try ScratchDirectory()
    let device = try LoopDevice(in: directory.path, megabytes: 8)
    try createMedium(device.locator()).close()
    try compareWithModel(device.locator(), seed: 31, canResize: false)
}

@Test func `persistent memory holds what was written`() async throws {
    let directory = try ScratchDirectory()
    let path = directory.file()
    await #expect(processExitsWith: .success) { [path = path as String] in
        // libpmem looks at this when it maps for the first time in a process.
        unsafe setenv("PMEM_IS_PMEM_FORCE", "1", 1)
        let locator = try Locator(kind: .flash, target: path)
        let medium = try createMedium(locator, size: .mebibytes(4))
        try #require(medium.traits.isPersistentMemory && medium.traits.writeMethod == "pmem")
        medium.close()
        try compareWithModel(locator, seed: 41, canResize: true)
    }
}

@Test func `the range must lie within the medium`() throws {
    let directory = try ScratchDirectory()
    let ram = try RAMMedium.anonymous(size: .mebibytes(1))
    let file = try createMedium(directory.locator(), size: .mebibytes(1))
    for medium in [file, ram] as [any Medium] {
        defer { medium.close() }
        for (offset, count) in [(1 << 20, 1), ((1 << 20) - 1, 2), (0, (1 << 20) + 1), (Int.max, 1)] {
            expectFailure(.outOfRange) { _ = try medium.bytes(at: offset, count: count) }
            expectFailure(.outOfRange) { try medium.write([UInt8](repeating: 1, count: count), at: offset) }
            expectFailure(.outOfRange) { try medium.reserve(at: MediumOffset(offset), ByteCount(count)) }
        }
        expectFailure(.outOfRange) { try medium.reserve(at: MediumOffset(UInt64.max), ByteCount(UInt64.max)) }
        expectFailure(.outOfRange) { try medium.discard(at: .zero, ByteCount(UInt64.max)) }
        try medium.write([], at: 1 << 20)
        #expect(try medium.bytes(at: 1 << 20, count: 0).isEmpty)
        #expect(medium.size == .mebibytes(1))
    }
}

@Test func `anonymous memory says which pages it got`() throws {
    let small = try RAMMedium.anonymous(size: .mebibytes(1))
    defer { small.close() }
    #expect(small.traits.writeMethod == "memory")
    #expect(!small.traits.isPersistent)
    let large = try RAMMedium.anonymous(size: .mebibytes(3), hugePages: true)
    defer { large.close() }
    #expect(
        ["memory", "memory, huge pages", "memory, transparent huge pages"].contains(large.traits.writeMethod))
    try large.reserve(at: .zero, large.size)
    let bytes = pattern(3, count: large.size.int)
    try large.write(bytes, at: 0)
    #expect(try large.bytes(at: 0, count: large.size.int) == bytes)
}

private let hugePagePool = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"

@Test(.enabled(if: getuid() == 0 && FileManager.default.fileExists(atPath: hugePagePool), "needs root and huge pages"))
func `memory of huge pages is mapped, written, grown and given back in huge pages`() throws {
    let pool = URL(fileURLWithPath: hugePagePool)
    let before = try String(contentsOf: pool, encoding: .utf8).trimmingCharacters(in: .whitespacesAndNewlines)
    let count = try #require(Int(before))
    try Data("\(count + 6)\n".utf8).write(to: pool)
    defer { try? Data("\(before)\n".utf8).write(to: pool) }
    let medium = try RAMMedium.anonymous(size: .mebibytes(3), hugePages: true)
    defer { medium.close() }
    #expect(medium.traits.writeMethod == "memory, huge pages")
    #expect(medium.size == .mebibytes(4))
    #expect(medium.traits.directAlignment == 2 << 20)
    let bytes = pattern(1, count: 4 << 20)
    try medium.reserve(at: .zero, medium.size)
    try medium.write(bytes, at: 0)
    try medium.resize(to: .mebibytes(6))
    try medium.write(bytes, at: 2 << 20)
    try medium.discard(at: MediumOffset(100), .mebibytes(4))
    #expect(try medium.bytes(at: 0, count: 2 << 20) == Array(bytes[..<(2 << 20)]))
    #expect(try medium.bytes(at: 4 << 20, count: 2 << 20) == Array(bytes[(2 << 20)...]))
    expectFailure(.systemLimit) { try medium.resize(to: .gibibytes(1024)) }
    #expect(try medium.refreshSize() == .mebibytes(6))
}

@Test func `a reader never sees old bytes after a direct write has returned`() throws {
    let directory = try ScratchDirectory()
    let medium = try createMedium(directory.locator(), size: .mebibytes(1))
    let reader = try openMedium(directory.locator(), access: .readOnly)
    defer { [medium, reader].forEach { $0.close() } }
    try medium.reserve(at: .zero, medium.size)
    let round = Atomic(0)
    let failure = Mutex<String?>(nil)
    onThreads(3) { thread in
        do {
            guard thread == 0 else {
                // Keeps the page cache filled with what is there at the moment.
                while round.load(ordering: .relaxed) < 40 { _ = try reader.bytes(at: 0, count: 1 << 20) }
                return
            }
            for number in 0..<40 {
                let bytes = pattern(UInt64(number), count: 1 << 20)
                try medium.write(bytes, at: 0)
                guard try reader.bytes(at: 0, count: 1 << 20) == bytes else { throw Failed(text: "round \(number)") }
                round.store(number + 1, ordering: .relaxed)
            }
        } catch {
            failure.withLock { $0 = "thread \(thread): \(error)" }
            round.store(40, ordering: .relaxed)
        }
    }
    #expect(failure.withLock { $0 } == nil)
}

@Test func `stores in shared memory can be found`() throws {
    let name = "test-\(UUID())"
    let locator = try Locator(kind: .ram, target: name)
    try createMedium(locator, size: .mebibytes(1)).close()
    #expect(RAMMedium.names().contains(name))
    try removeMedium(locator)
    #expect(!RAMMedium.names().contains(name))
}
