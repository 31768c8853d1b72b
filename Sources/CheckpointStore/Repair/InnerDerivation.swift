// An inner node from what stands below its place: what its writer put there, and what it took over from the tree that it was made on.

import StoreFormat
import Units

/// Guesses at one inner node. Confined to one thread.
final class InnerDerivation {
    private let node: TreeNode
    private let relatives: Relatives
    private let childCount: Int
    /// By place in the node: what is known to stand there, or to have stood there.
    private let known: [[BlockPointer]]
    /// The same, of its own writer, what was written last first.
    private let own: [[BlockPointer]]
    private var judge: GuessJudge

    /// Children that are looked for elsewhere than where they should be.
    private static let mostDeviations = 3

    init(_ node: TreeNode, _ relatives: Relatives, _ judge: GuessJudge) {
        self.node = node
        self.relatives = relatives
        self.judge = judge
        let birth = judge.birth
        childCount = InnerNode.childCount(ofLength: judge.length)
        let known = (0..<PageTree.fanout).map { index in
            let first = SpanIndex(node.first.rawValue + UInt64(index) * PageTable.spansPerChild(level: node.level))
            return relatives.children[NodePosition(node.regionKey, level: node.level - 1, first: first)] ?? []
        }
        self.known = known
        own = known.map { $0.filter { $0.birth == birth }.reversed() }
    }

    /// The node's bytes; nil when no guess was right.
    func bytes() -> [UInt8]? {
        let bases = bases
        let starts = bases.map(start)
        for start in starts { if let bytes = tryCut(start) { return bytes } }
        for (base, start) in zip(bases, starts) {
            let suspects = suspects(base)
            if let bytes = deviate(start, at: suspects, most: suspects.count) { return bytes }
        }
        for start in starts { if let bytes = deviate(start, at: Array(known.indices), most: Self.mostDeviations) { return bytes } }
        return nil
    }

    private typealias Base = (pointer: BlockPointer, node: InnerNode)

    /// What it may have been made on: any node of that place, or none.
    private var bases: [Base?] {
        let nodes = Dictionary((relatives.inner[NodePosition(node)] ?? []).map { ($0.pointer, $0.node) }, uniquingKeysWith: { first, _ in first })
        var bases: [Base?] = [nil]
        for pointer in Relatives.nearest(to: node.pointer, of: Array(nodes.keys)) { if let inner = nodes[pointer] { bases.append((pointer, inner)) } }
        return bases
    }

    private func start(_ base: Base?) -> [BlockPointer?] {
        known.indices.map { index in
            if let last = own[index].first { return last }
            // A tree that became higher has its older self below.
            if base == nil, index == 0, node.first.rawValue == 0 { return known[0].last }
            return base?.node.children[index]
        }
    }

    /// Where a node that was made later has what its own writer put there.
    private func suspects(_ base: Base?) -> [Int] {
        guard let base else { return [] }
        return known.indices.filter { own[$0].isEmpty && base.node.children[$0]?.birth == base.pointer.birth }
    }

    /// Tries the children as they are and, when they are too many, without the last ones: a region that was made shorter.
    private func tryCut(_ children: [BlockPointer?]) -> [UInt8]? {
        var cut = children
        var surplus = children.count { $0 != nil } - childCount
        for index in children.indices.reversed() where surplus > 0 && children[index] != nil {
            cut[index] = nil
            surplus -= 1
        }
        return attempt(cut)
    }

    private func attempt(_ children: [BlockPointer?]) -> [UInt8]? {
        let count = children.count { $0 != nil }
        guard count > 0 else { return nil }
        let inner = InnerNode(regionKey: node.regionKey, firstPage: node.first.firstPage, level: node.level, children: children)
        let birth = judge.birth
        return judge.judge(length: InnerNode.encodedLength(childCount: count)) { inner.encoded(birth: birth) }
    }

    /// Replaces up to `most` of the children at `places` by something else that stood there, few before many.
    private func deviate(_ start: [BlockPointer?], at places: [Int], most: Int) -> [UInt8]? {
        let alternatives = places.map { index in
            (known[index].reversed().map { $0 as BlockPointer? } + [nil]).filter { $0 != start[index] }
        }
        for count in 0..<min(most, places.count) where !judge.isExhausted {
            let found = Choices.first(count + 1, of: places.count, while: { !judge.isExhausted }) { chosen in
                replace(start, chosen.map { (places[$0], alternatives[$0]) }[...])
            }
            if let found { return found }
        }
        return nil
    }

    private func replace(_ children: [BlockPointer?], _ places: ArraySlice<(Int, [BlockPointer?])>) -> [UInt8]? {
        guard let (index, alternatives) = places.first else { return attempt(children) }
        var changed = children
        for alternative in alternatives where !judge.isExhausted {
            changed[index] = alternative
            if let bytes = replace(changed, places.dropFirst()) { return bytes }
        }
        return nil
    }
}
