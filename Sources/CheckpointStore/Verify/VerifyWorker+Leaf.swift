// Checking leaves and the runs that they list.
//
// Invariants:
// - A patch leaf costs what it lists: its base is a node of its own, verified once for all patches over it.
// - A run's bytes are hashed once, however many leaves list it; each leaf's own claims about it are checked against its page list.

import Media
import PageCodec
import StoreFormat
import Units

/// A page that a leaf lists: which page of the span, and which page of which run it is said to be.
struct ListedPage {
    var page: Int
    var run: Int
    var place: Int
    var hash: Hash128
}

/// The pages of a leaf by their runs, in one piece of memory: leaves may name hundreds of runs.
private struct PagesByRun {
    private let pages: [ListedPage]
    /// Where the pages of each run start; one more at the end.
    private let starts: [Int]

    init(_ listed: [ListedPage], runCount: Int) {
        var ends = [Int](repeating: 0, count: runCount + 1)
        for one in listed { ends[one.run + 1] += 1 }
        for run in 0..<runCount { ends[run + 1] += ends[run] }
        starts = ends
        var order = [Int](repeating: 0, count: listed.count)
        for (index, one) in listed.enumerated() {
            order[ends[one.run]] = index
            ends[one.run] += 1
        }
        pages = order.map { listed[$0] }
    }

    subscript(run: Int) -> ArraySlice<ListedPage> { pages[starts[run]..<starts[run + 1]] }
}

extension VerifyWorker {
    /// A leaf with all its runs. For a full leaf also which pages it lists.
    func leaf(_ node: TreeNode) throws(StoreError) -> (NodeFinding, PageSet?) {
        verifier.pay(node.pointer)
        let bytes = try blocks.readBlock(node.pointer)
        do {
            if node.pointer.kind == .patchLeaf {
                let patch = unsafe try PatchLeaf.decode(bytes.span.bytes)
                try patch.checkPlace(regionKey: node.regionKey, span: node.first)
                return (try self.patch(patch, node), nil)
            }
            let leaf = unsafe try Leaf.decode(bytes.span.bytes)
            try leaf.checkPlace(regionKey: node.regionKey, span: node.first)
            return try full(leaf, node)
        } catch let error as FormatError {
            throw blocks.corrupt(error, node.pointer)
        } catch let error as StoreError {
            throw error
        } catch {
            preconditionFailure("decoding throws format errors, reading throws store errors")
        }
    }

    private func full(_ leaf: Leaf, _ node: TreeNode) throws(StoreError) -> (NodeFinding, PageSet?) {
        try countReached(node.pointer)
        var pages: [ListedPage] = []
        pages.reserveCapacity(leaf.hashes.count)
        var listed = PageSet()
        for extent in leaf.extents {
            for index in 0..<Int(extent.pageCount) {
                let page = Int(extent.firstPage) + index
                pages.append(
                    ListedPage(page: page, run: Int(extent.runIndex), place: Int(extent.pageOffset) + index, hash: leaf.hashes[pages.count]))
                listed.insert(page)
            }
        }
        var finding = NodeFinding(pages: UInt64(listed.count), end: end(of: listed, node.first))
        finding.losses = try check(leaf.runs, PagesByRun(pages, runCount: leaf.runs.count), node)
        return (finding, listed)
    }

    private func patch(_ patch: PatchLeaf, _ node: TreeNode) throws(StoreError) -> NodeFinding {
        var (pages, patched): ([ListedPage], PageSet) = ([], PageSet())
        for entry in patch.entries {
            patched.insert(Int(entry.page))
            guard let run = entry.run else { continue }
            pages.append(ListedPage(page: Int(entry.page), run: Int(run), place: Int(entry.pageOffset), hash: entry.hash))
        }
        let base = TreeNode(pointer: patch.base, regionKey: node.regionKey, first: node.first, level: 0)
        let below = try finding(base)
        try countReached(node.pointer)
        var result = NodeFinding(losses: try check(patch.runs, PagesByRun(pages, runCount: patch.runs.count), node))
        guard let listed = verifier.memo.listed(base.identity) else {
            // Without its base nothing of the span can be read, patched or not.
            result.losses = below.losses
            return result
        }
        for loss in below.losses {
            let pages = loss.pages.subtracting(patched.ranges(in: node.first))
            if !pages.isEmpty { result.losses.append(NodeLoss(damage: loss.damage, pages: pages)) }
        }
        result.pages = UInt64(listed.subtracting(patched).count + pages.count)
        result.end = end(of: listed.union(patched), node.first)
        return result
    }

    private func end(of pages: PageSet, _ span: SpanIndex) -> UInt64 { pages.last.map { span.firstPage.rawValue + UInt64($0) + 1 } ?? 0 }

    // MARK: runs

