// Which checkpoints are sent, in which order, and what each is a change of.
//
// Invariant: a checkpoint's base is one that the receiver has: named by the caller, or sent before it.

import CheckpointStore
import StoreFormat
import Units

/// One checkpoint to send.
public struct SendItem: Sendable {
    /// What is sent.
    public var checkpoint: CheckpointInfo
    /// What the receiver has already; nil: everything is sent.
    public var base: CheckpointInfo?
    /// What is in front of this was sent before.
    public var start: StreamPosition

    public init(_ checkpoint: CheckpointInfo, base: CheckpointInfo?, start: StreamPosition = .start) {
        self.checkpoint = checkpoint
        self.base = base
        self.start = start
    }
}

extension Snapshot {
    /// All checkpoints but parts of ones that are being received, parents in front of their children, else by the time they were begun.
    public func checkpointsInSendingOrder() throws(StoreError) -> [CheckpointInfo] {
        let all = try checkpoints()
        let known = Dictionary(uniqueKeysWithValues: all.map { ($0.id, $0) })
        var placed = Set<CheckpointID>()
        var order: [CheckpointInfo] = []
        for info in all {
            var line: [CheckpointInfo] = []
            var next: CheckpointInfo? = info
            while let current = next, placed.insert(current.id).inserted {
                line.append(current)
                next = current.parent.flatMap { known[$0] }
            }
            order += line.reversed()
        }
        return order
    }

    /// The names that move, ascending, by the checkpoints that they lead to; without `latest`, which each store moves itself.
    func userReferences() throws(StoreError) -> [CheckpointID: [String]] {
        let all = try references().filter { !Names.equal($0.name, Reference.latest) }
        return Dictionary(grouping: all, by: \.checkpoint).mapValues { $0.map(\.name) }
    }

    /// Everything that is between two checkpoints of one line, the older one not included, each as a change of the one before it.
    /// - Parameter older: nil: from the first one of the line that there is, which is sent in full.
    /// - Throws: `.invalidInput` when `newer` does not descend from `older`.
    public func sendItems(from older: CheckpointInfo?, to newer: CheckpointInfo) throws(StoreError) -> [SendItem] {
        var line = [newer]
        // Records that have come from anywhere may name each other as parents.
        var seen: Set = [newer.id]
        while let parent = line[line.count - 1].parent, parent != older?.id {
            guard seen.insert(parent).inserted else {
                guard older == nil else { throw unrelated(older, newer) }
                break
            }
            do throws(StoreError) { line.append(try checkpoint(parent)) } catch {
                guard error.code == .notFound, older == nil else { throw error.code == .notFound ? unrelated(older, newer) : error }
                break
            }
        }
        if older != nil, line[line.count - 1].parent == nil { throw unrelated(older, newer) }
        line.reverse()
        return line.indices.map { SendItem(line[$0], base: $0 == 0 ? older : line[$0 - 1]) }
    }

    private func unrelated(_ older: CheckpointInfo?, _ newer: CheckpointInfo) -> StoreError {
        StoreError(
            .invalidInput, "it does not descend from \(older?.name ?? "any other") over checkpoints that are all there",
            remedy: "Send the difference of the two alone: leave --all out.", medium: store.medium.name, checkpoint: newer.name)
    }

    /// Everything that a receiver lacks, each as a change of something that it has by then.
    ///
    /// The base is the nearest ancestor; where a parent was deleted, the newest earlier checkpoint that has a region of the same name.
    /// - Parameters:
    ///   - isThere: whether the receiver has a checkpoint.
    ///   - isLeftOut: whether a checkpoint is not to be sent, though the receiver does not have it.
    public func sendItems(
        lacking isThere: (CheckpointID) throws(StoreError) -> Bool,
        leavingOut isLeftOut: (CheckpointInfo) throws(StoreError) -> Bool = { _ in false }
    ) throws(StoreError) -> [SendItem] {
        var has: [CheckpointInfo] = []
        var items: [SendItem] = []
        for info in try checkpointsInSendingOrder() where try !isLeftOut(info) {
            if try !isThere(info.id) { items.append(SendItem(info, base: nearestBase(of: info, among: has))) }
            has.append(info)
        }
        return items
    }

    private func nearestBase(of info: CheckpointInfo, among known: [CheckpointInfo]) -> CheckpointInfo? {
        guard let parent = info.parent else { return nil }
        if let found = known.last(where: { $0.id == parent }) { return found }
        let names = Set(info.regions.map(\.name))
        return known.last { candidate in candidate.regions.contains { names.contains($0.name) } }
    }
}
