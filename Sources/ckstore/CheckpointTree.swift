// The lineage of a store's checkpoints, drawn.
//
// A chain of checkpoints, each saved over the one before it, is one vertical line, however long it is; what branches off stands below the checkpoint
// that it branches off from, moved in. The longest way down goes on in the line, so that nothing is moved in by more than a few steps.

import CheckpointStore
import Units

/// Lays checkpoints out as a tree. Members that are not shown (deleted, or filtered out) are left out unless they join branches.
struct CheckpointTree {
    /// A line of the drawing.
    struct Line {
        /// What stands in front of the name.
        var lead: String
        /// nil: a member that is not shown and joins branches.
        var checkpoint: CheckpointInfo?
    }

    private struct Member {
        var checkpoint: CheckpointInfo?
        var children: [CheckpointID] = []
        /// Members in the subtree, and when its oldest checkpoint was begun.
        var size = 1
        var oldest = UInt64.max
    }
    private var members: [CheckpointID: Member] = [:]
    private var roots: [CheckpointID] = []

    /// - Parameters:
    ///   - shown: the checkpoints to draw.
    ///   - parents: for each member of the lineage, its parent; nil: it has none.
    init(_ shown: [CheckpointInfo], parents: [CheckpointID: CheckpointID?]) {
        var all = parents
        for info in shown where all[info.id] == nil { all[info.id] = .some(nil) }
        for id in all.keys { members[id] = Member() }
        for info in shown { members[info.id]?.checkpoint = info }
        for (id, parent) in all {
            if let parent, members[parent] != nil { members[parent]?.children.append(id) } else { roots.append(id) }
        }
        roots = sorted(roots.compactMap { root in settle(root) })
    }

    /// Leaves out what is not shown and joins nothing below `root`, and measures what is left. Returns what stands there now.
    private mutating func settle(_ root: CheckpointID) -> CheckpointID? {
        var standsFor: [CheckpointID: CheckpointID] = [:]
        // Children before parents; lineages may be far deeper than a stack is.
        for id in preorder(root).reversed() {
            guard var member = members[id] else { continue }
            member.children = member.children.compactMap { standsFor[$0] }
            if member.checkpoint == nil, member.children.count < 2 {
                standsFor[id] = member.children.first
                continue
            }
            standsFor[id] = id
            let below = member.children.compactMap { members[$0] }
            member.size = below.reduce(1) { $0 + $1.size }
            member.oldest = min(member.checkpoint?.createdNanoseconds ?? .max, below.map(\.oldest).min() ?? .max)
            member.children = sorted(member.children)
            members[id] = member
        }
        return standsFor[root]
    }

    private func preorder(_ root: CheckpointID) -> [CheckpointID] {
        var (order, pending) = ([CheckpointID](), [root])
        while let id = pending.popLast() {
            order.append(id)
            pending += members[id]?.children ?? []
        }
        return order
    }

    private func sorted(_ ids: [CheckpointID]) -> [CheckpointID] {
        ids.sorted { (members[$0]?.oldest ?? 0, $0) < (members[$1]?.oldest ?? 0, $1) }
    }

    /// The drawing, the oldest root first.
    func lines() -> [Line] {
        var lines: [Line] = []
        for root in roots { draw(root, prefix: "", isRoot: true, &lines) }
        return lines
    }

    /// Draws the chain that begins with `first`. Recursion is at most as deep as the logarithm of the members: a chain goes on
    /// where most of them are.
    private func draw(_ first: CheckpointID, prefix: String, isRoot: Bool, _ lines: inout [Line]) {
        var next: CheckpointID? = first
        while let id = next, let member = members[id] {
            let onward = member.children.max { (members[$0]?.size ?? 0) < (members[$1]?.size ?? 0) }
            let isFirstRoot = isRoot && id == first
            lines.append(Line(lead: prefix + (isFirstRoot ? "" : onward == nil ? "└ " : "├ "), checkpoint: member.checkpoint))
            for child in member.children where child != onward { draw(child, prefix: prefix + "│ ", isRoot: false, &lines) }
            next = onward
        }
    }
}
