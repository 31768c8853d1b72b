// Who descends from whom: the lineage of a generation, read or being edited (format, 6.3).
//
// Invariants:
// - Every tombstone joins two branches or more, so every leaf of the lineage is living and there are fewer tombstones than checkpoints.
// - An edge is there for every parent that a node names, and no other.

import StoreFormat
import Units

/// The lineage tree of one generation. Confined to one thread.
struct LineageTree {
    let store: CheckpointStore
    private let editor: CatalogEditor

    /// The one that a commit edits.
    init(store: CheckpointStore, editing editor: CatalogEditor) {
        self.store = store
        self.editor = editor
    }

    /// The one of `slot`, for reading.
    init(store: CheckpointStore, slot: Slot) {
        self.init(store: store, editing: CatalogEditor(store: store, tree: .lineage, root: slot.lineage))
    }

    /// A checkpoint or a tombstone.
    struct Node {
        var parent: CheckpointID?
        var state: LineageState
    }

    /// A living checkpoint that may share blocks with one that is being deleted.
    struct Neighbour: Hashable {
        var id: CheckpointID
        /// Whether it descends from that one.
        var isBelow: Bool
    }

    // MARK: reading

    func node(_ id: CheckpointID) throws(StoreError) -> Node? {
        let key = LineageKey.node(id).bytes
        guard let value = try editor.value(of: key) else { return nil }
        guard case .node(_, let parent, let state) = try decode(key, value) else { throw damaged("a node has a name's value") }
        return Node(parent: parent, state: state)
    }

    /// The children of a node, ascending by id; at most `limit`. O(log n + children).
    func children(of id: CheckpointID, limit: Int = .max) throws(StoreError) -> [CheckpointID] {
        var children: [CheckpointID] = []
        try editor.forEach(from: LineageKey.node(id).bytes) { (key, value) throws(StoreError) in
            switch try decode(key, value) {
            case .node(let other, _, _) where other == id: return true
            case .edge(let parent, let child) where parent == id: children.append(child)
            default: return false
            }
            return children.count < limit
        }
        return children
    }

    /// The checkpoint that a moving name leads to.
    func reference(_ name: String) throws(StoreError) -> CheckpointID? {
        let key = LineageKey.reference(name).bytes
        guard let value = try editor.value(of: key) else { return nil }
        guard case .reference(_, let id) = try decode(key, value) else { throw damaged("a name has a node's value") }
        return id
    }

    /// All moving names, ascending bytewise.
    func references() throws(StoreError) -> [(name: String, id: CheckpointID)] {
        var references: [(name: String, id: CheckpointID)] = []
        try editor.forEach(from: LineageKey.referencePrefix) { (key, value) throws(StoreError) in
            guard case .reference(let name, let id) = try decode(key, value) else { return false }
            references.append((name, id))
            return true
        }
        return references
    }

    /// Every entry, ascending by key.
    func forEach(_ body: (LineageEntry) throws(StoreError) -> Void) throws(StoreError) {
        try editor.forEach(from: []) { (key, value) throws(StoreError) in
            try body(try decode(key, value))
            return true
        }
    }

    /// The living checkpoints that are reached from `id` over edges and through tombstones only: nobody else can share blocks with it that
    /// they don't share too. Those above come first.
    func neighbours(of id: CheckpointID) throws(StoreError) -> [Neighbour] {
        var (above, below): ([Neighbour], [Neighbour]) = ([], [])
        var seen: Set<CheckpointID> = [id]
        var pending = try children(of: id).map { Neighbour(id: $0, isBelow: true) }
        if let parent = try node(id)?.parent { pending.append(Neighbour(id: parent, isBelow: false)) }
        while let next = pending.popLast() {
            guard seen.insert(next.id).inserted else { continue }
            guard let node = try node(next.id) else { throw damaged("\(next.id) has relatives but no entry") }
            if node.state == .living {
                if next.isBelow { below.append(next) } else { above.append(next) }
                continue
            }
            if next.isBelow || !store.has(.forgetsSiblings) {
                // Nobody knows who of those below a tombstone that gathers descends from whom.
                pending += try children(of: next.id).map { Neighbour(id: $0, isBelow: next.isBelow || next.id.isGathering) }
            }
            if !next.isBelow, let parent = node.parent { pending.append(Neighbour(id: parent, isBelow: false)) }
        }
        return above + below
    }

    /// The nearest ancestor that is living; nil when there is none.
    func livingAncestor(of id: CheckpointID) throws(StoreError) -> CheckpointID? {
        var seen: Set<CheckpointID> = [id]
        var next = try node(id)?.parent
        while let ancestor = next {
            guard seen.insert(ancestor).inserted, let node = try node(ancestor) else { throw damaged("\(id) has no line of ancestors") }
            if node.state == .living { return ancestor }
            next = node.parent
        }
        return nil
    }

    // MARK: editing

    /// Adds a new checkpoint below its parent.
    func add(_ id: CheckpointID, parent: CheckpointID?) throws(StoreError) {
        try put(.node(id, parent: parent, .living))
        if let parent { try put(.edge(parent: parent, child: id)) }
    }

    /// Makes a checkpoint a tombstone, and takes out what joins no branches any more.
    func bury(_ id: CheckpointID) throws(StoreError) {
        guard let node = try node(id), node.state == .living else { throw damaged("\(id) is no living member of it") }
        try put(.node(id, parent: node.parent, .tombstone))
        var next: CheckpointID? = id
        while let tombstone = next { next = try contract(tombstone) }
    }

    func point(_ name: String, to id: CheckpointID) throws(StoreError) { try put(.reference(name, id)) }

    /// Takes a moving name out. Returns false when it was not there.
    @discardableResult func removeReference(_ name: String) throws(StoreError) -> Bool {
        try editor.remove(LineageKey.reference(name).bytes)
    }

    /// Takes a tombstone out that has fewer than two children. Returns who has lost a child by that.
    private func contract(_ id: CheckpointID) throws(StoreError) -> CheckpointID? {
        guard let node = try node(id) else { throw damaged("\(id) has children but no entry") }
        guard node.state == .tombstone else { return nil }
        let children = try children(of: id, limit: 2)
        guard children.count < 2 else { return nil }
        try editor.remove(LineageKey.node(id).bytes)
        if let parent = node.parent { try editor.remove(LineageKey.edge(parent: parent, child: id).bytes) }
        guard let only = children.first else { return node.parent }
        guard let child = try self.node(only) else { throw damaged("\(only) has a parent but no entry") }
        try editor.remove(LineageKey.edge(parent: id, child: only).bytes)
        try put(.node(only, parent: node.parent, child.state))
        if let parent = node.parent { try put(.edge(parent: parent, child: only)) }
        return nil
    }

    private func put(_ entry: LineageEntry) throws(StoreError) { try editor.insert(entry.key.bytes, entry.value) }

    private func decode(_ key: [UInt8], _ value: [UInt8]) throws(StoreError) -> LineageEntry {
        do { return try LineageEntry.decode(key: key, value: value) } catch { throw damaged("\(error)") }
    }

    private func damaged(_ reason: String) -> StoreError {
        StoreError(.corrupt, "the lineage is damaged: \(reason)", remedy: "Run `ckstore verify`.", medium: store.medium.name)
    }
}
