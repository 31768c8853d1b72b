// A region while its checkpoint is being written: the leaves that are new, and the parent's for the rest.

import StoreFormat
import Threading
import Units

/// One region of a checkpoint being written. Thread-safe.
final class RegionState: Sendable {
    let name: String
    let kind: RegionKind
    let key: RegionKey
    /// The parent's region of that name, whose pages stand where nothing else is put.
    let parent: RegionRecord?
    /// The page table of that region.
    let parentTree: ParentTree?

    struct Progress {
        var byteLength: ByteCount
        /// True when the length is what was put so far, not what was announced.
        var isGrowing: Bool
        /// New leaves; nil: the span is all zero now.
        var leaves: [SpanIndex: BlockPointer?] = [:]
        /// Spans that a thread is saving.
        var busy: Set<SpanIndex> = []
        var newPages = 0
        var storedPages: Int
        var storedBytes = 0
    }
    let progress: Lock<Progress>

    init(
        blocks: BlockReader, name: String, kind: RegionKind, key: RegionKey, byteLength: ByteCount?, parent: RegionRecord?
    ) {
        self.name = name
        self.kind = kind
        self.key = key
        self.parent = parent
        parentTree = parent.map { ParentTree(blocks: blocks, region: $0) }
        progress = Lock(
            Progress(
                byteLength: byteLength ?? .zero, isGrowing: byteLength == nil, storedPages: parent?.storedPages.int ?? 0))
    }

    var byteLength: ByteCount { progress.withLock { $0.byteLength } }
    var pageCount: PageCount { PageCount(covering: byteLength) }

    /// Waits until nobody else saves `span`, then keeps others away until `endSpan`.
    func beginSpan(_ span: SpanIndex) {
        progress.waitFor { progress in progress.busy.insert(span).inserted ? () : nil }
    }

    func endSpan(_ span: SpanIndex) {
        progress.withLock { _ = $0.busy.remove(span) }
        progress.wake()
    }

    /// Takes note of what saving `span` did.
    func record(_ outcome: SpanOutcome, span: SpanIndex, isChanged: Bool) {
        progress.withLock { progress in
            if isChanged { progress.leaves[span] = .some(outcome.leaf) }
            progress.newPages += outcome.newPages
            progress.storedPages += outcome.storedPages - outcome.storedPagesBefore
            progress.storedBytes += outcome.storedBytes
        }
    }
}
