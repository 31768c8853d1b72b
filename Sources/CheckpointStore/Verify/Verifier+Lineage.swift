// Checking the lineage tree against the catalog and against itself (format, 6.3).

import StoreFormat
import Units

extension Verifier {
    /// The lineage has every checkpoint, its edges fit its nodes, its tombstones join branches, and names that move lead to checkpoints.
    ///
    /// - Parameter catalog: what could be read of the catalog.
    func lineage(_ catalog: CatalogFindings) throws(StoreError) {
        guard slot.incompat & Feature.draft == 0 else { return }
        var tree = Entries()
        var isWhole = true
        try store.forEachInCatalog(
            slot.lineage, tree: .lineage, visiting: { self.trees.countSound($0) },
            skipping: { [trees] (error, pointer, _, _) throws(StoreError) in
                isWhole = false
                _ = try trees.note(error, block: pointer, isOfBlock: true)
            }
        ) { (key, value) throws(StoreError) in
            do { tree.add(try LineageEntry.decode(key: key, value: value)) } catch { try noteStore("\(error)") }
        }
        guard isWhole else { return }
        let ids = catalog.gapsByID.isEmpty ? Set(catalog.values.map(\.id)) : nil
        // By their bytes: texts that Swift takes for equal may differ in those.
        let names = Set(catalog.names.map { Array($0.name.utf8) })
        for reason in tree.faults() { try noteStore("the lineage contradicts itself: \(reason)") }
        for (name, id) in tree.references {
            if tree.nodes[id]?.state != .living { try noteStore("the name \(name) leads to \(id), which is no living checkpoint") }
            if names.contains(Array(name.utf8)) { try noteStore("the name \(name) is a checkpoint's and one that moves") }
        }
        guard let ids else { return }
        let living = Set(tree.nodes.filter { $0.value.state == .living }.keys)
        for id in ids.subtracting(living).sorted() { try noteStore("checkpoint \(id) is not in the lineage") }
        for id in living.subtracting(ids).sorted() { try noteStore("the lineage counts \(id) as living, the catalog does not have it") }
    }

    private struct Entries {
        var nodes: [CheckpointID: LineageTree.Node] = [:]
        var children: [CheckpointID: [CheckpointID]] = [:]
        var references: [(String, CheckpointID)] = []

        mutating func add(_ entry: LineageEntry) {
            switch entry {
            case .node(let id, let parent, let state): nodes[id] = LineageTree.Node(parent: parent, state: state)
            case .edge(let parent, let child): children[parent, default: []].append(child)
            case .reference(let name, let id): references.append((name, id))
            }
        }

        /// What is wrong with nodes and edges.
        func faults() -> [String] {
            var faults: [String] = []
            for (parent, ofParent) in children.sorted(by: { $0.key < $1.key }) {
                for child in ofParent where nodes[child]?.parent != parent { faults.append("an edge leads from \(parent) to \(child), which has another parent") }
            }
            for (id, node) in nodes.sorted(by: { $0.key < $1.key }) {
                if let parent = node.parent, nodes[parent] == nil { faults.append("\(parent), the parent of \(id), is not there") }
                if let parent = node.parent, children[parent]?.contains(id) != true { faults.append("no edge leads from \(parent) to its child \(id)") }
                if node.state == .tombstone, children[id]?.count ?? 0 < 2 { faults.append("tombstone \(id) joins no branches") }
            }
            if hasCycle { faults.append("some of its members descend from themselves") }
            return faults
        }

        private var hasCycle: Bool {
            var pending = nodes.filter { $0.value.parent == nil }.map(\.key)
            var reached = 0
            while let id = pending.popLast(), reached <= nodes.count {
                reached += 1
                pending += children[id] ?? []
            }
            return reached != nodes.count
        }
    }
}
