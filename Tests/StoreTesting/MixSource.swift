// The store that a mix receives from, and receiving: in full, as changes, cut short, gone on with.
//
// Invariant: a checkpoint of the source is received under its own name and id, however often it was deleted in between.

import CheckpointStore
import CheckpointStream
import FaultHarness
import Media
import StoreFormat
import Units

/// A second store in memory with a history of its own.
final class MixSource {
    let store: CheckpointStore
    private(set) var entries: [(name: String, parent: String?, entry: StoreMix.Entry)] = []
    private var random: SeededGenerator
    private let maximumPages: Int

    init(seed: UInt64, maximumPages: Int) throws {
        random = SeededGenerator(seed: seed)
        self.maximumPages = min(maximumPages, 600)
        store = try CheckpointStore.create(
            on: try RAMMedium.anonymous(size: .mebibytes(96)), options: CreateOptions(segmentSize: .kibibytes(128)),
            environment: testEnvironment(seed: seed))
    }

    deinit { store.close() }

    /// Any of its checkpoints; now and then a new one.
    func next() throws -> (name: String, parent: String?, entry: StoreMix.Entry) {
        if entries.count < 16, entries.isEmpty || random.chance(1, in: 2) { try save() }
        return entries[random.below(entries.count)]
    }

    func entry(_ name: String) -> StoreMix.Entry? { entries.first { $0.name == name }?.entry }

    private func save() throws {
        let name = "r\(entries.count)"
        let parent = entries.isEmpty || random.chance(1, in: 5) ? nil : entries[random.below(entries.count)].name
        let writer = try store.begin(name, parent: parent, options: WriterOptions(parallelism: 1))
        var changes = MixChanges(random: random, maximumPages: maximumPages)
        let (regions, _) = try changes.fill(writer, over: parent.flatMap { entry($0)?.regions } ?? [:])
        random = changes.random
        let info = try writer.commit()
        entries.append(
            (name, parent, StoreMix.Entry(id: info.id, createdNanoseconds: info.createdNanoseconds, isLabelled: false, regions: regions)))
    }
}

extension StoreMix {
    /// Receives a checkpoint of the source, or goes on receiving it, or is cut off.
    mutating func receive(_ store: CheckpointStore) throws {
        let (name, parent, entry) = try source.next()
        guard entries[name] == nil else { return }
        let snapshot = try source.store.snapshot()
        var base = parent.flatMap { entries[$0] == nil ? nil : $0 }
        var item = SendItem(
            try snapshot.checkpoint(named: name), base: try base.map { try snapshot.checkpoint(named: $0) })
        if let part = try store.snapshot().partialCheckpoints().first(where: { $0.checkpoint == entry.id }),
            part.base == nil || entries.values.contains(where: { $0.id == part.base })
        {
            count(.resume)
            item = SendItem(item.checkpoint, base: try part.base.map { try snapshot.checkpoint($0) }, start: part.position)
            base = item.base?.name
        }
        let stream = try Transfer.stream([item], of: snapshot)
        // What goes on is made over the part, which may have lost its base and found another one of that id.
        let over = item.start > .start ? try store.snapshot().partialCheckpoints().first { $0.checkpoint == entry.id }?.info.id : base.flatMap { entries[$0]?.id }
        let isCut = random.chance(1, in: 3)
        let options = ReceiveOptions(stepBytes: .kibibytes(UInt64(20 + random.below(400))), parallelism: parallelism)
        let bytes = isCut ? stream.prefix(1 + random.below(stream.count - 1)) : stream[...]
        do {
            let report = try Transfer.receive(bytes, into: store, options)
            guard !isCut else { throw Mismatch("a stream that was cut was received") }
            count(base == nil ? .receive : .receiveChange)
            add(name, entry, over: over)
            try settleParts(store, over: over)
            if let obstacle = report.obstacle { throw Mismatch("parts were not dropped: \(obstacle)") }
        } catch let error as StoreError {
            try settleParts(store, over: over)
            switch error.code {
            case .cutStream where isCut: count(.receiveCut)
            // There was one of that id, and it still joins branches.
            case .exists where lineage.members[entry.id]?.isDeleted == true: break
            default: throw error
            }
        }
    }

    /// Drops all parts.
    mutating func discard(_ store: CheckpointStore) throws {
        if try !store.discardPartialCheckpoints().isEmpty { count(.discard) }
        try settleParts(store, over: nil)
        guard parts.isEmpty else { throw Mismatch("parts are left: \(parts)") }
    }

    /// Enters into the lineage what parts there are now. They come and go one over the other: what stays is over the base of all.
    private mutating func settleParts(_ store: CheckpointStore, over base: CheckpointID?) throws {
        let found = Set(try store.snapshot().checkpoints(includesPartial: true).filter(\.isPartial).map(\.id))
        for part in found.subtracting(parts) { lineage.add(part, over: base) }
        for part in parts.subtracting(found) { lineage.remove(part) }
        parts = found
    }
}
