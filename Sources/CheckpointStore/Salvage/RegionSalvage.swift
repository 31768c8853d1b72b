// Bringing one region back: what its tree still leads to, as the difference from the parent that was brought back before.
//
// Invariants:
// - A page that is written was covered by its run's checksum, and by its hash where the seed is known.
// - A page that can't be read is zero in the new checkpoint, never the parent's, and is listed as lost.
// - Memory: 100 bytes for each span that differs from the parent's, 2 MiB for each thread.

import StoreFormat
import Threading
import Units

/// What is left of a region.
struct RegionRemains: Sendable {
    /// A node, and where in the region it belongs.
    struct Top: Sendable {
        var pointer: BlockPointer
        var level: UInt8
        var first: SpanIndex
    }

    var name: String
    var isNameKnown = true
    var kind: RegionKind
    var byteLength: ByteCount
    var key: RegionKey
    /// The root; or, where that is gone, the highest nodes that are left. They don't overlap.
    var tops: [Top]
    /// Pages of spans without any node, by what runs say themselves.
    var loose: [SpanIndex: [SalvageInventory.LooseRun]] = [:]
    /// Whether nothing is known of pages that neither nodes nor runs name: nobody says that a node is the root.
    var hasUnknownPages = false

    var pageCount: PageCount { PageCount(covering: byteLength) }
}

/// What has been brought back of the parent's region.
struct ParentRemains: Sendable {
    var record: RegionRecord
    var lost: PageRanges
}

/// Copies a region, or without a target only looks. The walk is one thread's, the spans' work is spread over several.
struct RegionSalvage {
    let source: SalvageSource
    let region: RegionRemains
    let parent: ParentRemains?
    let target: RegionWriter?
    let parallelism: Int
    /// Called with pages as they are done.
    let progress: @Sendable (PageCount) -> Void

    /// What became of the region's pages.
    struct Outcome: Sendable {
        /// Pages with content, but for those of subtrees that are the parent's.
        var readPages = PageCount.zero
        var lost: [Range<PageIndex>] = []
    }

    private struct SpanTask: Sendable {
        var span: SpanIndex
        var leaf: BlockPointer?
        var parentLeaf: BlockPointer?
    }

    private struct Place {
        var pointer: BlockPointer?
        var level: UInt8
    }

    func run() throws(StoreError) -> Outcome {
        var outcome = Outcome()
        var tasks: [SpanTask] = []
        let parentPlace = Place(pointer: parent?.record.root, level: parent?.record.depth ?? 0)
        for top in region.tops {
            // A parent's tree is compared from the root; loose tops have no parent.
            let other = parent == nil ? Place(pointer: nil, level: top.level) : parentPlace
            try walk(Place(pointer: top.pointer, level: top.level), other, top.first, &tasks, &outcome)
        }
        if region.tops.isEmpty, let root = parentPlace.pointer {
            // All zero now.
            try walk(Place(pointer: nil, level: parentPlace.level), Place(pointer: root, level: parentPlace.level), SpanIndex(UInt64(0)), &tasks, &outcome)
        }
        tasks += region.loose.keys.sorted().map { SpanTask(span: $0) }
        return try copy(tasks, outcome)
    }

    // MARK: walking

    /// Compares what both have below a place. The taller one is gone down first.
    private func walk(
        _ child: Place, _ other: Place, _ first: SpanIndex, _ tasks: inout [SpanTask], _ outcome: inout Outcome
    ) throws(StoreError) {
        guard child.pointer != nil || other.pointer != nil else { return }
        let level = max(child.pointer == nil ? 0 : child.level, other.pointer == nil ? 0 : other.level)
        let range = pages(first, level)
        guard !range.isEmpty else { return }
        if child.pointer == other.pointer, child.level == other.level {
            let lost = PageRanges(range).intersection(parent?.lost ?? PageRanges())
            outcome.lost += lost.ranges
            return
        }
        guard child.pointer != nil else { return try putZeros(range) }
        guard level > 0 else {
            return tasks.append(SpanTask(span: first, leaf: child.pointer, parentLeaf: other.pointer))
        }
        guard let ofChild = try? children(child, level, first) else {
            outcome.lost.append(range)
            return try putZeros(range)
        }
        let ofOther = (try? children(other, level, first)) ?? [Place](repeating: Place(pointer: nil, level: level - 1), count: PageTree.fanout)
        for index in 0..<PageTree.fanout {
            let start = SpanIndex(first.rawValue + UInt64(index) * PageTable.spansPerChild(level: level))
            try walk(ofChild[index], ofOther[index], start, &tasks, &outcome)
        }
    }

