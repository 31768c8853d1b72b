// Who descends from whom, as a store must keep it: the oracle for lineage and `latest`.
//
// Invariant: a deleted member joins two branches or more, or it is not there.

import CheckpointStore
import Units

/// The lineage in a plain dictionary.
package struct LineageModel: Sendable {
    package struct Member: Sendable, Equatable {
        package var parent: CheckpointID?
        package var isDeleted: Bool
    }
    package private(set) var members: [CheckpointID: Member] = [:]

    package init() {}

    /// The lineage that a store has.
    package init(_ members: [CheckpointID: LineageMember]) {
        self.members = members.mapValues { Member(parent: $0.parent, isDeleted: $0.isDeleted) }
    }

    package mutating func add(_ id: CheckpointID, over parent: CheckpointID?) {
        members[id] = Member(parent: parent, isDeleted: false)
    }

    package mutating func remove(_ id: CheckpointID) {
        members[id]?.isDeleted = true
        collapse(id)
    }

    /// The nearest ancestor that is not deleted.
    package func livingAncestor(of id: CheckpointID) -> CheckpointID? {
        var next = members[id]?.parent
        while let current = next, members[current]?.isDeleted == true { next = members[current]?.parent }
        return next
    }

    /// Throws unless `snapshot` shows just this.
    package func requireEqual(_ snapshot: Snapshot) throws {
        let found = try snapshot.lineage().mapValues { Member(parent: $0.parent, isDeleted: $0.isDeleted) }
        guard found != members else { return }
        let wrong = Set(found.keys).union(members.keys).sorted().first { found[$0] != members[$0] }
        throw Mismatch("lineage: \(found.count) members instead of \(members.count); \(wrong.map { "\($0): \(describe(found[$0])) instead of \(describe(members[$0]))" } ?? "")")
    }

    private func describe(_ member: Member?) -> String {
        member.map { "\($0.isDeleted ? "deleted" : "living"), over \($0.parent.map { "\($0)" } ?? "none")" } ?? "nothing"
    }

    private mutating func collapse(_ id: CheckpointID) {
        guard let member = members[id], member.isDeleted else { return }
        let children = members.filter { $0.value.parent == id }.map(\.key)
        guard children.count < 2 else { return }
        members[id] = nil
        if let child = children.first {
            members[child]?.parent = member.parent
        } else if let parent = member.parent {
            collapse(parent)
        }
    }
}
