// The segment table: reading it, and editing a copy of it for a commit (format, section 7).

import StoreFormat
import Units

/// Reads entries of one generation's segment table.
///
/// Keeps the last leaf, so that walking through the table costs one read a leaf. Not thread-safe.
struct TableReader {
    let store: CheckpointStore
    let slot: Slot
    private var leaf: TableLeaf?

    init(store: CheckpointStore, slot: Slot) {
        self.store = store
        self.slot = slot
    }

    /// Segments in a leaf, and children of an inner node.
    static let fanOut = 64

    /// The entry of `segment`, which must be below the segment count. O(depth) reads.
    mutating func entry(_ segment: SegmentIndex) throws(StoreError) -> SegmentEntry {
        try leaf(of: segment)?.entries[Int(segment.rawValue) % Self.fanOut] ?? .neverUsed
    }

    /// The leaf that `segment` belongs to; nil when none of its segments was ever used.
    mutating func leaf(of segment: SegmentIndex) throws(StoreError) -> TableLeaf? {
        let first = SegmentIndex(segment.rawValue / UInt64(Self.fanOut) * UInt64(Self.fanOut))
        if let leaf, leaf.firstSegment == first { return leaf }
        guard var pointer = slot.segmentTable else { return nil }
        for level in stride(from: slot.geometry.tableDepth, to: 0, by: -1) {
            let node = try store.readTableInner(pointer, level: level, containing: segment)
            guard let child = node.children[TableEditor.childIndex(segment, level: level)] else { return nil }
            pointer = child
        }
        let found = try store.readTableLeaf(pointer, first: first)
        leaf = found
        return found
    }
}

extension CheckpointStore {
    func readTableInner(
        _ pointer: BlockPointer, level: UInt8, containing segment: SegmentIndex
    ) throws(StoreError) -> TableInner {
        let node = try decodeInPlace(pointer) { bytes throws(FormatError) in try TableInner.decode(bytes) }
        let covered = TableEditor.segmentsBelow(level: level + 1)
        guard node.level == level, node.firstSegment.rawValue == segment.rawValue / covered * covered else {
            throw misplaced(pointer, "it is not the node for segment \(segment) at level \(level)")
        }
        return node
    }

    func readTableLeaf(_ pointer: BlockPointer, first: SegmentIndex) throws(StoreError) -> TableLeaf {
        let leaf = try decodeInPlace(pointer) { bytes throws(FormatError) in try TableLeaf.decode(bytes) }
        guard leaf.firstSegment == first else { throw misplaced(pointer, "it is not the leaf of segment \(first)") }
        return leaf
    }
}

/// A segment table being edited. Not thread-safe.
final class TableEditor {
    /// An edited node: a leaf with its entries or an inner node with its children.
    final class Node: CommitNode {
        let firstSegment: SegmentIndex
        let level: UInt8
        var entries: [SegmentEntry] = []
        var children: [EditedChild<Node>?] = []
        let origin: BlockPointer?
        var stored: BlockPointer?

        init(leaf: TableLeaf, origin: BlockPointer?) {
            firstSegment = leaf.firstSegment
            level = 0
            entries = leaf.entries
            self.origin = origin
        }

        init(inner: TableInner, origin: BlockPointer?) {
            firstSegment = inner.firstSegment
            level = inner.level
            children = inner.children.map { $0.map { .stored($0) } }
            self.origin = origin
        }

        var encodedLength: Int {
            level == 0
                ? 48 + entries.count * 32 : 48 + children.count { $0 != nil } * BlockPointer.encodedLength
        }
        func encoded(birth: BlockBirth) -> [UInt8] {
            level == 0
                ? TableLeaf(firstSegment: firstSegment, entries: entries).encoded(birth: birth)
                : TableInner(firstSegment: firstSegment, level: level, children: children.map { $0?.pointer })
                    .encoded(birth: birth)
        }
    }

