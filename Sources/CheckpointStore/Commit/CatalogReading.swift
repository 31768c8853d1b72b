// Reading the catalog's trees: one value, or all of them (format, 6.2).
//
// Invariant: a node is used only after it was found to be of the tree and level that its parent names.

import StoreFormat
import Units

extension CheckpointStore {
    /// Reads a catalog node and checks that it belongs where it was found.
    func readCatalogNode(
        _ pointer: BlockPointer, tree: CatalogTree, level: UInt8?
    ) throws(StoreError) -> CatalogNode {
        let node = try decodeInPlace(pointer) { bytes throws(FormatError) in try CatalogNode.decode(bytes) }
        guard node.tree == tree, level == nil || node.level == level, node.level <= 16 else {
            throw misplaced(pointer, "it is not a node of the catalog tree \(tree) at its level")
        }
        return node
    }

    /// The value of `key` below an edited or stored root. O(log n).
    func catalogValue(
        of key: [UInt8], tree: CatalogTree, root: EditedChild<CatalogEditor.Node>
    ) throws(StoreError) -> [UInt8]? {
        var child = root
        var level: UInt8?
        while true {
            let node: CatalogEditor.Node
            switch child {
            case .loaded(let loaded): node = loaded
            case .stored(let pointer):
                node = CatalogEditor.Node(try readCatalogNode(pointer, tree: tree, level: level), origin: pointer)
            }
            if node.level == 0 {
                for case (key, .value(let value)) in node.entries { return value }
                return nil
            }
            guard !node.entries.isEmpty, case .child(let next) = node.entries[node.childIndex(key)].payload else { return nil }
            child = next
            level = node.level - 1
        }
    }

    /// Calls `body` with every key and value of a stored tree, ascending, and `visiting` with every node. One read a node.
    ///
    /// A node that can't be read ends the walk; with `skipping`, that is called with the error, the node and the keys below it (from
    /// the first up to, without, the second), and the walk goes on behind it.
    func forEachInCatalog(
        _ root: BlockPointer?, tree: CatalogTree, visiting: (BlockPointer) -> Void = { _ in },
        skipping: ((StoreError, BlockPointer, [UInt8], [UInt8]?) throws(StoreError) -> Void)? = nil,
        _ body: ([UInt8], [UInt8]) throws(StoreError) -> Void
    ) throws(StoreError) {
        guard let root else { return }
        // A child's keys are not below its key in the node above, and below the key behind it.
        var pending: [(pointer: BlockPointer, level: UInt8?, low: [UInt8], high: [UInt8]?)] = [(root, nil, [], nil)]
        while let (pointer, level, low, high) = pending.popLast() {
            let node: CatalogNode
            do throws(StoreError) { node = try orderedNode(pointer, tree: tree, level: level, low: low, high: high) } catch {
                guard let skipping else { throw error }
                try skipping(error, pointer, low, high)
                continue
            }
            visiting(pointer)
            var children: [(pointer: BlockPointer, level: UInt8?, low: [UInt8], high: [UInt8]?)] = []
            for (index, entry) in node.entries.enumerated() {
                switch entry.payload {
                case .leaf(let value): try body(entry.key, value)
                case .child(let child):
                    let next = index + 1 < node.entries.count ? node.entries[index + 1].key : high
                    let first = entry.key.lexicographicallyPrecedes(low) ? low : entry.key
                    children.append((child, node.level - 1, first, next))
                }
            }
            pending += children.reversed()
        }
    }

    /// Reads a catalog node whose keys lie from `low` up to `high`.
    private func orderedNode(
        _ pointer: BlockPointer, tree: CatalogTree, level: UInt8?, low: [UInt8], high: [UInt8]?
    ) throws(StoreError) -> CatalogNode {
        let node = try readCatalogNode(pointer, tree: tree, level: level)
        // The first key of an inner node may be lower than any.
        let lowest = node.entries.dropFirst(node.level == 0 ? 0 : 1).first
        let isLow = lowest.map { $0.key.lexicographicallyPrecedes(low) } ?? false
        let isHigh = high.map { !node.entries[node.entries.count - 1].key.lexicographicallyPrecedes($0) } ?? false
        guard !isLow, !isHigh else { throw misplaced(pointer, "its keys are out of order with those of the node above") }
        return node
    }

    /// Every checkpoint in the generation of `slot`, ascending by id.
    func catalogValues(in slot: Slot) throws(StoreError) -> [(id: CheckpointID, value: CatalogValue)] {
        var all: [(id: CheckpointID, value: CatalogValue)] = []
        try forEachInCatalog(slot.catalogByID, tree: .byID) { (key, bytes) throws(StoreError) in
            guard let id = CatalogTree.id(ofKey: key) else {
                throw StoreError(.corrupt, "a catalog key is no id", remedy: "Run `ckstore verify`.", medium: medium.name)
            }
            all.append((id, try decodeCatalogValue(bytes)))
        }
        return all
    }

    /// The record of the checkpoint `id` in the generation of `slot`; nil when it is not there.
    func catalogValue(of id: CheckpointID, in slot: Slot) throws(StoreError) -> CatalogValue? {
        guard let root = slot.catalogByID,
            let bytes = try catalogValue(of: CatalogTree.key(id), tree: .byID, root: .stored(root))
        else { return nil }
        return try decodeCatalogValue(bytes)
    }

    /// The id of the checkpoint called `name` in the generation of `slot`; nil when there is none.
    func catalogID(of name: String, in slot: Slot) throws(StoreError) -> CheckpointID? {
        guard let root = slot.catalogByName,
            let bytes = try catalogValue(of: CatalogTree.key(name), tree: .byName, root: .stored(root))
        else { return nil }
        return try decodeCatalogID(bytes)
    }

    func decodeCatalogValue(_ bytes: [UInt8]) throws(StoreError) -> CatalogValue {
        do { return unsafe try CatalogValue.decode(bytes.span.bytes) } catch {
            throw StoreError(.corrupt, "\(error)", remedy: "Run `ckstore verify`.", medium: medium.name)
        }
    }

    func decodeCatalogID(_ bytes: [UInt8]) throws(StoreError) -> CheckpointID {
        guard let id = CatalogTree.id(ofValue: bytes) else {
            throw StoreError(.corrupt, "a catalog entry has no id", remedy: "Run `ckstore verify`.", medium: medium.name)
        }
        return id
    }
}
