// A leaf from what its writer stored of the span, and from the leaf that it was made over.
//
// Invariant: a guess is a map of the span that saving could have come to, encoded as saving encodes it.

import StoreFormat
import Units

/// What a checkpoint that has a leaf is known to have in one page.
enum PageContent: Equatable {
    case unknown
    case zero
    case page(Hash128)
}

/// Guesses at one leaf, full or patch. Confined to one thread.
final class LeafDerivation {
    private let node: TreeNode
    /// The maps of other leaves of the span, each with the place of its pointer.
    private let maps: [SpanMap]
    /// The same leaves without what their writers stored: what is left may be of the leaf, when they were made over it.
    private let befores: [SpanMap]
    /// Its writer's runs, in the order in which they were written as far as that shows.
    private let own: [RelatedRun]
    /// All runs of the span.
    private let runs: [RelatedRun]
    /// Pages of the span that regions have which have the leaf.
    private let limits: [Int]
    private let content: [PageContent]
    /// Pages that are zero in some other leaf.
    private let zeroElsewhere: PageSet
    private var judge: GuessJudge

    /// Pages here and there that became zero: more than these at once are not sought, but where a patch leaf's length says how many.
    private static let mostScattered = 4
    /// Rows of pages that became zero together.
    private static let mostRows = 4096

    /// - Parameters:
    ///   - content: of each page of the span, what is known of it.
    ///   - limits: pages of the span that are inside the regions which have the leaf.
    init(_ node: TreeNode, _ relatives: Relatives, content: [PageContent], limits: Set<Int>, _ judge: GuessJudge) {
        self.node = node
        self.content = content
        self.limits = limits.filter { $0 > 0 && $0 < pagesPerSpan }.sorted()
        self.judge = judge
        let place = NodePosition(node)
        let birth = judge.birth
        runs = relatives.runs[place] ?? []
        own = runs.filter { $0.pointer.birth == birth }
        let leaves = Dictionary((relatives.leaves[place] ?? []).map { ($0.pointer, $0.leaf) }, uniquingKeysWith: { first, _ in first })
        let patches = Dictionary((relatives.patches[place] ?? []).map { ($0.pointer, $0.patch) }, uniquingKeysWith: { first, _ in first })
        var (maps, befores): ([SpanMap], [SpanMap]) = ([], [])
        for pointer in Relatives.nearest(to: node.pointer, of: Array(leaves.keys) + patches.keys) {
            if let leaf = leaves[pointer] {
                let map = SpanMap(leaf, at: pointer)
                maps.append(map)
                befores.append(map.zeroing(map.pages(of: pointer.birth)))
            } else if let patch = patches[pointer], let leaf = leaves[patch.base] {
                let base = SpanMap(leaf, at: patch.base)
                maps.append(SpanMap(patch, over: base))
                befores.append(SpanMap(patch.without(pointer.birth), over: base))
            }
        }
        zeroElsewhere = maps.reduce(PageSet()) { $0.union(PageSet.all.subtracting($1.stored)) }
        (self.maps, self.befores) = (maps, befores)
    }

    /// The leaf's bytes; nil when no guess was right.
    func bytes() -> [UInt8]? {
        let plain = plainGuesses()
        for guess in plain { if let bytes = attempt(guess) { return bytes } }
        if content.contains(where: { $0 != .unknown }) {
            for guess in plain { if let bytes = attempt(fitted(guess)) { return bytes } }
        }
        for guess in plain { if let bytes = cut(guess) { return bytes } }
        for guess in partialGuesses() { if let bytes = attempt(guess) { return bytes } }
        for guess in plain { if let bytes = withZerosOfRelatives(guess) { return bytes } }
        for (number, guess) in plain.enumerated() {
            let share = judge.left / (plain.count - number)
            if let bytes = withZeros(guess, floor: judge.left - share) { return bytes }
        }
        return nil
    }

    private func attempt(_ map: SpanMap) -> [UInt8]? {
        let birth = judge.birth
        guard node.pointer.kind == .patchLeaf else {
            guard map.storedPages > 0 else { return nil }
            let leaf = map.fullLeaf(key: node.regionKey, span: node.first)
            return judge.judge(length: leaf.encodedLength) { leaf.encoded(birth: birth) }
        }
        guard let base = map.base, (1...PatchLeaf.maximumEntries).contains(map.patched.count) else { return nil }
        let patch = map.patchLeaf(over: base, key: node.regionKey, span: node.first)
        return judge.judge(length: patch.encodedLength) { patch.encoded(birth: birth) }
    }

