// Page tables by the places of their nodes alone, for those who know no region's end: verifying and repairing.
//
// Invariant: what is returned belongs where it was looked for.

import StoreFormat
import Units

extension BlockReader {
    /// The children that an inner node names, in order; checked for its place but not against a region's end.
    func children(of node: TreeNode) throws(StoreError) -> [TreeNode] {
        guard node.pointer.kind == .inner else { throw misplaced(node.pointer, "an inner node of level \(node.level) should be here") }
        let inner = try decodeBlock(node.pointer) { bytes throws(FormatError) in
            let inner = try InnerNode.decode(bytes)
            try inner.checkPlace(regionKey: node.regionKey, firstPage: node.first.firstPage, level: node.level)
            return inner
        }
        return inner.children.enumerated().compactMap { index, child in
            child.map {
                let first = SpanIndex(node.first.rawValue + UInt64(index) * PageTable.spansPerChild(level: node.level))
                return TreeNode(pointer: $0, regionKey: node.regionKey, first: first, level: node.level - 1)
            }
        }
    }

    /// A full leaf.
    func readLeaf(_ node: TreeNode) throws(StoreError) -> Leaf {
        try decodeBlock(node.pointer) { bytes throws(FormatError) in
            let leaf = try Leaf.decode(bytes)
            try leaf.checkPlace(regionKey: node.regionKey, span: node.first)
            return leaf
        }
    }
}
