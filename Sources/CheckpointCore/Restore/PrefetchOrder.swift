// The order in which pages come that nobody asked for: all data of all blocks, ascending, then the zero pages in large pieces.
//
// Invariant: a page that is left when its block's data ranges have been gone through is zero.

import Units

/// A place in that order.
struct PrefetchOrder {
    enum Step {
        /// Another thread is finding out where the data is.
        case wait
        case end
        case plan(MemoryBlockIndex)
        /// A page with data.
        case data(MemoryBlockIndex, PageIndex)
        case zeros(MemoryBlockIndex, Range<PageIndex>)
    }

    /// Zero pages that are handed out at once: few enough that what is asked for meanwhile need not wait long.
    private static let zerosAtOnce = PageCount(512)

    private enum Phase { case data, zeros, finished }
    private var phase = Phase.data
    private var block = 0
    /// Where the current block has data; nil: not known yet.
    private var plan: [Range<PageIndex>]?
    private var isPlanning = false
    private var rangeIndex = 0
    /// In the second phase: where to look on.
    private var cursor = PageIndex(UInt64(0))

    var isFinished: Bool { phase == .finished }

    /// The data of the block that `next` wanted to be planned.
    mutating func setPlan(_ ranges: [Range<PageIndex>]) {
        plan = ranges
        isPlanning = false
        rangeIndex = 0
    }

    /// What comes next of what is still missing.
    mutating func next(missing: [PageBitmap], blocks: [PageFeed.Block]) -> Step {
        while phase == .data {
            if isPlanning { return .wait }
            guard block < blocks.count else {
                (phase, block) = (.zeros, 0)
                break
            }
            guard let plan else {
                if missing[block].isEmpty {
                    block += 1
                    continue
                }
                isPlanning = true
                return .plan(MemoryBlockIndex(block))
            }
            while rangeIndex < plan.count {
                let pages = max(plan[rangeIndex].lowerBound, cursor)..<max(plan[rangeIndex].upperBound, cursor)
                if let page = missing[block].first(in: pages, isMember: true) {
                    cursor = page
                    return .data(MemoryBlockIndex(block), page)
                }
                rangeIndex += 1
            }
            nextBlock()
        }
        return nextZeros(missing: missing, blocks: blocks)
    }

    private mutating func nextZeros(missing: [PageBitmap], blocks: [PageFeed.Block]) -> Step {
        while phase == .zeros {
            guard block < blocks.count else {
                phase = .finished
                break
            }
            let end = PageIndex(missing[block].pageCount.rawValue)
            if let first = missing[block].first(in: cursor..<end, isMember: true) {
                let limit = min(end, first + max(Self.zerosAtOnce, blocks[block].unitPages))
                let pages = missing[block].run(around: first, within: first..<limit)
                cursor = pages.upperBound
                return .zeros(MemoryBlockIndex(block), pages)
            }
            nextBlock()
        }
        return .end
    }

    private mutating func nextBlock() {
        block += 1
        plan = nil
        cursor = PageIndex(UInt64(0))
    }
}
