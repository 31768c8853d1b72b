// A fixed view of a store: one generation, kept readable as long as it is used.

import Media
import StoreFormat
import Units

/// The checkpoints of one generation of a store.
///
/// What it shows stays readable, whatever is deleted meanwhile, until the last reader from it is gone: its
/// generation is registered with all processes. Thread-safe.
public final class Snapshot: Sendable {
    /// The store that this is a view of.
    public let store: CheckpointStore
    let slot: Slot
    private let isRegistered: Bool

    init(store: CheckpointStore, slot: Slot, isRegistered: Bool) {
        self.store = store
        self.slot = slot
        self.isRegistered = isRegistered
    }

    deinit { if isRegistered { store.unregister(slot.generation) } }

    /// Reads the blocks of this generation.
    var blocks: BlockReader { store.blocks(in: slot) }

    /// The generation.
    public var generation: Generation { slot.generation }

    /// How many checkpoints there are. O(1).
    public var checkpointCount: Int { Int(slot.checkpointCount) }

    /// All checkpoints, by the time they were begun, the oldest first. One read for each.
    /// - Parameter includesPartial: also what has come of checkpoints that are being received.
    public func checkpoints(includesPartial: Bool = false) throws(StoreError) -> [CheckpointInfo] {
        var all: [CheckpointInfo] = []
        for (id, value) in try store.catalogValues(in: slot) {
            let info = CheckpointInfo(try blocks.readRecord(value, id: id), generation: value.generation)
            if includesPartial || !info.isPartial { all.append(info) }
        }
        return all.sorted { ($0.createdNanoseconds, $0.id) < ($1.createdNanoseconds, $1.id) }
    }

    /// The names of all checkpoints in their order as bytes. O(n / nodes) reads.
    public func names() throws(StoreError) -> [String] {
        var names: [String] = []
        try store.forEachInCatalog(slot.catalogByName, tree: .byName) { key, _ in names.append(String(decoding: key, as: UTF8.self)) }
        return names
    }

    /// The names of checkpoints that begin with `prefix`, in their order as bytes. Reads no more of the catalog than has them.
    package func names(beginningWith prefix: String) throws(StoreError) -> [String] {
        var names: [String] = []
        let first = CatalogTree.key(prefix)
        let catalog = CatalogEditor(store: store, tree: .byName, root: slot.catalogByName)
        try catalog.forEach(from: first) { key, _ in
            guard key.starts(with: first) else { return false }
            names.append(String(decoding: key, as: UTF8.self))
            return true
        }
        return names
    }

    /// All checkpoints and what has come in part of others, by the time they were committed, the oldest first. Reads no record.
    package func checkpointIDs() throws(StoreError) -> [CheckpointID] {
        try store.catalogValues(in: slot).sorted { ($0.value.generation, $0.id) < ($1.value.generation, $1.id) }.map(\.id)
    }

    /// Whether there is a checkpoint of that id, readable or not. O(log n).
    package func hasCheckpoint(_ id: CheckpointID) throws(StoreError) -> Bool { try store.catalogValue(of: id, in: slot) != nil }

    /// Whether there was a checkpoint of that id which still joins branches, so that none of that id can come. O(log n).
    package func remembersDeleted(_ id: CheckpointID) throws(StoreError) -> Bool {
        try LineageTree(store: store, slot: slot).node(id)?.state == .tombstone
    }

    /// The checkpoint called `name`, or the one that a moving name leads to. O(log n).
    /// - Throws: `.notFound`.
    public func checkpoint(named name: String) throws(StoreError) -> CheckpointInfo {
        guard let id = try store.checkpointID(of: name, in: slot) else { throw store.noCheckpoint(name) }
        guard let value = try store.catalogValue(of: id, in: slot) else { throw disagreement(name, "\(id), which is not there") }
        let record = try blocks.readRecord(value, id: id)
        if !Names.equal(record.name, name), try store.catalogID(of: name, in: slot) != nil { throw disagreement(name, record.name) }
        return CheckpointInfo(record, generation: value.generation)
    }

    private func disagreement(_ name: String, _ other: String) -> StoreError {
        StoreError(
            .corrupt, "the catalog's trees disagree: the name leads to checkpoint \(other)", remedy: "Run `ckstore verify`.",
            medium: store.medium.name, checkpoint: name)
    }

    /// The checkpoint with that id. O(log n).
    /// - Throws: `.notFound`.
    public func checkpoint(_ id: CheckpointID) throws(StoreError) -> CheckpointInfo {
        guard let value = try store.catalogValue(of: id, in: slot) else {
            throw StoreError(
                .notFound, "there is no checkpoint \(id)", remedy: "`ckstore list` shows those that there are.",
                medium: store.medium.name)
        }
        return CheckpointInfo(try blocks.readRecord(value, id: id), generation: value.generation)
    }

    /// Opens a checkpoint for reading its regions.
    public func reader(_ info: CheckpointInfo) -> CheckpointReader { CheckpointReader(snapshot: self, info: info) }

    /// Opens the checkpoint called `name`, or the one that a moving name leads to. O(log n).
    public func reader(named name: String) throws(StoreError) -> CheckpointReader { reader(try checkpoint(named: name)) }
}

extension CheckpointStore {
    /// A view of the newest generation (or of the one that the store was opened with).
    public func snapshot() throws(StoreError) -> Snapshot {
        try checkUsable(forWriting: false)
        if pinnedGeneration != nil { return Snapshot(store: self, slot: try newestSlot(), isRegistered: false) }
        return Snapshot(store: self, slot: try register(), isRegistered: true)
    }
}

/// What a checkpoint is: its record, as values.
public struct CheckpointInfo: Sendable {
    let record: CheckpointRecord
    /// The generation in which it was committed.
    public let generation: Generation

    init(_ record: CheckpointRecord, generation: Generation) {
        self.record = record
        self.generation = generation
    }

    public var id: CheckpointID { record.id }
    public var name: String { record.name }
    /// The checkpoint that it was taken over, if any; it may have been deleted since.
    public var parent: CheckpointID? { record.parent }
    /// True for what has come of a checkpoint that is being received: not for users, and left out of lists.
    public var isPartial: Bool { Names.isPartial(record.name) }
    /// When it was begun, nanoseconds since 1970-01-01 UTC.
    public var createdNanoseconds: UInt64 { record.createdNanoseconds }
    /// Labels, ascending by key.
    public var labels: [(key: String, value: String)] { record.labels.map { ($0.key, $0.value) } }
    /// Pages that it stored itself: those that changed, and those that it re-packed to keep reading cheap.
    public var newPages: PageCount { record.newPages }
    /// Bytes of the page runs that it stored itself.
    public var storedBytes: ByteCount { record.storedBytes }
    /// Equal for checkpoints that were committed together; nil: alone.
    public var groupID: UInt64? { record.groupID == 0 ? nil : record.groupID }
    /// The regions, ascending by name.
    public var regions: [RegionInfo] { record.regions.map(RegionInfo.init) }
}

/// What a region of a checkpoint is.
public struct RegionInfo: Sendable {
    let record: RegionRecord
    init(_ record: RegionRecord) { self.record = record }

    public var name: String { record.name }
    public var kind: RegionKind { record.kind }
    public var byteLength: ByteCount { record.byteLength }
    /// Pages, the last one perhaps partly filled.
    public var pageCount: PageCount { record.pageCount }
    /// Pages that are not zero.
    public var storedPages: PageCount { record.storedPages }
    /// Pages that this checkpoint stored itself.
    public var newPages: PageCount { record.newPages }
}
