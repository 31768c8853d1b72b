// Nodes that a commit writes anew though nothing about them changed, so that the segments in which they stand become free
// (format, 8.2).
//
// Invariants:
// - A node is written anew together with all on the way from its root to it, by copying, like one that was changed: what older
//   generations name stays as it is, and nothing forwards.
// - A node that can't be read stays where it is: it is never written with a new checksum.

import StoreFormat
import Units

/// What of class 3 one commit is to write anew, and what came of it.
struct NodeRewriting {
    /// The segments that are to become empty.
    var segments: Set<SegmentIndex>
    /// About how many more bytes of nodes that stand there this commit takes.
    private(set) var budget: Int
    /// The nodes found there that the commit writes elsewhere, and their length.
    private(set) var count = 0
    private(set) var bytes = 0
    /// Why nodes that can't be read stay.
    private(set) var damaged: [StoreError] = []

    init(segments: Set<SegmentIndex>, budget: Int) {
        self.segments = segments
        self.budget = budget
    }

    var isFull: Bool { budget <= 0 }

    /// A node that stands in one of the segments will be written anew.
    mutating func take(_ node: BlockPointer) {
        let length = Int(node.storedLength)
        count += 1
        bytes += length
        budget -= length
    }

    /// Runs `body`; when it meets damage, that is noted, and nil returned.
    mutating func unlessDamaged<R>(_ body: (inout NodeRewriting) throws(StoreError) -> R) throws(StoreError) -> R? {
        do throws(StoreError) { return try body(&self) } catch {
            guard error.isDamage else { throw error }
            if !damaged.contains(where: { $0.offset == error.offset }) { damaged.append(error) }
            return nil
        }
    }
}

extension CommitTransaction {
    /// Has nodes that stand in the given segments written anew by this commit, all of them or as many as it takes. Nothing else may have
    /// been changed in this transaction.
    ///
    /// Reads the inner nodes of all trees, the leaves of the forwarding tree, and what it writes anew.
    /// - Throws: what reading throws but for damage, which is noted.
    func rewrite(_ wanted: inout NodeRewriting) throws(StoreError) {
        _ = try wanted.unlessDamaged { wanted throws(StoreError) in try moves.rewrite(&wanted) }
        for tree in [byID, byName, lineage, forwarding] { try tree.rewrite(&wanted) }
        for segment in try tableLeaves(&wanted) { try table.touch(segment) }
    }

    /// The first segment of each leaf of the segment table that is to be written anew, or on the way to which a node is.
    private func tableLeaves(_ wanted: inout NodeRewriting) throws(StoreError) -> [SegmentIndex] {
        guard let root = base.segmentTable else { return [] }
        var leaves: [SegmentIndex] = []
        var pending = [TablePlace(pointer: root, level: base.geometry.tableDepth, first: SegmentIndex(UInt64(0)), isOnTheWay: false)]
        while let place = pending.popLast(), !wanted.isFull || place.isOnTheWay {
            let isWanted = wanted.segments.contains(place.pointer.segment)
            let below = try wanted.unlessDamaged { wanted throws(StoreError) -> [TablePlace] in
                guard place.level > 0 else {
                    guard isWanted || place.isOnTheWay else { return [] }
                    // Read now, so that damage is found here and not by the commit.
                    _ = try store.readTableLeaf(place.pointer, first: place.first)
                    leaves.append(place.first)
                    return []
                }
                return try children(of: place, isWanted: isWanted)
            }
            guard let below else { continue }
            if isWanted { wanted.take(place.pointer) }
            pending += below.reversed()
        }
        return leaves
    }

    /// A node of the segment table.
    private struct TablePlace {
        var pointer: BlockPointer
        var level: UInt8
        var first: SegmentIndex
        /// A node above it is to be written anew, and this is the way down by which that comes about.
        var isOnTheWay: Bool
    }

    private func children(of place: TablePlace, isWanted: Bool) throws(StoreError) -> [TablePlace] {
        let node = try store.readTableInner(place.pointer, level: place.level, containing: place.first)
        let covered = TableEditor.segmentsBelow(level: place.level)
        var isOnTheWay = isWanted || place.isOnTheWay
        var children: [TablePlace] = []
        for (index, child) in node.children.enumerated() {
            guard let child else { continue }
            let first = SegmentIndex(place.first.rawValue + UInt64(index) * covered)
            children.append(TablePlace(pointer: child, level: place.level - 1, first: first, isOnTheWay: isOnTheWay))
            // One child is enough.
            isOnTheWay = false
        }
        return children
    }
}

extension CatalogEditor {
    /// Has nodes that stand in the wanted segments written anew, with those on the way to them.
    func rewrite(_ wanted: inout NodeRewriting) throws(StoreError) {
        if let root { self.root = try rewritten(root, level: nil, &wanted) }
    }

    /// The child as it is when nothing in it is to be written anew.
    private func rewritten(
        _ child: EditedChild<Node>, level: UInt8?, _ wanted: inout NodeRewriting
    ) throws(StoreError) -> EditedChild<Node> {
        guard !wanted.isFull else { return child }
        var origin: BlockPointer?
        if case .stored(let pointer) = child, wanted.segments.contains(pointer.segment) { origin = pointer }
        // A leaf that stays where it is need not be read.
        if level == 0, origin == nil { return child }
        guard let node = try wanted.unlessDamaged({ _ throws(StoreError) in try edit(child, level: level) }) else { return child }
        var isRewritten = origin != nil
        if let origin { wanted.take(origin) }
        for index in node.entries.indices {
            guard case .child(let below) = node.entries[index].payload else { break }
            guard case .loaded(let after) = try rewritten(below, level: node.level - 1, &wanted) else { continue }
            node.entries[index].payload = .child(.loaded(after))
            isRewritten = true
        }
        return isRewritten ? .loaded(node) : child
    }
}
