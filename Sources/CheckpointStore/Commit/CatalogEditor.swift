// The catalog's two B+ trees, edited as a copy for a commit (format, 6.2).
//
// Nodes are split when they outgrow 4096 bytes and dropped when they are empty; half-empty neighbours are
// not merged, since a catalog shrinks rarely; what is dead is reclaimed with its segment, which compaction empties
// (CatalogEditor+Rewriting.swift).

import StoreFormat
import Units

/// One catalog tree being edited. Not thread-safe.
final class CatalogEditor {
    typealias Key = [UInt8]

    final class Node: CommitNode {
        enum Payload {
            case value([UInt8])
            case child(EditedChild<Node>)
            /// The pointer to a forwarding table that this commit writes.
            case table(EditedForwardingTable)
        }
        let tree: CatalogTree
        let level: UInt8
        var entries: [(key: Key, payload: Payload)]
        let origin: BlockPointer?
        var stored: BlockPointer?

        init(tree: CatalogTree, level: UInt8, entries: [(key: Key, payload: Payload)], origin: BlockPointer?) {
            self.tree = tree
            self.level = level
            self.entries = entries
            self.origin = origin
        }

        convenience init(_ node: CatalogNode, origin: BlockPointer) {
            self.init(
                tree: node.tree, level: node.level,
                entries: node.entries.map { entry in
                    switch entry.payload {
                    case .leaf(let value): return (entry.key, .value(value))
                    case .child(let pointer): return (entry.key, .child(.stored(pointer)))
                    }
                }, origin: origin)
        }

        var encodedLength: Int {
            entries.reduce(40) { sum, entry in
                guard case .value(let value) = entry.payload else { return sum + 4 + entry.key.count + BlockPointer.encodedLength }
                return sum + 4 + entry.key.count + value.count
            }
        }
        func encoded(birth: BlockBirth) -> [UInt8] {
            let entries = entries.map { key, payload in
                switch payload {
                case .value(let value): CatalogNode.Entry(key: key, payload: .leaf(value))
                case .child(let child): CatalogNode.Entry(key: key, payload: .child(child.pointer))
                case .table(let table): CatalogNode.Entry(key: key, payload: .leaf(table.pointerBytes))
                }
            }
            return CatalogNode(tree: tree, level: level, entries: entries).encoded(birth: birth)
        }

        /// The entry whose subtree holds `key`: the last one that is not above it.
        func childIndex(_ key: Key) -> Int {
            var low = 0
            var high = entries.count
            while low < high {
                let middle = (low + high) / 2
                if key.lexicographicallyPrecedes(entries[middle].key) { high = middle } else { low = middle + 1 }
            }
            return max(0, low - 1)
        }
    }

    private let store: CheckpointStore
    private let tree: CatalogTree
    /// Nil: the tree is empty.
    var root: EditedChild<Node>?
    /// Stored nodes that the edited tree does not have any more and that nothing replaces.
    private(set) var dropped: [BlockPointer] = []

    init(store: CheckpointStore, tree: CatalogTree, root: BlockPointer?) {
        self.store = store
        self.tree = tree
        self.root = root.map { .stored($0) }
    }

    var rootPointer: BlockPointer? { root?.pointer }

    /// Sets the value of `key`, new or not.
    func insert(_ key: Key, _ value: [UInt8]) throws(StoreError) { try insert(key, .value(value)) }

    /// Sets what `key` leads to: a value, or a table that gets its place with this commit.
    func insert(_ key: Key, _ value: Node.Payload) throws(StoreError) {
        guard let root else {
            self.root = .loaded(Node(tree: tree, level: 0, entries: [(key, value)], origin: nil))
            return
        }
        let node = try edit(root, level: nil)
        self.root = .loaded(node)
        guard let right = try insert(key, value, into: node) else { return }
        self.root = .loaded(
            Node(
                tree: tree, level: node.level + 1,
                entries: [([], .child(.loaded(node))), (right.entries[0].key, .child(.loaded(right)))], origin: nil))
    }

    /// Takes `key` out. Returns false when it was not there.
    @discardableResult func remove(_ key: Key) throws(StoreError) -> Bool {
        guard let root, try store.catalogValue(of: key, tree: tree, root: root) != nil else { return false }
        let node = try edit(root, level: nil)
        self.root = .loaded(node)
        try remove(key, from: node)
        while case .loaded(let top)? = self.root, top.level > 0, top.entries.count == 1,
            case .child(let only) = top.entries[0].payload
        {
            drop(top)
            self.root = only
        }
        if case .loaded(let top)? = self.root, top.entries.isEmpty {
            drop(top)
            self.root = nil
        }
        return true
    }