    private let store: CheckpointStore
    private let segmentCount: UInt32
    private let depth: UInt8
    private var root: EditedChild<Node>?
    /// Edited nodes; every one of them is written by the commit.
    private var dirtyCount = 0
    /// Stored nodes that the edited table does not have any more and that nothing replaces.
    private(set) var dropped: [BlockPointer] = []

    init(store: CheckpointStore, slot: Slot, segmentCount: UInt32) throws(StoreError) {
        self.store = store
        self.segmentCount = segmentCount
        depth = Geometry.tableDepth(segmentCount: segmentCount)
        root = slot.segmentTable.map { .stored($0) }
        var level = slot.geometry.tableDepth
        while level < depth, root != nil {
            // The store has grown: what was the root becomes the first child of a new one.
            level += 1
            let node = Node(
                inner: TableInner(
                    firstSegment: SegmentIndex(0), level: level, children: Array(repeating: nil, count: TableReader.fanOut)),
                origin: nil)
            node.children[0] = root
            root = .loaded(node)
            dirtyCount += 1
        }
        if segmentCount < slot.geometry.segmentCount { try shrink(from: level) }
    }

    // MARK: fewer segments

    /// Makes the table of a store that was larger fit: of a root that is too high its first child is left, and nothing of what
    /// is behind the end.
    private func shrink(from oldDepth: UInt8) throws(StoreError) {
        let first = SegmentIndex(UInt64(0))
        var level = oldDepth
        while level > depth, case .stored(let pointer)? = root {
            let node = try store.readTableInner(pointer, level: level, containing: first)
            dropped.append(pointer)
            for (index, child) in node.children.enumerated().dropFirst() {
                try drop(child, level: level - 1, first: Self.start(of: index, in: node))
            }
            root = node.children[0].map { .stored($0) }
            level -= 1
        }
        if case .stored(let pointer)? = root { root = try trimmed(pointer, level: depth, first: first) }
    }

    /// Counts a stored subtree as replaced by nothing.
    private func drop(_ pointer: BlockPointer?, level: UInt8, first: SegmentIndex) throws(StoreError) {
        guard let pointer else { return }
        dropped.append(pointer)
        guard level > 0 else { return }
        let node = try store.readTableInner(pointer, level: level, containing: first)
        for (index, child) in node.children.enumerated() {
            try drop(child, level: level - 1, first: Self.start(of: index, in: node))
        }
    }

    /// A stored subtree without what is behind the end; nil when nothing is left. Only nodes that the end cuts are edited.
    private func trimmed(
        _ pointer: BlockPointer, level: UInt8, first: SegmentIndex
    ) throws(StoreError) -> EditedChild<Node>? {
        let end = UInt64(segmentCount)
        if first.rawValue >= end {
            try drop(pointer, level: level, first: first)
            return nil
        }
        guard first.rawValue + Self.segmentsBelow(level: level + 1) > end else { return .stored(pointer) }
        if level == 0 {
            var leaf = try store.readTableLeaf(pointer, first: first)
            for index in Int(end - first.rawValue)..<leaf.entries.count { leaf.entries[index] = .neverUsed }
            dirtyCount += 1
            return .loaded(Node(leaf: leaf, origin: pointer))
        }
        let inner = try store.readTableInner(pointer, level: level, containing: first)
        let node = Node(inner: inner, origin: pointer)
        for (index, child) in inner.children.enumerated() {
            guard let child else { continue }
            node.children[index] = try trimmed(child, level: level - 1, first: Self.start(of: index, in: inner))
        }
        if node.children.allSatisfy({ $0 == nil }) {
            dropped.append(pointer)
            return nil
        }
        dirtyCount += 1
        return .loaded(node)
    }

    /// The first segment below child `index` of `node`.
    private static func start(of index: Int, in node: TableInner) -> SegmentIndex {
        SegmentIndex(node.firstSegment.rawValue + UInt64(index) * segmentsBelow(level: node.level))
    }

