// A process that does everything that a store can do, to checkpoints of its own, until it is killed.
//
// Invariants:
// - What is said of a checkpoint is said before it may be there or go, and again when it is there or gone: whoever reads the lines of a
//   killed process knows what must and what may be.
// - It deletes and moves its own names alone. What it saves over, reads and moves in the store may be anybody's.

import CheckpointStore
import CheckpointStream
import FaultHarness
import Foundation
import Media
import StoreFormat
import StoreTesting
import Units

/// One process of a mix.
struct Mixer {
    private let store: CheckpointStore
    private let prefix: String
    private var random: SeededGenerator
    private var serial: Int
    /// Its own.
    private var names: [String]
    private var reference: String { "name-\(prefix)" }
    private var referenced: String?
    /// A view that is kept over other operations, and whose content it must go on showing.
    private var held: CheckpointReader?

    init(_ path: String, prefix: String, seed: UInt64) throws {
        store = try CheckpointStore.open(try openMedium(try Locator(path), access: .readWrite))
        self.prefix = prefix
        random = SeededGenerator(seed: seed)
        let snapshot = try store.snapshot()
        names = try snapshot.names().filter { $0.hasPrefix(prefix) }
        serial = names.compactMap { Int($0.dropFirst(prefix.count)) }.max() ?? 0
        if let found = try snapshot.references().first(where: { $0.name == "name-\(prefix)" }) {
            referenced = try snapshot.checkpoint(found.checkpoint).name
        }
    }

    mutating func run() throws -> Never {
        while true {
            // Others hold the locks, or have filled the store.
            do { try step() } catch let error as StoreError where [.busy, .noSpace].contains(error.code) {
                guard error.code == .noSpace else { continue }
                held = nil
                try makeRoom()
            }
        }
    }

    private mutating func step() throws {
        switch random.below(20) {
        case _ where names.count > 7: try delete()
        case 0..<6: try save(1)
        case 6..<8: try save(2)
        case 8..<11: try delete()
        case 11: try prune()
        case 12: try point()
        case 13: try unpoint()
        case 14..<16: try compact()
        case 16..<18: try receive()
        case 18: try look()
        default: try check()
        }
    }

    private mutating func makeRoom() throws {
        do {
            try store.discardPartialCheckpoints()
            try delete()
        } catch let error as StoreError where [.busy, .noSpace].contains(error.code) {}
    }

    private mutating func newName() -> String {
        serial += 1
        return "\(prefix)\(serial)"
    }

    // MARK: saving

    private mutating func save(_ count: Int) throws {
        var writers: [CheckpointWriter] = []
        defer { for writer in writers { writer.abort() } }
        for _ in 0..<count { writers.append(try begin()) }
        if random.chance(1, in: 10) { return }
        for writer in writers { say("saving \(writer.name)") }
        do throws(StoreError) {
            try store.commit(writers)
        } catch {
            // The parent has been deleted by its owner, perhaps; nothing is there of it.
            for writer in writers { say("refused \(writer.name)") }
            guard error.code == .wrongBase else { throw error }
            return
        }
        for writer in writers { say("saved \(writer.name)") }
        names += writers.map(\.name)
    }

    /// Over any checkpoint of anybody.
    private mutating func begin() throws -> CheckpointWriter {
        let name = newName()
        let all = try store.snapshot().names().filter { !Names.isPartial($0) }
        let parent = all.isEmpty || random.chance(1, in: 5) ? nil : all[random.below(all.count)]
        let options = WriterOptions(parallelism: 1, labels: ["owner": prefix])
        let writer: CheckpointWriter
        do throws(StoreError) { writer = try store.begin(name, parent: parent, options: options) } catch {
            guard error.code == .notFound else { throw error }
            writer = try store.begin(name, options: options)
        }
        let content = KilledWriter.content(name)
        try writer.addRegion("ram", kind: .memory, byteLength: ByteCount(content.count)).write(content, isStable: random.chance(1, in: 2))
        return writer
    }

    private mutating func receive() throws {
        let (first, second) = (newName(), newName())
        let (source, stream) = try makeStream(first, second)
        defer { source.close() }
        let options = ReceiveOptions(stepBytes: .kibibytes(UInt64(8 + random.below(100))), parallelism: 1)
        let isCut = random.chance(1, in: 3)
        say("saving \(first)")
        say("saving \(second)")
        var failure: StoreError?
        do {
            try Transfer.receive(isCut ? stream.prefix(random.below(stream.count)) : stream[...], into: store, options)
        } catch let error as StoreError where error.code == .cutStream && isCut {
            do { try resume(second, source, options) } catch let error as StoreError { failure = error }
        } catch let error as StoreError { failure = error }
        try settle([first, second])
        // Somebody who had no room has dropped what had come in part.
        if let failure, ![.wrongBase, .notFound, .outOfOrder].contains(failure.code) { throw failure }
    }

