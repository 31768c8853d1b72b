// Who descends from whom, with the places of those that are gone.
//
// Invariants:
// - Parents stand before their children.
// - Every living checkpoint that is shown has one node; one that was deleted has a node when somebody who is shown descends from it.

import CheckpointStore
import Units

/// The lineage of the checkpoints that a report shows.
package struct Lineage {
    package private(set) var nodes: [LineageNode] = []
    /// For each checkpoint, its nearest ancestor that is shown.
    package private(set) var parents: [Int?]
    private var places: [CheckpointID: Int] = [:]

    /// - Parameters:
    ///   - shown: the checkpoints of the report.
    ///   - hidden: those that are in the store, but older.
    ///   - lineage: the parents of all members of the store's lineage, deleted ones included; where it has none, records say.
    package init(shown: [CheckpointInfo], hidden: Set<CheckpointID>, lineage: [CheckpointID: CheckpointID?]) {
        parents = Array(repeating: nil, count: shown.count)
        let numbers = Dictionary(uniqueKeysWithValues: shown.enumerated().map { ($0.element.id, $0.offset) })
        var parentOf = lineage
        for info in shown where parentOf[info.id] == nil { parentOf[info.id] = .some(info.parent) }
        for (number, info) in shown.enumerated() {
            add(info.id, numbers, hidden, parentOf)
            parents[number] = nearestShown(above: info.id)
        }
    }

    /// The checkpoints in an order in which parents come before their children, and children soon after their parents.
    var depthFirst: [Int] {
        var children: [Int: [Int]] = [:]
        for (number, parent) in parents.enumerated() { children[parent ?? -1, default: []].append(number) }
        var order: [Int] = []
        var waiting = Array((children[-1] ?? []).reversed())
        while let number = waiting.popLast() {
            order.append(number)
            waiting += (children[number] ?? []).reversed()
        }
        return order
    }

    /// Adds the node of `id` behind those of its ancestors. Lineages can be long: no recursion.
    private mutating func add(
        _ id: CheckpointID, _ numbers: [CheckpointID: Int], _ hidden: Set<CheckpointID>, _ parentOf: [CheckpointID: CheckpointID?]
    ) {
        var path: [CheckpointID] = []
        var next: CheckpointID? = id
        // A damaged lineage may have a circle: whoever is met twice counts as a root.
        var seen = Set<CheckpointID>()
        while let current = next, places[current] == nil, !hidden.contains(current), seen.insert(current).inserted {
            path.append(current)
            next = parentOf[current] ?? nil
        }
        for id in path.reversed() {
            let parent = parentOf[id] ?? nil
            places[id] = nodes.count
            let isCut = parent.map(hidden.contains) ?? false
            nodes.append(LineageNode(id: id, parent: parent.flatMap { places[$0] }, checkpoint: numbers[id], isCut: isCut))
        }
    }

    private func nearestShown(above id: CheckpointID) -> Int? {
        var node = places[id].flatMap { nodes[$0].parent }
        while let current = node {
            if let checkpoint = nodes[current].checkpoint { return checkpoint }
            node = nodes[current].parent
        }
        return nil
    }
}
