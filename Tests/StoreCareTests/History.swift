// Stores to damage: a few checkpoints with everything that the format has, and what they must read as.

import CheckpointStore
import CheckpointStream
import FaultHarness
import Foundation
import Media
import StoreFormat
import StoreTesting
import Units

/// A store in a file of its own, with its model. Gone with the object.
final class History {
    let folder: String
    var path: String { folder + "/store.ck" }
    /// By name: the regions' bytes.
    private(set) var model: [String: ModelCheckpoint] = [:]
    private(set) var order: [String] = []
    let geometry: Geometry
    private var random: SeededGenerator

    static let ramPages = 1400

    /// Full checkpoints, patches over them, patches over patches, regions of all kinds, branches.
    ///
    /// - Parameter content: what the pages are made of, `seed` if not given: stores of one seed have checkpoints of the same ids.
    init(
        seed: UInt64, content: UInt64? = nil, checkpoints: Int = 8, segment: ByteCount = .kibibytes(128), size: ByteCount = .mebibytes(16)
    ) throws {
        folder = NSTemporaryDirectory() + "ckstore-care-" + UUID().uuidString
        try FileManager.default.createDirectory(
            atPath: folder, withIntermediateDirectories: false, attributes: [.posixPermissions: 0o700])
        random = SeededGenerator(seed: content ?? seed)
        let store = try CheckpointStore.create(
            on: try createMedium(try Locator(folder + "/store.ck"), size: size), options: CreateOptions(segmentSize: segment),
            environment: testEnvironment(seed: seed))
        defer { store.close() }
        geometry = store.geometry
        for number in 0..<checkpoints { try add("c\(number)", to: store) }
    }

    /// A replica: every checkpoint of `source` as it is received, each over its parent or what is nearest to that, with what has come of
    /// one more, which is not in the model.
    init(replicaOf source: History, seed: UInt64) throws {
        folder = NSTemporaryDirectory() + "ckstore-care-" + UUID().uuidString
        try FileManager.default.createDirectory(
            atPath: folder, withIntermediateDirectories: false, attributes: [.posixPermissions: 0o700])
        random = SeededGenerator(seed: seed)
        let store = try CheckpointStore.create(
            on: try createMedium(try Locator(folder + "/store.ck"), size: .mebibytes(16)),
            options: CreateOptions(segmentSize: ByteCount(UInt64(source.geometry.segmentSize))), environment: testEnvironment(seed: seed))
        defer { store.close() }
        geometry = store.geometry
        let original = try source.open()
        defer { original.close() }
        let snapshot = try original.snapshot()
        let steps = ReceiveOptions(stepBytes: .kibibytes(16), parallelism: 1)
        for name in source.order {
            let info = try snapshot.checkpoint(named: name)
            let base = try info.parent.map { try snapshot.checkpoint($0) }
            let stream = try Transfer.stream([SendItem(info, base: base)], of: snapshot)
            guard name == source.order.last else {
                try Transfer.receive(stream, into: store, steps)
                (model[name], order) = (source.model[name], order + [name])
                continue
            }
            do { try Transfer.receive(stream.prefix(stream.count * 9 / 10), into: store, steps) } catch {}
            guard try !store.snapshot().partialCheckpoints().isEmpty else { throw Mismatch("nothing is left of a stream that was cut") }
        }
    }

    deinit { try? FileManager.default.removeItem(atPath: folder) }

