// What a feed has done and has still to do; changed under its lock only.
//
// Invariant: see `PageFeed`.

import CheckpointStore
import Threading
import Units

struct FeedState {
    /// Pages that were asked for.
    struct Demand {
        var block: MemoryBlockIndex
        var pages: Range<PageIndex>
    }

    /// What a reading thread is to do next.
    enum Job {
        /// Find out where the block has data.
        case plan(MemoryBlockIndex)
        case zeros(MemoryBlockIndex, Range<PageIndex>)
        case read(MemoryBlockIndex, Range<PageIndex>)
        case stop
    }

    /// A unit between the decision to read it and its arrival.
    private struct Reading {
        var block: MemoryBlockIndex
        var pages: Range<PageIndex>
        var isDemanded: Bool
    }

    /// Units that wait to be handed out at most: those of zero pages take no buffers.
    private static let mostPrefetched = 1024

    /// Pages that nobody has begun to read.
    private var missing: [PageBitmap]
    private var demands: Queue<Demand> = Queue()
    private var reading: [Reading] = []
    var demanded: Queue<FedPages> = Queue()
    var prefetched: Queue<FedPages> = Queue()
    var order = PrefetchOrder()
    /// Memory of units that are being read, wait to be handed out, or have been and are in use.
    var bufferedBytes = 0
    /// By length.
    var idleBuffers: [Int: [AlignedBuffer]] = [:]
    var failure: EngineError?

    init(missing: [PageBitmap]) { self.missing = missing }

    /// True when every page has been read. What is asked for after that was handed out, or is about to be.
    var isDone: Bool { order.isFinished && reading.isEmpty }

    /// Whether a thread should go on, and with what; nil: not now.
    mutating func nextJob(blocks: [PageFeed.Block], prefetchLimit: ByteCount) -> Job? {
        if failure != nil { return .stop }
        while let demand = demands.first {
            guard let page = missing[demand.block.int].first(in: demand.pages, isMember: true) else {
                demands.removeFirst()
                continue
            }
            guard bufferedBytes < 2 * prefetchLimit.int || bufferedBytes == 0 else { return nil }
            return .read(demand.block, claim(demand.block, page, unit: blocks[demand.block.int].unitPages, isDemanded: true))
        }
        guard bufferedBytes < prefetchLimit.int || bufferedBytes == 0, prefetched.count < Self.mostPrefetched else { return nil }
        switch order.next(missing: missing, blocks: blocks) {
        case .wait: return nil
        case .end: return .stop
        case .plan(let block): return .plan(block)
        case .data(let block, let page):
            return .read(block, claim(block, page, unit: blocks[block.int].unitPages, isDemanded: false))
        case .zeros(let block, let pages):
            missing[block.int].remove(pages)
            reading.append(Reading(block: block, pages: pages, isDemanded: false))
            return .zeros(block, pages)
        }
    }

    /// Takes what is missing of the unit around `page`.
    private mutating func claim(
        _ block: MemoryBlockIndex, _ page: PageIndex, unit: PageCount, isDemanded: Bool
    ) -> Range<PageIndex> {
        let start = PageIndex(page.rawValue / unit.rawValue * unit.rawValue)
        let end = min(start + unit, PageIndex(missing[block.int].pageCount.rawValue))
        let pages = missing[block.int].run(around: page, within: start..<end)
        missing[block.int].remove(pages)
        reading.append(Reading(block: block, pages: pages, isDemanded: isDemanded))
        bufferedBytes += (pages.upperBound - pages.lowerBound).bytes.int
        return pages
    }

    /// Notes what was asked for; what has been read, or is being read, moves ahead.
    mutating func demand(_ demand: Demand) {
        if missing[demand.block.int].first(in: demand.pages, isMember: true) != nil { demands.append(demand) }
        for index in reading.indices where reading[index].block == demand.block && reading[index].pages.overlaps(demand.pages) {
            reading[index].isDemanded = true
        }
        for unit in prefetched.removeAll(where: { $0.block == demand.block && $0.pages.overlaps(demand.pages) }) {
            demanded.append(unit)
        }
    }

    /// Units that nobody will ask for any more.
    mutating func takeReady() -> [FedPages] {
        demanded.removeAll { _ in true } + prefetched.removeAll { _ in true }
    }

    /// A unit has been read.
    mutating func deliver(_ unit: FedPages) {
        guard let index = reading.firstIndex(where: { $0.block == unit.block && $0.pages == unit.pages }) else {
            preconditionFailure("a unit that nobody was to read")
        }
        if reading.remove(at: index).isDemanded { demanded.append(unit) } else { prefetched.append(unit) }
    }
}

/// First in, first out.
struct Queue<Element> {
    private var elements: [Element?] = []
    private var head = 0

    var isEmpty: Bool { head == elements.count }
    var count: Int { elements.count - head }
    var first: Element? { isEmpty ? nil : elements[head] }

    mutating func append(_ element: Element) { elements.append(element) }

    mutating func popFirst() -> Element? {
        guard let element = first else { return nil }
        removeFirst()
        return element
    }

    mutating func removeFirst() {
        elements[head] = nil
        head += 1
        // The dead front goes when it is the larger part, so that each element is moved a bounded number of times.
        if head * 2 > elements.count {
            elements.removeFirst(head)
            head = 0
        }
    }

    /// Takes out the elements that satisfy `condition`, in their order.
    mutating func removeAll(where condition: (Element) -> Bool) -> [Element] {
        let all = elements[head...].compactMap { $0 }
        let taken = all.filter(condition)
        if !taken.isEmpty {
            elements = all.filter { !condition($0) }
            head = 0
        }
        return taken
    }
}
