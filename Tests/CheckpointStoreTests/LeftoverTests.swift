// Space that could not be given back when it became free comes back later, and not before it may.

@testable import CheckpointStore
import FaultHarness
import Foundation
import Glibc
import Media
import StoreFormat
import StoreTesting
import Testing
import Units

/// A store in a real file, and other handles on it as other processes have them.
private final class Scene {
    let scratch: ScratchStore
    var store: CheckpointStore { scratch.store }
    private var random = SeededGenerator(seed: 8)
    private(set) var model: [String: ModelCheckpoint] = [:]

    init() throws { scratch = try ScratchStore(.mebibytes(96)) }

    func open(generation: Generation? = nil) throws -> CheckpointStore {
        try CheckpointStore.open(try medium(), generation: generation, environment: testEnvironment(seed: 5))
    }

    private func medium() throws -> any Medium { try openMedium(try Locator(scratch.folder + "/store.ck"), access: .readWrite) }

    /// Bytes that the file takes on its disk.
    var allocatedBytes: Int {
        var status = stat()
        unsafe stat(scratch.folder + "/store.ck", &status)
        return Int(status.st_blocks) * 512
    }

    static let pages = 2048

    /// 8 MiB that don't compress.
    func save(_ name: String, parent: String? = nil, on other: CheckpointStore? = nil) throws {
        let writer = try begin(name, parent: parent, on: other)
        try writer.commit()
    }

    func begin(_ name: String, parent: String? = nil, on other: CheckpointStore? = nil) throws -> CheckpointWriter {
        let writer = try (other ?? store).begin(name, parent: parent, options: WriterOptions(parallelism: 1))
        let bytes = unsafe [UInt8](unsafeUninitializedCapacity: Self.pages * pageSize) { buffer, count in
            for index in 0..<Self.pages * pageSize / 8 {
                unsafe UnsafeMutableRawPointer(buffer.baseAddress!).storeBytes(of: random.next(), toByteOffset: index * 8, as: UInt64.self)
            }
            count = Self.pages * pageSize
        }
        try writer.addRegion("ram", kind: .memory, byteLength: ByteCount(bytes.count)).write(bytes, isStable: true)
        model[name] = ["ram": bytes]
        return writer
    }

    func forget(_ name: String) { model[name] = nil }

    /// What free segments take, in MiB.
    func leftMebibytes() throws -> Int { (try #require(try store.info().freeAllocatedBytes)).int >> 20 }
}

@Suite(.serialized) struct LeftoverTests {
    @Test(arguments: ["compact", "delete", "prune"]) func `what a reader kept comes back when it is done`(how: String) async throws {
        try await onPlainThread {
            let scene = try Scene()
            for name in ["a", "b", "c", "d"] { try scene.save(name) }
            let readers = try scene.open()
            defer { readers.close() }
            var view: Snapshot? = try readers.snapshot()
            let before = scene.allocatedBytes
            try scene.store.delete(["a", "b"])
            #expect(try scene.leftMebibytes() >= 12)
            // As long as it is being read, nothing gives it back.
            let early = try scene.store.compact()
            #expect(early.obstacle == nil && early.givenBackBytes < .mebibytes(1), "\(early)")
            #expect(try scene.leftMebibytes() >= 12 && scene.allocatedBytes > before - (1 << 20))
            for name in ["a", "b", "c"] {
                #expect(try view?.reader(named: name).region("ram").bytes() == scene.model[name]?["ram"])
            }
            view = nil
            // By this handle, or by one that knows nothing of it.
            let later = how == "delete" ? scene.store : try scene.open()
            defer { if later !== scene.store { later.close() } }
            switch how {
            case "compact":
                let planned = try later.compact(CompactionOptions(isDryRun: true))
                #expect(planned.givenBackBytes >= .mebibytes(12))
                let report = try later.compact()
                #expect(report.obstacle == nil && report.givenBackBytes >= .mebibytes(12), "\(report)")
                #expect(try later.compact().givenBackBytes < .mebibytes(1))
            case "delete": #expect(try later.delete(["d"]).obstacle == nil)
            default:
                var policy = RetentionPolicy()
                policy.last = 1
                let pruned = try later.prune(policy)
                #expect(pruned.deletion?.deleted == ["c"] && pruned.deletion?.obstacle == nil)
            }
            #expect(try scene.leftMebibytes() == 0)
            #expect(scene.allocatedBytes < before - (12 << 20))
            for name in try scene.store.snapshot().names() {
                #expect(try scene.store.snapshot().reader(named: name).region("ram").bytes() == scene.model[name]?["ram"])
            }
        }
    }

    @Test func `pruning gives back what it frees`() async throws {
        try await onPlainThread {
            let scene = try Scene()
            for name in ["a", "b", "c"] { try scene.save(name) }
            let before = scene.allocatedBytes
            var policy = RetentionPolicy()
            policy.last = 1
            #expect(try scene.store.prune(policy).deletion?.deleted == ["a", "b"])
            #expect(scene.allocatedBytes < before - (12 << 20), "prune's own view is over when it deletes")
        }
    }

    @Test func `what an aborted save wrote comes back, what a save is writing stays`() async throws {
        try await onPlainThread {
            let scene = try Scene()
            try scene.save("a")
            let others = try scene.open()
            defer { others.close() }
            try scene.begin("aborted", on: others).abort()
            scene.forget("aborted")
            let writer = try scene.begin("late", on: others)
            #expect(try scene.store.compact().obstacle == nil)
            try writer.commit()
            try scene.store.requireEqual(scene.model)
            #expect(try scene.store.compact().obstacle == nil)
            #expect(try scene.leftMebibytes() == 0)
            try scene.store.requireEqual(scene.model)
        }
    }

    /// On the device, which can't say what takes space, all that was ever freed is discarded again, and what is discarded reads as anything.
    @Test func `the generation before the newest stays whole`() async throws {
        try await onPlainThread {
            for seed in UInt64(1)...6 {
                let device = SimulatedDevice(size: .mebibytes(8))
                let store = try CheckpointStore.create(
                    on: FaultMedium(device), options: CreateOptions(segmentSize: .kibibytes(128)), environment: testEnvironment(seed: seed))
                defer { store.close() }
                var random = SeededGenerator(seed: seed)
                var names: [String] = []
                for number in 0..<60 {
                    if names.count > 3, random.chance(1, in: 3) {
                        try store.delete([names.remove(at: random.below(names.count))])
                    } else {
                        let writer = try store.begin("c\(number)", parent: names.last, options: WriterOptions(parallelism: 1))
                        let ram = try writer.addRegion("ram", kind: .disk, byteLength: .mebibytes(1))
                        for _ in 0..<20 { try ram.put(page: PageIndex(random.below(256)), makePage(&random)) }
                        try writer.commit()
                        names.append("c\(number)")
                    }
                    guard random.chance(1, in: 3) else { continue }
                    if let obstacle = try store.compact(CompactionOptions(parallelism: 1)).obstacle { throw obstacle }
                    let newest = try store.snapshot().generation
                    let old = try CheckpointStore.open(FaultMedium(device), generation: Generation(newest.rawValue - 1), environment: testEnvironment(seed: 1))
                    defer { old.close() }
                    let report = try old.verify(options: VerifyOptions(parallelism: 1))
                    #expect(report.isSound, "seed \(seed), generation \(newest): \(report.damages.first.map { "\($0)" } ?? "")")
                }
            }
        }
    }
}