    // MARK: guesses

    /// Over each leaf that it may have been made over, all that its writer stored behind that.
    private func plainGuesses() -> [SpanMap] {
        var guesses = (maps + befores).map { $0.storing(own[start(over: $0)...]) }
        if node.pointer.kind == .leaf {
            guesses.insert(SpanMap.empty.storing(own[...]), at: 0)
            if let first = own.first, own.contains(where: { $0.pointer.segment != first.pointer.segment }) {
                // Which segment its writer took first does not show.
                guesses.insert(SpanMap.empty.storing(Array(own.reversed())[...]), at: 1)
            }
        }
        return guesses
    }

    /// Where the writer's runs begin that a leaf does not have yet: one of its own that was written on the way has the first of them.
    private func start(over map: SpanMap) -> Int {
        let listed = Set(map.runs.filter { $0.birth == judge.birth })
        return listed.isEmpty ? 0 : (own.lastIndex { listed.contains($0.pointer) }.map { $0 + 1 } ?? 0)
    }

    /// The writer may have gone on after this leaf: with the first of its runs only.
    private func partialGuesses() -> [SpanMap] {
        guard own.count > 1 else { return [] }
        var guesses: [SpanMap] = []
        for map in (node.pointer.kind == .leaf ? [SpanMap.empty] : []) + maps {
            let start = start(over: map)
            for end in (start..<own.count).reversed() where end > start { guesses.append(map.storing(own[start..<end])) }
        }
        return guesses
    }

    // MARK: pages that became zero

    /// What is behind the end of a region that was made shorter goes.
    private func cut(_ guess: SpanMap) -> [UInt8]? {
        for limit in limits {
            let behind = PageSet(limit..<pagesPerSpan)
            if let bytes = attempt(guess.zeroing(guess.stored.subtracting(PageSet(0..<limit)), among: behind)) { return bytes }
        }
        return nil
    }

    /// Pages that were taken over and that another leaf has as zero.
    private func withZerosOfRelatives(_ guess: SpanMap) -> [UInt8]? {
        let inherited = inherited(guess)
        for map in maps where !judge.isExhausted {
            let zeros = inherited.subtracting(map.stored)
            guard !zeros.isEmpty else { continue }
            if let bytes = attempt(guess.zeroing(zeros)) { return bytes }
        }
        return nil
    }

    /// Any few pages, or one row of them, those first that are zero elsewhere. `floor`: guesses that are left for others.
    private func withZeros(_ guess: SpanMap, floor: Int) -> [UInt8]? {
        let candidates = inherited(guess).pages.filter { content[$0] == .unknown }
        guard node.pointer.kind == .patchLeaf, let base = guess.base else {
            return withZeros(guess, 1...Self.mostScattered, of: candidates, rows: Self.rows(candidates.count), floor)
        }
        let plain = guess.patchLeaf(over: base, key: node.regionKey, span: node.first).encodedLength
        let (count, rest) = (judge.length - plain).quotientAndRemainder(dividingBy: PatchLeaf.entryLength)
        // Each page is an entry more, unless it was one before.
        guard rest == 0, count >= 0 else { return nil }
        let patched = candidates.filter(guess.patched.contains)
        guard count > 0 else { return withZeros(guess, 1...Self.mostScattered, of: patched, rows: Self.rows(patched.count), floor) }
        let new = candidates.filter { !guess.patched.contains($0) }
        return withZeros(guess, count...count, of: new, rows: Self.rows(new.count, length: count), floor)
    }

    private func withZeros(
        _ guess: SpanMap, _ counts: ClosedRange<Int>, of candidates: [Int], rows: [Range<Int>], _ floor: Int
    ) -> [UInt8]? {
        for row in rows where judge.left > floor { if let bytes = attempt(guess.zeroing(PageSet(candidates[row]))) { return bytes } }
        let ordered = candidates.filter(zeroElsewhere.contains) + candidates.filter { !zeroElsewhere.contains($0) }
        for count in counts where judge.left > floor {
            let found = Choices.first(count, of: ordered.count, while: { judge.left > floor }) { chosen in
                attempt(guess.zeroing(PageSet(chosen.map { ordered[$0] })))
            }
            if let found { return found }
        }
        return nil
    }

    /// Rows among `count` things, the short ones first.
    private static func rows(_ count: Int) -> [Range<Int>] {
        var rows: [Range<Int>] = []
        for length in stride(from: 1, through: count, by: 1) where rows.count < mostRows { rows += Self.rows(count, length: length) }
        return rows
    }