    /// The children of a node of `level`; of a lower node as if it were the first child of one.
    private func children(_ place: Place, _ level: UInt8, _ first: SpanIndex) throws(StoreError) -> [Place] {
        var all = [Place](repeating: Place(pointer: nil, level: level - 1), count: PageTree.fanout)
        guard let pointer = place.pointer else { return all }
        guard place.level == level else {
            all[0] = place
            return all
        }
        let found = try source.children(pointer, key: region.key, first: first, level: level)
        for (index, child) in found.enumerated() { all[index].pointer = child }
        return all
    }

    private func pages(_ first: SpanIndex, _ level: UInt8) -> Range<PageIndex> {
        let count = region.pageCount.rawValue
        let low = min(first.firstPage.rawValue, count)
        return PageIndex(low)..<PageIndex(low + min(PageTable.spansPerNode(level: level) * UInt64(pagesPerSpan), count - low))
    }

    private func putZeros(_ range: Range<PageIndex>) throws(StoreError) {
        if parent != nil { try target?.putZeros(range) }
    }

    // MARK: spans

    private func copy(_ tasks: [SpanTask], _ start: Outcome) throws(StoreError) -> Outcome {
        let outcome = Lock(start)
        let queue = Lock(tasks[...])
        let work: @Sendable (Lane?) throws(StoreError) -> Void = { [self] (lane) throws(StoreError) in
            let buffer = AlignedBuffer(count: pagesPerSpan * pageSize)
            let decoder = RunDecoder(source.store.blocksInPlace)
            while let task = queue.withLock({ $0.popFirst() }) {
                let (input, inherited, lost) = read(task, buffer, decoder)
                if let lane, let target { try target.writer.saveSpan(target.region, input, lane) }
                let read = PageCount(input.given.count + inherited)
                outcome.withLock { outcome in
                    outcome.readPages += read
                    outcome.lost += lost
                }
                progress(read)
            }
        }
        let workers = max(1, min(parallelism, tasks.count))
        guard let target else {
            try inParallel(workers: workers) { (_: Int) throws(StoreError) in try work(nil) }
            return outcome.withLock { $0 }
        }
        try target.writer.putting { () throws(StoreError) in
            try inParallel(workers: workers) { (_: Int) throws(StoreError) in
                try target.writer.withLane { lane throws(StoreError) in try work(lane) }
            }
        }
        return outcome.withLock { $0 }
    }

    /// Reads the pages of a span that the parent's does not have. Returns what to save, how many pages are taken over, and what is lost.
    private func read(
        _ task: SpanTask, _ buffer: AlignedBuffer, _ decoder: RunDecoder
    ) -> (input: SpanInput, inherited: Int, lost: [Range<PageIndex>]) {
        let limit = Int(min(UInt64(pagesPerSpan), region.pageCount.rawValue - min(region.pageCount.rawValue, task.span.firstPage.rawValue)))
        let all = PageSet(0..<limit)
        var input = unsafe SpanInput(
            span: task.span, base: UnsafeRawPointer(buffer.base), given: PageSet(), zeros: PageSet(), isStable: true)
        guard let map = map(of: task) else {
            input.zeros = all
            return (input, 0, all.ranges(in: task.span).ranges)
        }
        let before = task.parentLeaf.flatMap { try? source.spanMap($0, key: region.key, span: task.span) }
        var (wanted, inherited, lost) = (PageSet(), 0, PageSet())
        all.forEach { page in
            if map.isZero(page) {
                input.zeros.insert(page)
            } else if let before, !before.isZero(page), before.offsetOf[page] == map.offsetOf[page],
                before.runs[Int(before.runOf[page])] == map.runs[Int(map.runOf[page])]
            {
                // The parent's copy has it, or could not be given it either.
                if parent?.lost.contains(task.span.firstPage + PageCount(page)) ?? false { lost.insert(page) } else { inherited += 1 }
            } else {
                wanted.insert(page)
            }
        }
        let failed = unsafe source.place(wanted, of: map, key: region.key, span: task.span, at: buffer.base, decoder)
        input.given = wanted.subtracting(failed)
        input.zeros = input.zeros.union(failed)
        return (input, inherited, lost.union(failed).ranges(in: task.span).ranges)
    }

    private func map(of task: SpanTask) -> SpanMap? {
        if let leaf = task.leaf { return try? source.spanMap(leaf, key: region.key, span: task.span) }
        return region.loose[task.span].map { source.looseMap($0, key: region.key, span: task.span) }
    }
}
