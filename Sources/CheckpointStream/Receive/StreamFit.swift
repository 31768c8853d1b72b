// Whether a checkpoint of a stream can come into a store: each way in which it can't has its own error.
//
// Invariant: nothing has been written when a stream is refused here.

import CheckpointStore
import StoreFormat
import Units

/// How a checkpoint of a stream fits a store.
struct StreamFit {
    /// The store has it already; everything else is unknown then.
    let isPresent: Bool
    /// The checkpoint to build on: the base, or what has come before.
    let over: CheckpointID?
    /// What the stream's changes are changes of.
    let base: CheckpointInfo?
    /// What has come before, when the stream goes on from there.
    let part: PartialCheckpoint?
    /// The name that the checkpoint gets: the one that was asked for, now or when its first part came, or its own.
    let name: String

    /// - Throws: `.exists` when another checkpoint has the name, or one of that id was deleted and still joins branches; `.outOfOrder`,
    ///   `.foreign` when the base is not there.
    init(_ store: CheckpointStore, _ frame: CheckpointFrame, _ start: StartFrame, newName: String?) throws(StoreError) {
        let snapshot = try store.snapshot()
        isPresent = try snapshot.hasCheckpoint(frame.id)
        guard !isPresent else {
            (over, base, part, name) = (nil, nil, nil, frame.name)
            return
        }
        guard try !snapshot.remembersDeleted(frame.id) else {
            throw StoreError(
                .exists, "a checkpoint of that id was deleted here, and still joins branches",
                remedy: "Receive it into another store, or delete the branches first.", medium: store.medium.name, checkpoint: frame.name)
        }
        let known = frame.start > .start ? try snapshot.partialCheckpoints().first { $0.checkpoint == frame.id } : nil
        name = newName ?? known?.name ?? frame.name
        try Self.checkName(name, snapshot)
        base = try frame.base.flatMap { id throws(StoreError) in try snapshot.find(id) }
        if let id = frame.base, base?.createdNanoseconds != frame.baseCreatedNanoseconds {
            throw try Self.noBase(id, frame, start, snapshot)
        }
        guard frame.start > .start else {
            (over, part) = (frame.base, nil)
            return
        }
        guard let known, known.base == frame.base, known.position >= frame.start, Self.isSame(known.info, frame) else {
            throw StoreError(
                .outOfOrder, "the stream goes on from region \(frame.start.region), page \(frame.start.page), and what is in front of that "
                    + "has not come", remedy: "`ckstore receive --status` says from where to go on; without it, send everything.",
                medium: store.medium.name, checkpoint: name)
        }
        (over, part) = (known.info.id, known)
    }

    /// Whether a part has the regions that the checkpoint is to have.
    private static func isSame(_ part: CheckpointInfo, _ frame: CheckpointFrame) -> Bool {
        part.regions.count == frame.regions.count
            && zip(part.regions, frame.regions).allSatisfy { has, wanted in
                Names.equal(has.name, wanted.name) && has.kind == wanted.kind && has.byteLength == wanted.byteLength
            }
    }

    private static func checkName(_ name: String, _ snapshot: Snapshot) throws(StoreError) {
        do { try Names.check(name) } catch { throw StoreError(.invalidInput, "\(error)", remedy: "Choose another name.", checkpoint: name) }
        guard !Names.isPartial(name) else {
            throw StoreError(.invalidInput, "names that begin with \(Names.partialPrefix) are kept", remedy: "Choose another.", checkpoint: name)
        }
        guard let known = try snapshot.find(named: name) else { return }
        guard Names.equal(known.name, name) else {
            throw StoreError(
                .exists, "the name is one that moves here, and leads to \(known.name)",
                remedy: "Receive it with another name (--as), or take the other one away (`ckstore name remove`).",
                medium: snapshot.store.medium.name, checkpoint: name)
        }
        throw StoreError(
            .exists, "another checkpoint has that name", remedy: "Receive it with another name (--as), or delete the other one.",
            medium: snapshot.store.medium.name, checkpoint: name)
    }

    private static func noBase(
        _ base: CheckpointID, _ frame: CheckpointFrame, _ start: StartFrame, _ snapshot: Snapshot
    ) throws(StoreError) -> StoreError {
        var hasRelative = start.origin == snapshot.store.uuid
        for id in start.relatives where !hasRelative { hasRelative = try snapshot.find(id) != nil }
        let medium = snapshot.store.medium.name
        if hasRelative {
            return StoreError(
                .outOfOrder, "the stream has what changed since checkpoint \(base), which is not there: a stream before this one is missing",
                remedy: "Send that first, or what changed since one that is there (`ckstore send --from`).", medium: medium,
                checkpoint: frame.name)
        }
        return StoreError(
            .foreign, "the stream has what changed since checkpoint \(base) of store \(start.origin), and nothing of that store is here",
            remedy: "Send a checkpoint in full first: leave --from out.", medium: medium, checkpoint: frame.name)
    }
}

extension Snapshot {
    /// The checkpoint with that id; nil: there is none.
    func find(_ id: CheckpointID) throws(StoreError) -> CheckpointInfo? { try unlessMissing { () throws(StoreError) in try checkpoint(id) } }

    /// The checkpoint of that name; nil: there is none.
    func find(named name: String) throws(StoreError) -> CheckpointInfo? {
        try unlessMissing { () throws(StoreError) in try checkpoint(named: name) }
    }

    private func unlessMissing(_ look: () throws(StoreError) -> CheckpointInfo) throws(StoreError) -> CheckpointInfo? {
        do throws(StoreError) { return try look() } catch {
            guard error.code == .notFound else { throw error }
            return nil
        }
    }
}
