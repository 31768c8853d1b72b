// What a store promises its callers, on files: names, parents, groups, readers beside writers.

import CheckpointStore
import FaultHarness
import Foundation
import Media
import StoreFormat
import StoreTesting
import Testing
import Units

/// A file in a folder of its own that goes when the test is over.
final class TemporaryStore: Sendable {
    let folder: String
    var path: String { folder + "/store.ck" }

    init() throws {
        folder = NSTemporaryDirectory() + "ckstore-" + UUID().uuidString
        try FileManager.default.createDirectory(
            atPath: folder, withIntermediateDirectories: false, attributes: [.posixPermissions: 0o700])
    }

    deinit { try? FileManager.default.removeItem(atPath: folder) }

    func create(_ size: ByteCount = .mebibytes(64), segment: ByteCount = .mebibytes(2)) throws -> CheckpointStore {
        let medium = try createMedium(try Locator(path), size: size, force: false)
        return try CheckpointStore.create(on: medium, options: CreateOptions(segmentSize: segment))
    }

    func open(_ access: MediumAccess = .readWrite, generation: Generation? = nil) throws -> CheckpointStore {
        try CheckpointStore.open(try openMedium(try Locator(path), access: access), generation: generation)
    }
}

/// Saves one region of memory under `name`.
@discardableResult
func save(
    _ name: String, _ bytes: [UInt8], parent: String? = nil, in store: CheckpointStore, parallelism: Int = 2
) throws -> CheckpointInfo {
    let writer = try store.begin(name, parent: parent, options: WriterOptions(parallelism: parallelism))
    try writer.addRegion("ram", kind: .memory, byteLength: ByteCount(bytes.count)).write(bytes)
    return try writer.commit()
}

/// `count` pages of the tests' usual mixture.
func makePages(_ count: Int, seed: UInt64) -> [UInt8] {
    var random = SeededGenerator(seed: seed)
    return (0..<count).flatMap { _ in makePage(&random) }
}

func code(of body: () throws -> Void) -> StoreError.Code? {
    do { try body() } catch { return (error as? StoreError)?.code }
    return nil
}

@Suite struct StoreTests {
    @Test func `a name can be used once, and again after its checkpoint is deleted`() throws {
        let place = try TemporaryStore()
        let store = try place.create()
        try save("a", makePages(10, seed: 1), in: store)
        #expect(code { try save("a", makePages(10, seed: 2), in: store) } == .exists)
        try store.delete(["a"])
        try save("a", makePages(10, seed: 3), in: store)
        try store.requireEqual(["a": ["ram": makePages(10, seed: 3)]])
    }

    @Test func `of two writers with one name the second to commit is refused and leaves no trace`() throws {
        let place = try TemporaryStore()
        let store = try place.create()
        let writers = try (0..<2).map { _ in try store.begin("twice") }
        for (index, writer) in writers.enumerated() {
            try writer.addRegion("ram", kind: .memory, byteLength: .kibibytes(40)).write(makePages(10, seed: UInt64(index)))
        }
        try writers[0].commit()
        #expect(code { try writers[1].commit() } == .exists)
        try store.requireEqual(["twice": ["ram": makePages(10, seed: 0)]])
    }

    @Test func `a parent that is deleted meanwhile is a wrong base`() throws {
        let place = try TemporaryStore()
        let store = try place.create()
        try save("parent", makePages(600, seed: 1), in: store)
        let writer = try store.begin("child", parent: "parent")
        try writer.addRegion("ram", kind: .memory, byteLength: ByteCount(600 * pageSize))
        try store.delete(["parent"])
        #expect(code { try writer.commit() } == .wrongBase)
        try store.requireEqual([:])
    }

    @Test func `a group is committed in one generation or not at all`() throws {
        let place = try TemporaryStore()
        let store = try place.create()
        func group(_ names: [String]) throws -> [CheckpointWriter] {
            try names.map { name in
                let writer = try store.begin(name)
                try writer.addRegion("ram", kind: .memory, byteLength: .kibibytes(4)).write(makePages(1, seed: 7))
                return writer
            }
        }
        let infos = try store.commit(try group(["rank0", "rank1", "rank2"]))
        #expect(Set(infos.map(\.generation)).count == 1)
        #expect(infos[0].groupID != nil && Set(infos.map(\.groupID)).count == 1)
        let late = try group(["rank3", "rank4"])
        try save("rank4", makePages(1, seed: 7), in: store)
        #expect(code { try store.commit(late) } == .exists)
        #expect(try store.snapshot().names() == ["rank0", "rank1", "rank2", "rank4"])
    }

