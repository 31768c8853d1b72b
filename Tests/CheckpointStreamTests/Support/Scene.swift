// Stores in memory, histories of checkpoints in them, and streams as arrays of bytes.
//
// Invariant: a history's checkpoints are kept as plain bytes beside the store: the oracle knows nothing of trees and streams.

import CheckpointStore
import CheckpointStream
import FaultHarness
import Glibc
import Media
import StoreFormat
import StoreTesting
import Threading
import Units

/// A store in memory that goes with its owner.
final class Scene {
    let store: CheckpointStore
    var model: [String: ModelCheckpoint] = [:]

    init(size: ByteCount = .mebibytes(64), segment: ByteCount = .kibibytes(128), seed: UInt64? = nil) throws {
        let environment = seed.map { testEnvironment(seed: $0) } ?? StoreEnvironment()
        store = try CheckpointStore.create(
            on: try RAMMedium.anonymous(size: size), options: CreateOptions(segmentSize: segment), environment: environment)
    }

    deinit { store.close() }

    /// Saves a checkpoint with just these regions.
    func save(
        _ name: String, parent: String? = nil, labels: [String: String] = [:], _ regions: [String: (RegionKind, [UInt8])]
    ) throws {
        let writer = try store.begin(name, parent: parent, options: WriterOptions(parallelism: 1, labels: labels))
        for (region, (kind, bytes)) in regions.sorted(by: { $0.key < $1.key }) {
            let handle = try writer.addRegion(region, kind: kind, byteLength: ByteCount(bytes.count))
            if !bytes.isEmpty { try handle.write(bytes) }
        }
        try writer.commit()
        model[name] = regions.mapValues { $0.1 }
    }

    func info(_ name: String) throws -> CheckpointInfo { try store.snapshot().checkpoint(named: name) }

    /// The stream of these checkpoints, each with its base.
    func stream(_ items: [(name: String, base: String?)], parallelism: Int = 1) throws -> [UInt8] {
        let snapshot = try store.snapshot()
        let items = try items.map {
            SendItem(try snapshot.checkpoint(named: $0.name), base: try $0.base.map { try snapshot.checkpoint(named: $0) })
        }
        return try stream(items, parallelism: parallelism)
    }

    func stream(_ items: [SendItem], parallelism: Int = 1) throws -> [UInt8] {
        try Transfer.stream(items, of: store.snapshot(), parallelism: parallelism)
    }

    /// Receives a stream.
    @discardableResult
    func receive(_ bytes: some Collection<UInt8>, _ options: ReceiveOptions = ReceiveOptions(parallelism: 1)) throws -> ReceiveReport {
        try Transfer.receive(bytes, into: store, options)
    }

    /// The error that receiving a stream ends with; nil: none.
    func refusal(_ bytes: some Collection<UInt8>, _ options: ReceiveOptions = ReceiveOptions(parallelism: 1)) throws -> StoreError? {
        do { try receive(bytes, options) } catch let error as StoreError { return error }
        return nil
    }

    /// The names that move, but for `latest`, and the checkpoints that they lead to; of names that are equal to Swift the last one.
    func references() throws -> [String: String] {
        let snapshot = try store.snapshot()
        let all = try snapshot.references().filter { $0.name != Reference.latest }
        return try Dictionary(all.map { ($0.name, try snapshot.checkpoint($0.checkpoint).name) }) { $1 }
    }

    /// Deletes checkpoints and the names that lead to them.
    func delete(_ names: [String]) throws {
        for (reference, checkpoint) in try references() where names.contains(checkpoint) { try store.removeReference(reference) }
        try store.delete(names)
    }

    /// What is left of checkpoints that have come in part.
    func parts() throws -> [PartialCheckpoint] { try store.snapshot().partialCheckpoints() }