    /// Saves one more checkpoint, over one of the last or over none.
    func add(_ name: String, to store: CheckpointStore) throws {
        let parent = order.isEmpty || random.chance(1, in: 6) ? nil : order[order.count - 1 - random.below(min(2, order.count))]
        var regions = parent.flatMap { model[$0] } ?? [:]
        let writer = try store.begin(name, parent: parent, options: WriterOptions(parallelism: 1, labels: ["number": name]))
        var ram = regions["ram"] ?? [UInt8](repeating: 0, count: Self.ramPages * pageSize)
        let region = try writer.addRegion("ram", kind: .memory, byteLength: ByteCount(ram.count))
        // Some pages of every span, so that most of it stays zero: reading it all must be quick.
        for _ in 0..<(parent == nil ? 60 : 1 + random.below(30)) {
            let page = random.chance(1, in: 2) ? random.below(40) : random.below(Self.ramPages)
            let bytes = makePage(&random)
            ram.replaceSubrange(page * pageSize..<(page + 1) * pageSize, with: bytes)
            try region.put(page: PageIndex(page), bytes)
        }
        regions["ram"] = ram
        if parent == nil || random.chance(1, in: 3) {
            var disk: [UInt8] = [1, 2, 3]
            for _ in 0..<9 { disk = makePage(&random) + disk }
            try writer.addRegion("disk", kind: .disk, byteLength: ByteCount(disk.count)).write(disk)
            regions["disk"] = disk
        } else {
            try writer.inheritRegion("disk")
        }
        let state = (0..<100).map { _ in UInt8(truncatingIfNeeded: random.next()) }
        try unsafe state.withUnsafeBytes { try unsafe writer.putBlob("cpu", $0) }
        regions["cpu"] = state
        try writer.commit()
        model[name] = regions
        order.append(name)
    }

    func delete(_ names: [String], from store: CheckpointStore) throws {
        try store.delete(names)
        for name in names { model[name] = nil }
        order.removeAll { names.contains($0) }
    }

    func open(_ access: MediumAccess = .readOnly) throws -> CheckpointStore {
        try CheckpointStore.open(try medium(access), environment: testEnvironment(seed: 99))
    }

    func medium(_ access: MediumAccess = .readOnly) throws -> any Medium { try openMedium(try Locator(path), access: access) }

    // MARK: bytes

    func bytes() throws -> [UInt8] { [UInt8](try Data(contentsOf: URL(fileURLWithPath: path))) }

    func overwrite(at offset: Int, _ bytes: some Collection<UInt8>) throws {
        let handle = try FileHandle(forUpdating: URL(fileURLWithPath: path))
        try handle.seek(toOffset: UInt64(offset))
        try handle.write(contentsOf: Data(bytes))
        try handle.close()
    }

    func zero(_ range: Range<Int>) throws { try overwrite(at: range.lowerBound, [UInt8](repeating: 0, count: range.count)) }

    /// Both slot rings.
    func zeroSlots() throws {
        for start in [0, geometry.twinOffset.int] { try zero(start..<start + Slot.ringLength * Slot.encodedLength) }
    }

    func range(of segment: Int) -> Range<Int> {
        let start = geometry.offset(of: SegmentIndex(segment)).int
        return start..<start + Int(geometry.segmentSize)
    }

    /// Segments with a header of that class.
    func segments(of segmentClass: SegmentClass) throws -> [Int] {
        let all = try bytes()
        return (0..<Int(geometry.segmentCount)).filter { number in
            let start = range(of: number).lowerBound
            guard start + SegmentHeader.encodedLength <= all.count else { return false }
            let header = all[start..<start + SegmentHeader.encodedLength]
            return unsafe (try? SegmentHeader.decode(Array(header).span.bytes))?.segmentClass == segmentClass
        }
    }

    /// Every block in the segments, sound at the time: where it starts, and its header.
    func blocks() throws -> [(range: Range<Int>, header: BlockHeader)] {
        let all = try bytes()
        var found: [(Range<Int>, BlockHeader)] = []
        for segment in 0..<Int(geometry.segmentCount) {
            let range = range(of: segment)
            var position = range.lowerBound
            while position < min(range.upperBound, all.count) {
                let piece = Array(all[position..<min(position + (72 << 10), range.upperBound, all.count)])
                if let header = unsafe try? Block.peek(piece.span.bytes) {
                    found.append((position..<position + Int(header.storedLength), header))
                    position += (Int(header.storedLength) + 63) / 64 * 64
                } else {
                    position += 64
                }
            }
        }
        return found
    }
}