    private static func rows(_ count: Int, length: Int) -> [Range<Int>] {
        length > count ? [] : (0...count - length).map { $0..<$0 + length }
    }

    /// The pages that are taken over.
    private func inherited(_ guess: SpanMap) -> PageSet {
        guess.stored.subtracting(guess.pages(of: judge.birth))
    }

    // MARK: known content

    /// The guess, put right where the content of pages is known.
    private func fitted(_ guess: SpanMap) -> SpanMap {
        var zeros = PageSet()
        var moved: [RelatedRun] = []
        for page in 0..<pagesPerSpan {
            switch content[page] {
            case .unknown: break
            case .zero: if !guess.isZero(page) { zeros.insert(page) }
            case .page(let hash):
                guard guess.isZero(page) || guess.hashes[page] != hash, let found = places[PageID(page: UInt16(page), hash: hash)] else { continue }
                moved.append(found)
            }
        }
        return guess.zeroing(zeros).storing(moved[...])
    }

    private struct PageID: Hashable {
        var page: UInt16
        var hash: Hash128
    }

    /// Where the span's pages are to be had, by their content: its writer's own runs before others, later ones before earlier ones.
    private lazy var places: [PageID: RelatedRun] = {
        var places: [PageID: RelatedRun] = [:]
        for map in maps.reversed() {
            map.stored.forEach { page in
                let one = RelatedRun.Page(offset: map.offsetOf[page], page: UInt16(page), hash: map.hashes[page])
                places[PageID(page: one.page, hash: one.hash)] = RelatedRun(pointer: map.runs[Int(map.runOf[page])], pages: [one])
            }
        }
        for run in runs + own {
            for one in run.pages { places[PageID(page: one.page, hash: one.hash)] = RelatedRun(pointer: run.pointer, pages: [one]) }
        }
        return places
    }()
}

extension SpanMap {
    /// The pages that are not zero.
    fileprivate var stored: PageSet {
        var pages = PageSet()
        for page in 0..<pagesPerSpan where !isZero(page) { pages.insert(page) }
        return pages
    }

    /// The pages that are in runs of `birth`.
    fileprivate func pages(of birth: BlockBirth?) -> PageSet {
        var pages = PageSet()
        for page in 0..<pagesPerSpan where !isZero(page) && runs[Int(runOf[page])].birth == birth { pages.insert(page) }
        return pages
    }

    /// The map after pages of `new` runs were stored, the later ones over the earlier ones.
    fileprivate func storing(_ new: ArraySlice<RelatedRun>) -> SpanMap {
        guard !new.isEmpty else { return self }
        var (all, runOf, offsetOf, hashes, patched) = (runs, runOf, offsetOf, hashes, patched)
        var numbers = Dictionary(all.enumerated().map { ($1, UInt16($0)) }, uniquingKeysWith: { first, _ in first })
        for run in new {
            let number = numbers[run.pointer] ?? UInt16(all.count)
            if numbers.updateValue(number, forKey: run.pointer) == nil { all.append(run.pointer) }
            for page in run.pages {
                runOf[Int(page.page)] = number
                offsetOf[Int(page.page)] = page.offset
                hashes[Int(page.page)] = page.hash
                patched.insert(Int(page.page))
            }
        }
        return SpanMap(runs: all, runOf: runOf, offsetOf: offsetOf, hashes: hashes, base: base, patched: patched)
    }

    /// The map after pages became zero. `forgotten`: pages that a patch says nothing of.
    fileprivate func zeroing(_ pages: PageSet, among forgotten: PageSet = PageSet()) -> SpanMap {
        var runOf = runOf
        pages.forEach { runOf[$0] = SpanMap.zeroPage }
        return SpanMap(
            runs: runs, runOf: runOf, offsetOf: offsetOf, hashes: hashes, base: base, patched: patched.union(pages).subtracting(forgotten))
    }
}

extension PatchLeaf {
    /// The patch without the entries that lead to runs of `birth`.
    fileprivate func without(_ birth: BlockBirth) -> PatchLeaf {
        var rest = self
        rest.entries.removeAll { entry in entry.run.map { runs[Int($0)].birth == birth } ?? false }
        return rest
    }
}

extension PageSet {
    fileprivate init(_ pages: some Sequence<Int>) {
        self.init()
        for page in pages { insert(page) }
    }

    fileprivate var pages: [Int] {
        var all: [Int] = []
        forEach { all.append($0) }
        return all
    }
}