    /// Throws unless a checkpoint here is what it is in `other`, by everything that a user can see.
    func requireSame(_ name: String, as other: Scene, named otherName: String? = nil) throws {
        let (a, b) = (try info(name), try other.info(otherName ?? name))
        guard a.id == b.id, a.parent == b.parent, a.createdNanoseconds == b.createdNanoseconds, a.labels.map(\.key) == b.labels.map(\.key),
            a.labels.map(\.value) == b.labels.map(\.value)
        else { throw Mismatch("\(name): another record: \(a) instead of \(b)") }
        guard a.regions.map(\.name) == b.regions.map(\.name), a.regions.map(\.kind) == b.regions.map(\.kind),
            a.regions.map(\.byteLength) == b.regions.map(\.byteLength), a.regions.map(\.storedPages) == b.regions.map(\.storedPages)
        else { throw Mismatch("\(name): other regions") }
        for region in a.regions {
            let (here, there) = (try reader(name, region.name), try other.reader(otherName ?? name, region.name))
            let ranges = try here.dataRanges()
            guard try ranges == there.dataRanges() else { throw Mismatch("\(name)/\(region.name): other zeros") }
            for range in ranges where try here.bytes(range) != there.bytes(range) {
                throw Mismatch("\(name)/\(region.name): other bytes in \(range)")
            }
        }
    }

    func reader(_ name: String, _ region: String) throws -> RegionReader { try store.snapshot().reader(named: name).region(region) }

    /// Throws unless everything that the store reaches is sound.
    func requireSound() throws {
        let report = try store.verify(options: VerifyOptions(checksPages: true, parallelism: 1))
        if let damage = report.damages.first { throw Mismatch("verify finds \(report.damages.count) damages: \(damage)") }
    }
}

extension RegionReader {
    /// The content of whole pages.
    func bytes(_ pages: Range<PageIndex>) throws -> [UInt8] {
        var bytes = [UInt8](repeating: 0xEE, count: (pages.upperBound - pages.lowerBound).bytes.int)
        try unsafe bytes.withUnsafeMutableBytes { try unsafe read(pages: pages, into: $0) }
        return bytes
    }
}

/// A random history: branches, regions that come and go, are cut short and grow again.
struct History {
    private var random: SeededGenerator
    private var serial = 0
    let maximumPages: Int

    init(seed: UInt64, maximumPages: Int = 1300) {
        random = SeededGenerator(seed: seed)
        self.maximumPages = maximumPages
    }

    /// Saves one more checkpoint over any that is there.
    mutating func step(_ scene: Scene) throws {
        serial += 1
        let names = scene.model.keys.sorted()
        let parent = names.isEmpty || random.chance(1, in: 8) ? nil : names[random.below(names.count)]
        let old = parent.flatMap { scene.model[$0] } ?? [:]
        var regions: [String: (RegionKind, [UInt8])] = [:]
        for (name, kind) in [("disk", RegionKind.disk), ("ram", .memory), ("state", .state)] where name == "ram" || !random.chance(1, in: 4) {
            regions[name] = (kind, changed(old[name] ?? [], kind))
        }
        try scene.save("c\(serial)", parent: parent, labels: ["step": "\(serial)"], regions)
    }

    private mutating func changed(_ old: [UInt8], _ kind: RegionKind) -> [UInt8] {
        var bytes = old
        if old.isEmpty || random.chance(1, in: 3) {
            let pages = random.chance(1, in: 10) ? 0 : 1 + random.below(maximumPages)
            let length = max(0, pages * pageSize - (kind == .memory ? 0 : random.below(pageSize)))
            bytes = Array(bytes.prefix(length)) + [UInt8](repeating: 0, count: max(0, length - bytes.count))
        }
        let pages = (bytes.count + pageSize - 1) / pageSize
        guard pages > 0 else { return bytes }
        for _ in 0..<random.below(12) { change(random.below(pages), &bytes) }
        if random.chance(1, in: 4) {
            let low = random.below(pages)
            for page in low..<min(pages, low + random.below(700)) { change(page, &bytes, isZero: random.chance(1, in: 2)) }
        }
        return bytes
    }

    private mutating func change(_ page: Int, _ bytes: inout [UInt8], isZero: Bool = false) {
        let content = isZero ? [UInt8](repeating: 0, count: pageSize) : makePage(&random)
        let end = min((page + 1) * pageSize, bytes.count)
        bytes.replaceSubrange(page * pageSize..<end, with: content[..<(end - page * pageSize)])
    }
}

/// The seed of a test: its own, or the one to replay.
func testSeed() -> UInt64 { unsafe getenv("CKSTORE_TEST_SEED").flatMap { unsafe UInt64(String(cString: $0)) } ?? .random(in: 0...UInt64.max) }