    @Test func `a snapshot reads the same while its checkpoints are deleted and their space is wanted`() throws {
        let place = try TemporaryStore()
        let store = try place.create(.mebibytes(8), segment: .kibibytes(128))
        let bytes = makePages(500, seed: 4)
        try save("old", bytes, in: store)
        let other = try place.open()
        let reader = try other.snapshot().reader(named: "old").region("ram")
        try store.delete(["old"])
        var round = UInt64(0)
        // Fill what is free; the reader's segments must not be among it.
        while code(of: { try save("new\(round)", makePages(200, seed: 100 + round), in: store) }) == nil { round += 1 }
        #expect(round > 0)
        #expect(try reader.bytes() == bytes)
        other.close()
    }

    @Test func `a deleted checkpoint's space is used again`() throws {
        let place = try TemporaryStore()
        let store = try place.create(.mebibytes(6), segment: .kibibytes(128))
        for round in UInt64(0)..<20 {
            try save("only", makePages(500, seed: round), in: store)
            try store.requireEqual(["only": ["ram": makePages(500, seed: round)]])
            try store.delete(["only"])
        }
    }

    @Test func `a full store says so, keeps what it has and can delete`() throws {
        let place = try TemporaryStore()
        let store = try place.create(.mebibytes(4), segment: .kibibytes(128))
        var model: [String: ModelCheckpoint] = [:]
        var serial = UInt64(0)
        var failure: StoreError.Code?
        while failure == nil {
            let bytes = makePages(100, seed: serial)
            failure = code { try save("c\(serial)", bytes, in: store) }
            if failure == nil { model["c\(serial)"] = ["ram": bytes] }
            serial += 1
        }
        #expect(failure == .noSpace)
        try store.requireEqual(model)
        let names = model.keys.sorted()
        try store.delete(names)
        try store.requireEqual([:])
        try save("again", makePages(100, seed: 999), in: store)
    }

    @Test func `a reader with read access only sees what others commit`() throws {
        let place = try TemporaryStore()
        let store = try place.create()
        let reader = try place.open(.readOnly)
        #expect(try reader.snapshot().names() == [])
        try save("a", makePages(700, seed: 1), in: store)
        try reader.requireEqual(["a": ["ram": makePages(700, seed: 1)]])
        #expect(code { _ = try reader.begin("b") } == .readOnly)
    }

    @Test func `an older generation can be looked at and not written`() throws {
        let place = try TemporaryStore()
        let store = try place.create()
        let generation = try save("a", makePages(3, seed: 1), in: store).generation
        try save("b", makePages(3, seed: 2), in: store)
        let old = try place.open(.readWrite, generation: generation)
        #expect(try old.snapshot().names() == ["a"])
        #expect(old.isReadOnly)
        #expect(code { _ = try place.open(.readOnly, generation: Generation(UInt64(999))) } == .notFound)
    }

    @Test func `two handles in one process write at once without losing anything`() async throws {
        let place = try TemporaryStore()
        try place.create(.mebibytes(256)).close()
        try await onPlainThread {
            let threads = try (0..<3).map { number in
                let store = try place.open()
                return ThreadResult {
                    for round in 0..<8 {
                        try save("t\(number)r\(round)", makePages(300, seed: UInt64(number * 100 + round)), in: store)
                        if round % 3 == 2 { try store.delete(["t\(number)r\(round - 1)"]) }
                    }
                    store.close()
                }
            }
            for thread in threads { try thread.wait() }
        }
        var model: [String: ModelCheckpoint] = [:]
        for number in 0..<3 {
            for round in 0..<8 where ![1, 4].contains(round) {
                model["t\(number)r\(round)"] = ["ram": makePages(300, seed: UInt64(number * 100 + round))]
            }
        }
        try place.open().requireEqual(model)
    }

