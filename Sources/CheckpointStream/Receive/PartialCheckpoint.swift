// What has come of a checkpoint, kept in the store until the rest comes.
//
// Invariants:
// - It is a checkpoint like any other, durable and whole in itself, with a name that nobody else can give and labels that say of what
//   it is the first part; lists leave it out.
// - Of one checkpoint the part that goes furthest counts; the others go as soon as it is there.

import CheckpointStore
import StoreFormat
import Units

/// The first part of a checkpoint that is being received.
public struct PartialCheckpoint: Sendable {
    /// The checkpoint that it is part of.
    public var checkpoint: CheckpointID
    /// The name that it will have.
    public var name: String
    /// What it is a change of; nil: it is sent in full.
    public var base: CheckpointID?
    /// The stream that it came by.
    public var stream: StreamID
    /// The store that the stream came from.
    public var origin: StoreUUID
    /// What is in front of this place is there.
    public var position: StreamPosition
    /// How it is kept.
    public var info: CheckpointInfo

    /// What tells the sender where to go on.
    public var token: ResumeToken { ResumeToken(checkpoint: checkpoint, base: base, position: position) }
}

extension PartialCheckpoint {
    private enum Key {
        static let prefix = "ckstore.receive."
        static let base = prefix + "base"
        static let checkpoint = prefix + "checkpoint"
        static let name = prefix + "name"
        static let origin = prefix + "origin"
        static let page = prefix + "page"
        static let region = prefix + "region"
        static let stream = prefix + "stream"
    }

    /// Labels that say what it is part of, ascending by key.
    static func labels(_ frame: CheckpointFrame, name: String, start: StartFrame, position: StreamPosition) -> [Label] {
        [
            Label(key: Key.base, value: frame.base?.description ?? ""), Label(key: Key.checkpoint, value: frame.id.description),
            Label(key: Key.name, value: name), Label(key: Key.origin, value: start.origin.description),
            Label(key: Key.page, value: position.page.description), Label(key: Key.region, value: String(position.region)),
            Label(key: Key.stream, value: hexadecimal(start.stream.rawValue)),
        ]
    }

    /// A name that no other part has.
    static func newName(for checkpoint: CheckpointID) -> String {
        "\(Names.partialPrefix)\(checkpoint).\(hexadecimal(.random(in: .min ... .max)))"
    }

    /// nil: it is no part, or its labels don't say of what.
    init?(_ info: CheckpointInfo) {
        guard info.isPartial else { return nil }
        let labels = Dictionary(info.labels.map { ($0.key, $0.value) }) { $1 }
        guard let checkpoint = labels[Key.checkpoint].flatMap({ CheckpointID(hex: $0) }), let name = labels[Key.name],
            let origin = labels[Key.origin].flatMap({ StoreUUID($0) }), let stream = labels[Key.stream].flatMap({ UInt64($0, radix: 16) }),
            let region = labels[Key.region].flatMap({ Int($0) }), let page = labels[Key.page].flatMap({ UInt64($0) }),
            let base = labels[Key.base], region >= 0, base.isEmpty || CheckpointID(hex: base) != nil
        else { return nil }
        self.init(
            checkpoint: checkpoint, name: name, base: CheckpointID(hex: base), stream: StreamID(stream), origin: origin,
            position: StreamPosition(region: region, page: PageIndex(page)), info: info)
    }
}

extension Snapshot {
    /// What has come of checkpoints that are being received, the furthest part of each. One read for each part and each checkpoint that has some.
    public func partialCheckpoints() throws(StoreError) -> [PartialCheckpoint] {
        var furthest: [CheckpointID: PartialCheckpoint] = [:]
        for part in try parts() where part.position >= (furthest[part.checkpoint]?.position ?? .start) {
            // What is there as a whole needs no part any more: its receiver ended before it could delete that.
            if try !hasCheckpoint(part.checkpoint) { furthest[part.checkpoint] = part }
        }
        return furthest.values.sorted { ($0.name, $0.checkpoint) < ($1.name, $1.checkpoint) }
    }

    fileprivate func parts() throws(StoreError) -> [PartialCheckpoint] {
        var parts: [PartialCheckpoint] = []
        for name in try names(beginningWith: Names.partialPrefix) {
            if let part = PartialCheckpoint(try checkpoint(named: name)) { parts.append(part) }
        }
        return parts
    }
}

extension CheckpointStore {
    /// Drops what has come of checkpoints that are being received: the store is as if nothing had come. Durable on return.
    ///
    /// - Parameter checkpoint: of this one only; nil: of all.
    /// - Returns: what was dropped, the furthest part of each.
    /// - Throws: what deleting throws.
    @discardableResult
    public func discardPartialCheckpoints(of checkpoint: CheckpointID? = nil) throws(StoreError) -> [PartialCheckpoint] {
        let snapshot = try snapshot()
        let dropped = try snapshot.partialCheckpoints().filter { checkpoint == nil || $0.checkpoint == checkpoint }
        try deleteParts { checkpoint == nil || $0 == checkpoint }
        return dropped
    }

    /// Deletes what a receiver has left that ended between its last two commits.
    func deletePartsOfWhatIsThere() throws(StoreError) {
        let snapshot = try snapshot()
        var present = Set<CheckpointID>()
        for part in try snapshot.parts() {
            if try snapshot.hasCheckpoint(part.checkpoint) { present.insert(part.checkpoint) }
        }
        if !present.isEmpty { try deleteParts { present.contains($0) } }
    }

    /// Deletes parts of the checkpoints of which that is wanted, but for `kept`. Those that another receiver has deleted are none any more.
    func deleteParts(but kept: CheckpointID? = nil, of isWanted: (CheckpointID) -> Bool) throws(StoreError) {
        let doomed = try snapshot().parts().filter { isWanted($0.checkpoint) && $0.info.id != kept }.map(\.info)
        guard !doomed.isEmpty else { return }
        if let obstacle = try delete(doomed).obstacle { throw obstacle }
    }
}
