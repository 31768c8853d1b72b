// Storing anew what stands in runs that have become too empty.
//
// Invariant: bytes that are stored anew are those that the leaf's hash was made of.

import PageCodec
import StoreFormat
import Units

extension SpanBuilder {
    /// Finds the pages that are re-packed, and reads those that were not given. Pages of a run that is damaged stay where they are.
    func chooseMoved(_ before: SpanMap, _ input: SpanInput, _ change: inout Change) throws(StoreError) {
        let gone = change.fresh.union(change.zeroed)
        let (runs, numbers) = uses(of: before, without: gone)
        guard !runs.isEmpty else { return }
        let writesFullLeaf = before.base == nil || before.patched.union(gone).count > SpanBuilder.maximumPatch
        let chosen = writer.options.repacking.runsToMove(runs, newPages: change.fresh.count, writesFullLeaf: writesFullLeaf)
        guard !chosen.isEmpty else { return }
        var pagesOf = [PageSet](repeating: PageSet(), count: before.runs.count)
        PageSet.all.subtracting(gone).forEach { page in
            if !before.isZero(page) { pagesOf[Int(before.runOf[page])].insert(page) }
        }
        for run in chosen where runs[run].canMove {
            let pages = pagesOf[numbers[run]]
            let missing = pages.subtracting(input.given)
            guard try readBack(missing, of: before, run: numbers[run], span: input.span) else { continue }
            change.moved = change.moved.union(pages)
            change.readBack = change.readBack.union(missing)
        }
    }

    /// What is listed of each run, apart from `gone` pages, and the runs' numbers in the map.
    private func uses(of before: SpanMap, without gone: PageSet) -> (runs: [RunUse], numbers: [Int]) {
        var live = [UInt8](repeating: 0, count: before.runs.count)
        var last = live
        for page in 0..<pagesPerSpan where !before.isZero(page) && !gone.contains(page) {
            let run = Int(before.runOf[page])
            live[run] += 1
            last[run] = max(last[run], before.offsetOf[page])
        }
        var (runs, numbers): ([RunUse], [Int]) = ([], [])
        runs.reserveCapacity(live.count)
        numbers.reserveCapacity(live.count)
        let own = BlockBirth(writer.id)
        for run in live.indices where live[run] > 0 {
            runs.append(
                RunUse(livePages: Int(live[run]), readPages: Int(last[run]) + 1, canMove: before.runs[run].birth != own))
            numbers.append(run)
        }
        return (runs, numbers)
    }

    /// Reads pages of one run into the lane's copy, at their places. False when they can't be read: what is damaged is found by those
    /// who need it and by verifying, and must not keep a machine from being saved.
    private func readBack(_ pages: PageSet, of before: SpanMap, run: Int, span: SpanIndex) throws(StoreError) -> Bool {
        guard !pages.isEmpty else { return true }
        do throws(StoreError) {
            try unsafe lane.decoder.placeRun(before, run, pages, key: key, span: span, at: lane.copy.base)
        } catch {
            guard error.isDamage else { throw error }
            return false
        }
        var isRight = true
        pages.forEach { page in
            isRight = unsafe isRight && pageHash(lane.copy.base + page * pageSize, seed: writer.pageHashSeed) == before.hashes[page]
        }
        return isRight
    }
}