    @Test func `pages put in any order by several threads are all there`() async throws {
        let place = try TemporaryStore()
        let store = try place.create()
        let count = 3000
        let bytes = makePages(count, seed: 11)
        try await onPlainThread {
            let writer = try store.begin("scattered")
            let region = try writer.addRegion("ram", kind: .memory, byteLength: ByteCount(count * pageSize))
            let threads = (0..<4).map { number in
                ThreadResult {
                    var random = SeededGenerator(seed: UInt64(number))
                    for page in (0..<count).filter({ $0 % 4 == number }).shuffled(using: &random) {
                        try region.put(page: PageIndex(page), Array(bytes[page * pageSize..<(page + 1) * pageSize]))
                    }
                }
            }
            for thread in threads { try thread.wait() }
            try writer.commit()
        }
        try store.requireEqual(["scattered": ["ram": bytes]])
    }

    @Test func `a page put singly gives way to a later write of the same page`() throws {
        let place = try TemporaryStore()
        let store = try place.create()
        let writer = try store.begin("mixed")
        let region = try writer.addRegion("ram", kind: .memory, byteLength: .kibibytes(16))
        let (old, new) = (makePages(4, seed: 1), makePages(4, seed: 2))
        for page in 0..<4 { try region.put(page: PageIndex(page), Array(old[page * pageSize..<(page + 1) * pageSize])) }
        try region.write(new)
        try writer.commit()
        try store.requireEqual(["mixed": ["ram": new]])
    }

    @Test func `names that look alike but have other bytes are other names`() throws {
        let place = try TemporaryStore()
        let store = try place.create()
        let writer = try store.begin("alike")
        let (composed, decomposed) = ("\u{E9}", "e\u{301}")
        try unsafe [UInt8](repeating: 1, count: 10).withUnsafeBytes { try unsafe writer.putBlob(composed, $0) }
        try unsafe [UInt8](repeating: 2, count: 20).withUnsafeBytes { try unsafe writer.putBlob(decomposed, $0) }
        try writer.commit()
        let reader = try store.snapshot().reader(named: "alike")
        #expect(try reader.region(composed).info.byteLength == ByteCount(10))
        #expect(try reader.region(decomposed).info.byteLength == ByteCount(20))
    }

    @Test func `memory whose length is no multiple of the page is refused`() throws {
        let place = try TemporaryStore()
        let store = try place.create()
        let writer = try store.begin("odd")
        #expect(code { try writer.addRegion("ram", kind: .memory, byteLength: ByteCount(4097)) } == .invalidInput)
        #expect(code { try writer.addRegion("bad/name", kind: .disk, byteLength: ByteCount(1)) } == .invalidInput)
        writer.abort()
        #expect(code { _ = try store.begin("..") } == .invalidInput)
        #expect(try store.snapshot().names() == [])
    }

    @Test func `a cancelled writer throws and leaves no trace`() throws {
        let place = try TemporaryStore()
        let store = try place.create()
        let writer = try store.begin("never")
        let region = try writer.addRegion("ram", kind: .memory, byteLength: .mebibytes(4))
        try region.write(makePages(512, seed: 1))
        writer.cancel()
        #expect(code { try region.write(makePages(512, seed: 1), at: PageIndex(512)) } == .cancelled)
        #expect(code { try writer.commit() } == .cancelled)
        #expect(try store.snapshot().names() == [])
    }

    @Test func `a store of one tebibyte opens and commits by a handful of small reads`() throws {
        let device = SimulatedDevice(size: ByteCount(UInt64(1) << 40))
        let environment = testEnvironment(seed: 1)
        try CheckpointStore.create(on: FaultMedium(device), environment: environment).close()
        let medium = FaultMedium(device)
        let store = try CheckpointStore.open(medium, environment: environment)
        #expect(medium.faults.callCount(of: .read) <= 6)
        let flushes = medium.faults.callCount(of: .flush)
        try store.begin("empty", options: WriterOptions(parallelism: 1)).commit()
        // The first commit of a handle settles the state it found by one flush of its own.
        #expect(medium.faults.callCount(of: .flush) - flushes <= 3)
        let settled = medium.faults.callCount(of: .flush)
        try store.begin("empty too", options: WriterOptions(parallelism: 1)).commit()
        #expect(medium.faults.callCount(of: .flush) - settled == 2)
    }

