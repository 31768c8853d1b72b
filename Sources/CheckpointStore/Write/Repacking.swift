// Which runs of a span a save stores anew, so that reading it stays cheap however often it is changed.
//
// A page that is changed leaves a hole in the run where it was. Reading decompresses a run up to the last page that is wanted, holes
// included; after many small changes that is a multiple of what is alive. Everything that is needed to know how much is in
// the leaf: the places that it lists.
//
// Invariants:
// - Right after a leaf was written in full, reading its span costs at most `goal` times what it would cost if it had just been saved
//   whole, and a fixed amount; at any time, `limit` times that.
// - The work is paid for by pages that were put: a run becomes worth moving only by saves that took pages out of it.

import Units

/// What of one run a span still lists.
package struct RunUse: Equatable, Sendable {
    /// Pages of the run that are listed, at least one.
    package var livePages: Int
    /// Pages that reading these decompresses: up to the last one of them.
    package var readPages: Int
    /// False for a run that this checkpoint has written itself: it may not be on the medium yet.
    package var canMove: Bool

    package init(livePages: Int, readPages: Int, canMove: Bool) {
        self.livePages = livePages
        self.readPages = readPages
        self.canMove = canMove
    }
}

/// Decides what is re-packed. The standard rules are `StandardRepacking`; tests have others.
package protocol RepackingRules: Sendable {
    /// The runs, by their places in `runs`, whose listed pages the save of a span stores anew.
    ///
    /// - Parameters:
    ///   - runs: what the span lists beside the pages that are being put.
    ///   - newPages: how many of these there are.
    ///   - writesFullLeaf: whether a full leaf is written in any case.
    func runsToMove(_ runs: [RunUse], newPages: Int, writesFullLeaf: Bool) -> [Int]
}

/// Moves pages out of the emptiest runs until reading the span is cheap enough.
package struct StandardRepacking: RepackingRules {
    package init() {}

    /// Costs are in sixteenths of decompressing one page. A run costs this beside its pages: finding, copying and verifying it.
    private static let runCost = 16
    private static let pageCost = 16
    /// What a page costs in a full run.
    private static let packedPageCost = pageCost + runCost / pagesPerRun
    /// How many times the cost of the same pages in full runs reading may cost, in eighths: after a full leaf was written, and ever.
    private static let (goal, limit) = (12, 16)
    private static let whole = 8
    /// Not worth the trouble: what a whole run costs.
    private static let slack = pageCost * pagesPerRun

    package func runsToMove(_ runs: [RunUse], newPages: Int, writesFullLeaf: Bool) -> [Int] {
        var cost = newPages * Self.packedPageCost
        var livePages = newPages
        for run in runs {
            cost += Self.cost(run)
            livePages += run.livePages
        }
        let ideal = livePages * Self.packedPageCost
        let goal = ideal * Self.goal / Self.whole + Self.slack
        guard cost > (writesFullLeaf ? goal : ideal * Self.limit / Self.whole + Self.slack) else { return [] }
        // The one that costs most for each page that is alive first.
        let order = runs.indices.filter { runs[$0].canMove && Self.gain(runs[$0]) > 0 }.sorted { a, b in
            let (left, right) = (Self.cost(runs[a]) * runs[b].livePages, Self.cost(runs[b]) * runs[a].livePages)
            return left == right ? a < b : left > right
        }
        var moved: [Int] = []
        for run in order {
            if cost <= goal { break }
            cost -= Self.gain(runs[run])
            moved.append(run)
        }
        return moved
    }

    private static func cost(_ run: RunUse) -> Int { runCost + run.readPages * pageCost }

    /// By how much reading becomes cheaper when the run's pages are moved into full runs.
    private static func gain(_ run: RunUse) -> Int { cost(run) - run.livePages * packedPageCost }
}
