// What mounted checkpoints read as: by read, at random places, mapped, in holes, from several threads.

import CheckpointStore
import FaultHarness
import Foundation
import QEMUTesting
import StoreTesting
import Synchronization
import Testing
import Units

private let dataWhence: Int32 = 3
private let holeWhence: Int32 = 4

/// A few checkpoints one on the other, of which each changes some pages; names that are hard on programs.
///
/// Not a dictionary: some of the names are equal to Swift, though not to the store.
private func makeFamily(_ scene: MountScene, seed: UInt64) throws -> [(name: String, regions: [(name: String, bytes: [UInt8])])] {
    var random = SeededGenerator(seed: seed)
    var model: [(name: String, regions: [(name: String, bytes: [UInt8])])] = []
    let long = String(repeating: "ä", count: 127) + "x"
    var regions: [(name: String, bytes: [UInt8])] = [
        ("ram", content(9 << 20, seed: seed + 1)), ("disk: 0", content(3 << 20, seed: seed + 2)),
        ("e\u{301}", content(5000, seed: seed + 3)), ("\u{e9}", content(1, seed: seed + 4)), (long, content(4096, seed: seed + 5)),
        ("empty", []),
    ]
    var parent: String?
    for name in ["first", "-r *", long, "e\u{301}", "\u{e9}"] {
        for _ in 0..<random.below(200) {
            let page = random.below(9 << 8)
            regions[0].bytes.replaceSubrange(page * pageSize..<(page + 1) * pageSize, with: makePage(&random))
        }
        try scene.save(name, parent: parent, regions.map { ($0.name, $0.bytes) })
        model.append((name, regions))
        parent = name
    }
    return model
}

@Suite(.enabled(if: MountSupport.isAvailable, Comment(rawValue: MountSupport.reason)), .serialized)
struct ReadingTests {
    @Test func `every region of every checkpoint reads as it was saved, whole and at random places, read and mapped`() async throws {
        try await onPlainThread {
            let seed = UInt64.random(in: .min ... .max)
            print("seed \(seed)")
            let scene = try MountScene()
            let model = try makeFamily(scene, seed: seed & 0xFFFF)
            try scene.mounted("--cache", "8M") { _ throws in
                var random = SeededGenerator(seed: seed)
                #expect(Set(try scene.names().map { Array($0.utf8) }) == Set(model.map { Array($0.name.utf8) }))
                // The name that moves is a link to one of them.
                let latest = try FileManager.default.destinationOfSymbolicLink(atPath: scene.path("latest"))
                #expect(model.contains { $0.name == latest })
                for (name, regions) in model {
                    let found = try scene.names(name)
                    #expect(Set(found.map { Array($0.utf8) }) == Set((regions.map(\.name) + ["checkpoint.json"]).map { Array($0.utf8) }))
                    for (region, bytes) in regions {
                        let path = scene.path(name, region)
                        try requireSame(path, bytes, &random)
                        try requireSameMapped(path, bytes, &random)
                    }
                }
                #expect(scene.log == [])
            }
        }
    }

    private func requireSame(_ path: String, _ bytes: [UInt8], _ random: inout SeededGenerator) throws {
        let file = try OpenedFile(path)
        for _ in 0..<40 {
            let offset = random.below(bytes.count + 5000)
            let count = random.below(random.chance(1, in: 8) ? 3 << 20 : 20_000)
            let expected = offset < bytes.count ? Array(bytes[offset..<min(bytes.count, offset + count)]) : []
            guard try file.read(at: offset, count) == expected else { throw Mismatch("\(path): \(count) bytes at \(offset)") }
        }
        guard try file.read(at: 0, bytes.count + 1) == bytes else { throw Mismatch("\(path) as a whole") }
        var status = stat()
        try #require(unsafe fstat(file.descriptor, &status) == 0)
        #expect(Int(status.st_size) == bytes.count)
        #expect(Int(status.st_blocks) == nonZeroPages(bytes) * 8)
    }

    private func requireSameMapped(_ path: String, _ bytes: [UInt8], _ random: inout SeededGenerator) throws {
        guard !bytes.isEmpty else { return }
        let file = try OpenedFile(path)
        for isPrivate in [false, true] {
            let memory = unsafe mmap(
                nil, bytes.count, PROT_READ | (isPrivate ? PROT_WRITE : 0), isPrivate ? MAP_PRIVATE : MAP_SHARED, file.descriptor, 0)
            try #require(unsafe memory != MAP_FAILED)
            defer { unsafe munmap(memory, bytes.count) }
            for _ in 0..<200 {
                let place = random.below(bytes.count)
                let found = unsafe memory!.load(fromByteOffset: place, as: UInt8.self)
                guard found == bytes[place] else { throw Mismatch("\(path), mapped, at \(place)") }
            }
            guard isPrivate else { continue }
            // What is written to a private mapping is nobody else's.
            unsafe memset(memory!, 0x5A, min(bytes.count, 5000))
            #expect(try file.read(at: 0, 5000) == Array(bytes[..<min(bytes.count, 5000)]))
        }
    }