    /// Checks the runs of a leaf. Returns what is lost of its pages.
    private func check(_ runs: [BlockPointer], _ pagesOf: PagesByRun, _ node: TreeNode) throws(StoreError) -> [NodeLoss] {
        // One look at the shared state before the runs and one after them: locks for each run cost more than hashing it.
        var losses: [NodeLoss] = []
        let places = try runs.indices.map { index throws(StoreError) -> ResolvedBlock? in
            do throws(StoreError) { return try self.blocks.resolve(runs[index]) } catch {
                let damage = try verifier.noteUnresolved(error)
                let all = pagesOf[index].reduce(into: PageSet()) { $0.insert($1.page) }
                if !all.isEmpty { losses.append(NodeLoss(damage: damage, pages: all.ranges(in: node.first))) }
                return nil
            }
        }
        let prints = places.map { $0?.pointer.fingerprint(node.regionKey, node.first) ?? 0 }
        let known = verifier.state.withLock { state in
            runs.indices.map { index -> (run: TreeVerifier.SoundRun?, damage: Int?) in
                guard let place = places[index], let run = state.runs[place.pointer.placeNumber], run.fingerprint == prints[index] else {
                    return (nil, state.log.number(of: runs[index]))
                }
                return (run, nil)
            }
        }
        var found: [(BlockPointer, TreeVerifier.SoundRun)] = []
        for (index, pointer) in runs.enumerated() where !pagesOf[index].isEmpty {
            guard let place = places[index] else { continue }
            let lost = try run(pointer, place, pagesOf[index], known: known[index], node)
            losses += lost
            if lost.isEmpty {
                let sound = TreeVerifier.SoundRun(fingerprint: prints[index], claims: PageClaims(pagesOf[index]))
                found.append((place.pointer, sound))
            }
        }
        if !found.isEmpty { verifier.countSound(runs: found) }
        return losses
    }

    /// Checks one run as far as it is not `known` to be sound. Returns what is lost of the pages that are listed.
    private func run(
        _ pointer: BlockPointer, _ block: ResolvedBlock, _ listed: ArraySlice<ListedPage>,
        known: (run: TreeVerifier.SoundRun?, damage: Int?), _ node: TreeNode
    ) throws(StoreError) -> [NodeLoss] {
        if let run = known.run, pages == nil, run.claims.agrees(with: PageClaims(listed)) { return [] }
        let all = listed.reduce(into: PageSet()) { $0.insert($1.page) }
        if let damage = known.damage {
            return [NodeLoss(damage: damage, pages: all.ranges(in: node.first))]
        }
        if let lost = try notKept(pointer, block, listed, node) {
            let rest = listed.filter { block.place(of: $0.place) != nil }
            guard !rest.isEmpty else { return [lost] }
            return [lost] + (try run(pointer, block, rest[...], known: known, node))
        }
        do throws(StoreError) {
            if pages != nil {
                verifier.pay(block.pointer)
                // Unpacking verifies the private copy that it unpacks from.
                return try checkPages(pointer, listed, all, node)
            }
            if known.run == nil {
                verifier.pay(block.pointer)
                _ = try store.checkSum(block.pointer)
            }
            try checkList(block, listed, node)
            return []
        } catch {
            let isOfBlock = (try? store.checkSum(block.pointer)) == nil
            return [NodeLoss(damage: try verifier.note(error, block: pointer, isOfBlock: isOfBlock), pages: all.ranges(in: node.first))]
        }
    }

    /// The pages that the run was moved without: these alone are lost.
    private func notKept(
        _ pointer: BlockPointer, _ block: ResolvedBlock, _ listed: ArraySlice<ListedPage>, _ node: TreeNode
    ) throws(StoreError) -> NodeLoss? {
        let missing = listed.reduce(into: PageSet()) { if block.place(of: $1.place) == nil { $0.insert($1.page) } }
        guard !missing.isEmpty else { return nil }
        let error = blocks.misplaced(pointer, "it was moved without pages that a leaf lists")
        return NodeLoss(damage: try verifier.note(error, block: pointer), pages: missing.ranges(in: node.first))
    }

    /// The run's bytes are those that the pointer was made for; are they also what the leaf takes them for?
    private func checkList(_ block: ResolvedBlock, _ listed: ArraySlice<ListedPage>, _ node: TreeNode) throws(StoreError) {
        let pointer = block.pointer
        let place = try store.placeOf(pointer)
        // A few bytes more than the list: a read that ends in zero, as lists do, costs a look at the medium's size.
        let length = min(Int(pointer.storedLength), PageRunHeader.payloadOffset(pageCount: pagesPerRun) + 8)
        let bytes = unsafe UnsafeMutableRawBufferPointer(rebasing: head.bytes[0..<length])
        try onMedium { () throws(MediumError) in unsafe try store.medium.read(at: place, into: bytes) }
        do {
            for one in listed {
                try PageRunHeader.checkListed(
                    unsafe UnsafeRawBufferPointer(bytes).bytes, regionKey: node.regionKey, span: node.first, page: UInt16(one.page), at: block.place(of: one.place) ?? -1)
            }
        } catch { throw store.medium.corrupt(error, at: place) }
    }

    /// Unpacks the run and compares each listed page with its hash.
    private func checkPages(
        _ pointer: BlockPointer, _ listed: ArraySlice<ListedPage>, _ all: PageSet, _ node: TreeNode
    ) throws(StoreError) -> [NodeLoss] {
        guard let pages else { preconditionFailure("pages are checked into a buffer") }
        var (runOf, offsetOf) = (SpanMap.empty.runOf, SpanMap.empty.offsetOf)
        for one in listed {
            runOf[one.page] = 0
            offsetOf[one.page] = UInt8(one.place)
        }
        let map = SpanMap(runs: [pointer], runOf: runOf, offsetOf: offsetOf, hashes: SpanMap.empty.hashes, base: nil, patched: PageSet())
        unsafe try decoder.place(all, of: map, key: node.regionKey, span: node.first, at: pages.base)
        var wrong = PageSet()
        for one in listed where unsafe pageHash(UnsafeRawPointer(pages.base + one.page * pageSize), seed: verifier.pageHashSeed) != one.hash {
            wrong.insert(one.page)
        }
        guard !wrong.isEmpty else { return [] }
        let error = StoreError(
            .corrupt, "pages are not what their hashes say", medium: store.medium.name, offset: try store.placeOf(try blocks.resolve(pointer).pointer))
        return [NodeLoss(damage: try verifier.note(error, block: pointer), pages: wrong.ranges(in: node.first))]
    }
}
