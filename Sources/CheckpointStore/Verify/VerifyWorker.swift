// One thread's way through the trees.
//
// Invariant: a node is verified by the thread that claimed it; a thread that meets a node which another one is at helps below it,
// and waits only when nothing is left to help with.

import Media
import PageCodec
import StoreFormat
import Units

/// Confined to one thread.
final class VerifyWorker {
    let verifier: TreeVerifier
    /// Reads blocks as the generation that is verified has them.
    let blocks: BlockReader
    var store: CheckpointStore { verifier.store }
    /// Where in a node's children this thread begins, 0..<1: threads begin apart.
    private let share: Double
    private let mayGoOn: () -> Bool
    let head = AlignedBuffer(count: 256)
    let decoder: RunDecoder
    /// A span's pages; where pages are checked.
    let pages: AlignedBuffer?

    init(_ verifier: TreeVerifier, _ blocks: BlockReader, share: Double, mayGoOn: @escaping () -> Bool) {
        self.verifier = verifier
        self.blocks = blocks
        self.share = share
        self.mayGoOn = mayGoOn
        decoder = RunDecoder(blocks)
        pages = verifier.options.checksPages ? AlignedBuffer(count: pagesPerSpan * pageSize) : nil
    }

    /// The pages of a node's range that the region has.
    static func pages(of node: TreeNode, regionPages: PageCount = PageCount(UInt64.max)) -> PageRanges {
        let low = min(node.first.firstPage.rawValue, regionPages.rawValue)
        let count = min(PageTable.spansPerNode(level: node.level) * UInt64(pagesPerSpan), regionPages.rawValue - low)
        return PageRanges(PageIndex(low)..<PageIndex(low + count))
    }

    /// What is found at a node and below it, by this thread or another.
    func finding(_ node: TreeNode) throws(StoreError) -> NodeFinding {
        while true {
            if let found = try visit(node) { return found }
            // Another thread is at it, and at all below it that is not done. It may give up: then it is this one's.
            if let found = verifier.memo.wait(for: node.identity) { return found }
        }
    }

    /// Verifies a node and all below it. Nil when another thread is at it, which has then been helped.
    func visit(_ node: TreeNode) throws(StoreError) -> NodeFinding? {
        switch verifier.memo.claim(node.identity) {
        case .known(let finding): return finding
        case .busy:
            if node.level > 0 { try help(node) }
            return nil
        case .mine:
            do throws(StoreError) {
                let (finding, listed) = try verify(node)
                verifier.memo.finish(node.identity, finding, listed: listed)
                return finding
            } catch {
                verifier.memo.abandon(node.identity)
                throw error
            }
        }
    }

    private func verify(_ node: TreeNode) throws(StoreError) -> (NodeFinding, PageSet?) {
        do throws(StoreError) {
            guard node.level > 0 else {
                guard mayGoOn() else { throw StoreError(.cancelled, "verifying was stopped", medium: store.medium.name) }
                return try leaf(node)
            }
            verifier.pay(node.pointer)
            return (try inner(node, try blocks.children(of: node)), nil)
        } catch {
            // What a node's range has behind the region's end is cut off where the checkpoint is known.
            let damage = try verifier.note(error, block: node.pointer, isOfBlock: true)
            return (NodeFinding(losses: [NodeLoss(damage: damage, pages: Self.pages(of: node))]), nil)
        }
    }

    private func inner(_ node: TreeNode, _ children: [TreeNode]) throws(StoreError) -> NodeFinding {
        // First what nobody is at; then what others have been at meanwhile.
        try visitAll(children)
        var result = NodeFinding(end: (children.last?.first.firstPage.rawValue ?? 0) + 1)
        for child in children {
            let found = try finding(child)
            result.pages += found.pages
            result.end = max(result.end, found.end)
            result.losses += found.losses
        }
        // At the end: a node that is stopped at is come back to.
        try countReached(node.pointer)
        return result
    }

    /// Counts a sound block, where it is.
    func countReached(_ pointer: BlockPointer) throws(StoreError) { verifier.countSound(try blocks.resolve(pointer).pointer) }

    private func visitAll(_ children: [TreeNode]) throws(StoreError) {
        let start = Int(share * Double(children.count))
        for index in children.indices { _ = try visit(children[(start + index) % children.count]) }
    }

    private func help(_ node: TreeNode) throws(StoreError) {
        // What is wrong with the node itself is found by whom it belongs to.
        guard let children = try? blocks.children(of: node) else { return }
        try visitAll(children)
    }
}