    @Test func `holes are where pages are zero, and files far larger than memory are found through`() async throws {
        try await onPlainThread {
            let scene = try MountScene()
            let bytes = content(11 << 20, seed: 77)
            try scene.save("one", ["ram": bytes, "full": content(1, seed: 3) + [1], "zero": [UInt8](repeating: 0, count: 3 << 20)])
            let huge = ByteCount(UInt64(1) << 50)
            let writer = try scene.store.begin("huge")
            let region = try writer.addRegion("disk", kind: .disk, byteLength: huge)
            let places = [3, 1 << 20, 1 << 30, (1 << 38) - 1]
            for place in places { try region.put(page: PageIndex(place), [UInt8](repeating: 9, count: pageSize)) }
            try writer.commit()
            try scene.mounted { _ throws in
                try requireHoles(scene.path("one", "ram"), bytes)
                try requireHoles(scene.path("one", "zero"), [UInt8](repeating: 0, count: 3 << 20))
                let file = try OpenedFile(scene.path("huge", "disk"))
                var found: [Int] = []
                var offset = 0
                while let data = file.seek(offset, dataWhence) {
                    found.append(data / pageSize)
                    offset = try #require(file.seek(data, holeWhence))
                    #expect(offset == data + pageSize)
                }
                #expect(found == places)
                #expect(try file.read(at: places[2] * pageSize - 1, 3) == [0, 9, 9])
            }
        }
    }

    private func requireHoles(_ path: String, _ bytes: [UInt8]) throws {
        let file = try OpenedFile(path)
        let zero = stride(from: 0, to: bytes.count, by: pageSize).map { start in
            bytes[start..<min(start + pageSize, bytes.count)].allSatisfy { $0 == 0 }
        }
        var random = SeededGenerator(seed: 5)
        for _ in 0..<500 {
            let offset = random.below(bytes.count)
            let page = offset / pageSize
            let data = (page..<zero.count).first { !zero[$0] }.map { max(offset, $0 * pageSize) }
            let hole = (page..<zero.count).first { zero[$0] }.map { max(offset, $0 * pageSize) } ?? bytes.count
            guard file.seek(offset, dataWhence) == data, file.seek(offset, holeWhence) == hole else {
                throw Mismatch("holes of \(path) at \(offset)")
            }
        }
        #expect(file.seek(bytes.count, dataWhence) == nil)
        #expect(file.seek(bytes.count, holeWhence) == nil)
    }

    /// O_DIRECT, which Swift does not know.
    private static let direct: Int32 = 0o40000

    @Test func `many threads read many files in little memory`() async throws {
        try await onPlainThread {
            let scene = try MountScene(.mebibytes(256))
            var contents: [[UInt8]] = []
            for number in 0..<48 {
                contents.append(content(3 << 20, seed: UInt64(number)))
                try scene.save("cp\(number)", ["ram": contents[number]])
            }
            try scene.mounted("--cache", "4M") { process throws in
                let failures = Mutex<[String]>([])
                let (paths, all) = ((0..<48).map { scene.path("cp\($0)", "ram") }, contents)
                PlainThreads.run(8) { number in
                    do {
                        var random = SeededGenerator(seed: UInt64(number))
                        let files = try paths.map { try OpenedFile($0, O_RDONLY | Self.direct) }
                        for _ in 0..<300 {
                            let (which, page) = (random.below(48), random.below(768 - 32))
                            let range = page * pageSize..<(page + 1 + random.below(32)) * pageSize
                            let found = try files[which].readAligned(range)
                            if found != Array(all[which][range]) { throw Mismatch("\(paths[which]) at \(range)") }
                        }
                    } catch { failures.withLock { $0.append("\(error)") } }
                }
                #expect(failures.withLock { $0 } == [])
                // The program itself, 4 MiB of cache, 32 readers, and what requests are just sending.
                #expect(try peakMemory(of: process) < .mebibytes(200))
            }
        }
    }
}

extension OpenedFile {
    /// Reads past the page cache.
    func readAligned(_ range: Range<Int>) throws -> [UInt8] {
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: range.count, alignment: pageSize)
        defer { unsafe buffer.deallocate() }
        let done = unsafe pread(descriptor, buffer.baseAddress, range.count, off_t(range.lowerBound))
        guard done == range.count else { throw POSIXError(.EIO) }
        return unsafe Array(buffer)
    }
}