    func value(of key: Key) throws(StoreError) -> [UInt8]? {
        guard let root else { return nil }
        return try store.catalogValue(of: key, tree: tree, root: root)
    }

    /// Calls `body` with the entries from `low` on, ascending, until it returns false. O(log n + entries).
    func forEach(from low: Key, _ body: (Key, [UInt8]) throws(StoreError) -> Bool) throws(StoreError) {
        if let root { _ = try visit(root, level: nil, from: low, body) }
    }

    private func visit(
        _ child: EditedChild<Node>, level: UInt8?, from low: Key, _ body: (Key, [UInt8]) throws(StoreError) -> Bool
    ) throws(StoreError) -> Bool {
        let node = try edit(child, level: level)
        let start = node.level == 0 ? 0 : node.childIndex(low)
        for (key, payload) in node.entries[start...] {
            switch payload {
            case .value(let value):
                if !key.lexicographicallyPrecedes(low), try !body(key, value) { return false }
            case .child(let child):
                guard try visit(child, level: node.level - 1, from: low, body) else { return false }
            case .table: preconditionFailure("forwarding tables have an editor of their own")
            }
        }
        return true
    }

    /// The edited nodes, children before parents.
    func dirtyNodes() -> [Node] {
        var nodes: [Node] = []
        func visit(_ child: EditedChild<Node>?) {
            guard case .loaded(let node)? = child else { return }
            for case .child(let child) in node.entries.map(\.payload) { visit(child) }
            nodes.append(node)
        }
        visit(root)
        return nodes
    }

    private func drop(_ node: Node) {
        if let origin = node.origin { dropped.append(origin) }
    }

    /// The node, ready to be changed; its parent does not have it yet.
    func edit(_ child: EditedChild<Node>, level: UInt8?) throws(StoreError) -> Node {
        guard case .stored(let pointer) = child else {
            guard case .loaded(let node) = child else { preconditionFailure("a child is stored or loaded") }
            return node
        }
        return Node(try store.readCatalogNode(pointer, tree: tree, level: level), origin: pointer)
    }

    /// Returns the new right neighbour when `node` had to be split.
    private func insert(_ key: Key, _ value: Node.Payload, into node: Node) throws(StoreError) -> Node? {
        if node.level == 0 {
            let index = node.entries.firstIndex { !$0.key.lexicographicallyPrecedes(key) } ?? node.entries.count
            if index < node.entries.count, node.entries[index].key == key {
                node.entries[index].payload = value
            } else {
                node.entries.insert((key, value), at: index)
            }
        } else {
            let index = node.childIndex(key)
            guard case .child(let child) = node.entries[index].payload else { preconditionFailure("inner nodes have children") }
            let edited = try edit(child, level: node.level - 1)
            node.entries[index].payload = .child(.loaded(edited))
            // An inner key must not be above any key below it.
            if key.lexicographicallyPrecedes(node.entries[index].key) { node.entries[index].key = key }
            if let right = try insert(key, value, into: edited) {
                node.entries.insert((right.entries[0].key, .child(.loaded(right))), at: index + 1)
            }
        }
        return node.encodedLength > CatalogNode.maximumLength ? split(node) : nil
    }

    private func split(_ node: Node) -> Node {
        var length = 40
        var cut = 0
        while cut < node.entries.count - 1, length < node.encodedLength / 2 {
            let probe = Node(tree: tree, level: node.level, entries: [node.entries[cut]], origin: nil)
            length += probe.encodedLength - 40
            cut += 1
        }
        cut = max(1, cut)
        let right = Node(tree: tree, level: node.level, entries: Array(node.entries[cut...]), origin: nil)
        node.entries.removeSubrange(cut...)
        return right
    }

    private func remove(_ key: Key, from node: Node) throws(StoreError) {
        if node.level == 0 {
            node.entries.removeAll { $0.key == key }
            return
        }
        let index = node.childIndex(key)
        guard case .child(let child) = node.entries[index].payload else { preconditionFailure("inner nodes have children") }
        let edited = try edit(child, level: node.level - 1)
        node.entries[index].payload = .child(.loaded(edited))
        try remove(key, from: edited)
        if edited.entries.isEmpty {
            drop(edited)
            node.entries.remove(at: index)
        }
    }
}