    // MARK: entries

    var numberOfDirtyNodes: Int { dirtyCount }

    /// How many segments one child of a node at `level` covers; for a leaf's own level + 1, its entries.
    static func segmentsBelow(level: UInt8) -> UInt64 { UInt64(1) << (6 * UInt64(level)) }

    static func childIndex(_ segment: SegmentIndex, level: UInt8) -> Int {
        Int(segment.rawValue / segmentsBelow(level: level) % UInt64(TableReader.fanOut))
    }

    func entry(_ segment: SegmentIndex) throws(StoreError) -> SegmentEntry {
        try leaf(of: segment, edit: false)?.entries[Int(segment.rawValue) % TableReader.fanOut] ?? .neverUsed
    }

    /// Changes the entry of `segment`; its leaf and the path to it will be written anew.
    func update(_ segment: SegmentIndex, _ change: (inout SegmentEntry) -> Void) throws(StoreError) {
        guard let leaf = try leaf(of: segment, edit: true) else { preconditionFailure("editing makes the leaf") }
        change(&leaf.entries[Int(segment.rawValue) % TableReader.fanOut])
    }

    /// Makes sure that the leaf of `segment` will be written, without changing it yet.
    func touch(_ segment: SegmentIndex) throws(StoreError) { _ = try leaf(of: segment, edit: true) }

    /// The edited nodes, children before parents.
    func dirtyNodes() -> [Node] {
        var nodes: [Node] = []
        func visit(_ child: EditedChild<Node>?) {
            guard case .loaded(let node) = child else { return }
            for child in node.children { visit(child) }
            nodes.append(node)
        }
        visit(root)
        return nodes
    }

    /// The pointer to the root after the dirty nodes have been stored.
    var rootPointer: BlockPointer? { root?.pointer }

    private func leaf(of segment: SegmentIndex, edit: Bool) throws(StoreError) -> Node? {
        guard segment.rawValue < UInt64(segmentCount) else {
            throw StoreError(
                .corrupt, "segment \(segment) of \(segmentCount) is named", remedy: "Run `ckstore verify`.",
                medium: store.medium.name)
        }
        guard edit || root != nil else { return nil }
        let top = try load(root, level: depth, segment: segment, edit: edit)
        guard var node = top else { return nil }
        if edit { root = .loaded(node) }
        while node.level > 0 {
            let index = Self.childIndex(segment, level: node.level)
            guard edit || node.children[index] != nil else { return nil }
            guard let child = try load(node.children[index], level: node.level - 1, segment: segment, edit: edit) else {
                return nil
            }
            if edit { node.children[index] = .loaded(child) }
            node = child
        }
        return node
    }

    private func load(
        _ child: EditedChild<Node>?, level: UInt8, segment: SegmentIndex, edit: Bool
    ) throws(StoreError) -> Node? {
        let first = segment.rawValue / Self.segmentsBelow(level: level + 1) * Self.segmentsBelow(level: level + 1)
        switch child {
        case .loaded(let node): return node
        case .stored(let pointer):
            if edit { dirtyCount += 1 }
            return level == 0
                ? Node(leaf: try store.readTableLeaf(pointer, first: SegmentIndex(first)), origin: pointer)
                : Node(inner: try store.readTableInner(pointer, level: level, containing: segment), origin: pointer)
        case nil:
            guard edit else { return nil }
            dirtyCount += 1
            return level == 0
                ? Node(
                    leaf: TableLeaf(
                        firstSegment: SegmentIndex(first),
                        entries: Array(repeating: .neverUsed, count: TableReader.fanOut)), origin: nil)
                : Node(
                    inner: TableInner(
                        firstSegment: SegmentIndex(first), level: level,
                        children: Array(repeating: nil, count: TableReader.fanOut)), origin: nil)
        }
    }
}