    @Test func `a superblock ring that can't be read leaves the other one`() throws {
        let device = SimulatedDevice(size: .mebibytes(8))
        let environment = testEnvironment(seed: 5)
        let store = try CheckpointStore.create(
            on: FaultMedium(device), options: CreateOptions(segmentSize: .kibibytes(128)), environment: environment)
        let bytes = makePages(40, seed: 5)
        try save("a", bytes, in: store, parallelism: 1)
        let twinOffset = store.geometry.twinOffset
        store.close()
        for ring in [MediumOffset.zero, twinOffset] {
            let medium = FaultMedium(device, isReadOnly: true)
            let ringBytes = UInt64(16 * 4096)
            medium.faults.add(
                FaultRule(.read, .from(1), .fail(.ioFailed)) { call in
                    call.offset.map { $0 >= ring && $0.rawValue < ring.rawValue + ringBytes } ?? false
                })
            let half = try CheckpointStore.open(medium, environment: environment)
            try half.requireEqual(["a": ["ram": bytes]], deep: false)
            half.close()
        }
        let blind = FaultMedium(device, isReadOnly: true)
        blind.faults.add(FaultRule(.read, .from(1), .fail(.ioFailed)))
        #expect(code { _ = try CheckpointStore.open(blind, environment: environment) } == .ioFailed)
    }

    @Test func `enlarging makes room, shrinking needs free segments`() throws {
        let place = try TemporaryStore()
        let store = try place.create(.mebibytes(4), segment: .kibibytes(128))
        #expect(code { for serial in UInt64(0)..<100 { try save("c\(serial)", makePages(100, seed: serial), in: store) } } == .noSpace)
        let names = try store.snapshot().names()
        try store.resize(to: .mebibytes(40))
        try save("more", makePages(2000, seed: 5), in: store)
        #expect(code { try store.resize(to: .mebibytes(4)) } == .noSpace)
        try store.delete(["more"])
        try store.delete(names)
        try store.resize(to: .mebibytes(20))
        try save("after", makePages(100, seed: 6), in: store)
        store.close()
        try place.open().requireEqual(["after": ["ram": makePages(100, seed: 6)]])
    }

    @Test func `creating over a store needs force, and nobody may have it open`() throws {
        let place = try TemporaryStore()
        let store = try place.create()
        try save("a", makePages(3, seed: 1), in: store)
        #expect(code { _ = try CheckpointStore.create(on: try openMedium(try Locator(place.path), access: .readWrite)) } == .busy)
        store.close()
        #expect(code { _ = try CheckpointStore.create(on: try openMedium(try Locator(place.path), access: .readWrite)) } == .exists)
        let fresh = try CheckpointStore.create(
            on: try openMedium(try Locator(place.path), access: .readWrite), options: CreateOptions(segmentSize: .mebibytes(1), force: true))
        #expect(try fresh.snapshot().names() == [])
    }

    @Test func `thousands of checkpoints are all found, by name and by id`() throws {
        let device = SimulatedDevice(size: .mebibytes(512))
        let store = try CheckpointStore.create(on: FaultMedium(device), environment: testEnvironment(seed: 3))
        var ids: [String: CheckpointID] = [:]
        for group in 0..<20 {
            let writers = try (0..<100).map { number in
                try store.begin("checkpoint-\(group)-\(number)", options: WriterOptions(parallelism: 1))
            }
            for info in try store.commit(writers) { ids[info.name] = info.id }
        }
        for name in ids.keys.sorted().prefix(700) { try store.delete([name]); ids[name] = nil }
        let snapshot = try store.snapshot()
        #expect(snapshot.checkpointCount == ids.count)
        #expect(try snapshot.names().count == ids.count)
        for (name, id) in ids { #expect(try snapshot.checkpoint(named: name).id == id) }
        #expect(try store.verify().isSound)
    }
}

/// A thread whose error can be waited for.
final class ThreadResult: Sendable {
    private let semaphore = DispatchSemaphore(value: 0)
    private let failure = FailureBox()
    private final class FailureBox: @unchecked Sendable { var error: (any Error)? }

    init(_ body: @escaping @Sendable () throws -> Void) {
        let (semaphore, failure) = (semaphore, failure)
        Thread.detachNewThread {
            do { try body() } catch { failure.error = error }
            semaphore.signal()
        }
    }

    func wait() throws {
        semaphore.wait()
        if let error = failure.error { throw error }
    }
}