    /// Goes on where a stream was cut, if that was behind the beginning of the second checkpoint.
    private func resume(_ name: String, _ source: CheckpointStore, _ options: ReceiveOptions) throws {
        guard let part = try store.snapshot().partialCheckpoints().first(where: { $0.name == name }) else { return }
        let sender = try source.snapshot()
        let base = try part.base.map { try sender.checkpoint($0) }
        let item = SendItem(try sender.checkpoint(named: name), base: base, start: part.position)
        try Transfer.receive(try Transfer.stream([item], of: sender), into: store, options)
    }

    /// A store with two checkpoints, the second made over the first, and a stream of both.
    private func makeStream(_ first: String, _ second: String) throws -> (CheckpointStore, [UInt8]) {
        let source = try CheckpointStore.create(
            on: try RAMMedium.anonymous(size: .mebibytes(4)), options: CreateOptions(segmentSize: .kibibytes(128)))
        for name in [first, second] {
            let writer = try source.begin(
                name, parent: name == first ? nil : first, options: WriterOptions(parallelism: 1, labels: ["owner": prefix]))
            let content = KilledWriter.content(name)
            try writer.addRegion("ram", kind: .memory, byteLength: ByteCount(content.count)).write(content)
            try writer.commit()
        }
        let snapshot = try source.snapshot()
        let infos = (try snapshot.checkpoint(named: first), try snapshot.checkpoint(named: second))
        return (source, try Transfer.stream([SendItem(infos.0, base: nil), SendItem(infos.1, base: infos.0)], of: snapshot))
    }

    /// Says what has become of checkpoints of its own.
    private mutating func settle(_ open: [String]) throws {
        let there = try store.snapshot().names()
        for name in open {
            say(there.contains(name) ? "saved \(name)" : "refused \(name)")
            if there.contains(name) { names.append(name) }
        }
    }

    // MARK: deleting

    private mutating func delete() throws {
        let doomed = Array(names.filter { $0 != referenced }.shuffled(using: &random).prefix(1 + random.below(3)))
        guard !doomed.isEmpty else { return }
        for name in doomed { say("deleting \(name)") }
        do throws(StoreError) {
            if let obstacle = try store.delete(doomed).obstacle, obstacle.code != .busy { throw obstacle }
        } catch {
            if error.code == .busy { for name in doomed { say("kept \(name)") } }
            throw error
        }
        for name in doomed { say("deleted \(name)") }
        names.removeAll { doomed.contains($0) }
    }

    /// Everything of the others' is kept by its label.
    private mutating func prune() throws {
        var policy = RetentionPolicy()
        policy.last = 2
        policy.labels = KilledWriter.mixers.filter { $0 != prefix }.map { .init(key: "owner", value: $0) }
        for name in names { say("deleting \(name)") }
        let result = try store.prune(policy)
        for name in names { say(result.deletion?.deleted.contains(name) == true ? "deleted \(name)" : "kept \(name)") }
        names.removeAll { result.deletion?.deleted.contains($0) == true }
    }

    // MARK: the rest

    private mutating func point() throws {
        guard !names.isEmpty else { return }
        let name = names[random.below(names.count)]
        say("pointing \(name)")
        referenced = name
        try store.setReference(reference, to: name)
        say("pointed \(name)")
    }

    private mutating func unpoint() throws {
        guard referenced != nil else { return }
        say("unpointing \(prefix)")
        do throws(StoreError) { try store.removeReference(reference) } catch { guard error.code == .notFound else { throw error } }
        referenced = nil
        say("unpointed \(prefix)")
    }

    private mutating func compact() throws {
        let report = try store.compact(
            CompactionOptions(
                targetAmplification: 1, minimumDeadShare: [0.01, 0.2][random.below(2)],
                batchBytes: .kibibytes(UInt64(30 + random.below(300))), parallelism: 1))
        if let obstacle = report.obstacle, ![.noSpace, .busy].contains(obstacle.code) { throw obstacle }
        if let damage = report.damaged.first { throw damage }
    }

    /// Reads what it holds, and holds something else.
    private mutating func look() throws {
        if let held { try requireContent(held) }
        let snapshot = try store.snapshot()
        let all = try snapshot.names().filter { !Names.isPartial($0) }
        held = all.isEmpty ? nil : try snapshot.reader(named: all[random.below(all.count)])
    }

    private func requireContent(_ reader: CheckpointReader) throws {
        guard try reader.region("ram").bytes() == KilledWriter.content(reader.info.name) else {
            throw Mismatch("\(reader.info.name) reads otherwise than it was saved")
        }
    }

    private mutating func check() throws {
        let report = try store.verify(options: VerifyOptions(checksPages: random.chance(1, in: 2), parallelism: 1))
        if let damage = report.damages.first { throw Mismatch("damage: \(damage)") }
        guard report.lostPages == .zero, report.lostBytes == .zero else {
            throw Mismatch("\(report.lostPages) pages and \(report.lostBytes) bytes are counted as alive that nothing reaches")
        }
    }
}
