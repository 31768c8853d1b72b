// Compaction: what lives in mostly dead segments is moved together, and the segments are freed.

import StoreFormat
import Units

extension CheckpointStore {
    /// Moves what lives in mostly dead segments into others and frees them, until the store takes little more than what lives in it; then
    /// gives the medium back what is free and still takes space there, but for what is being read in older generations.
    ///
    /// Checkpoints stay what they are; readers and writers go on beside it. Every batch is a commit of its own: durable when it counts,
    /// nothing when not. Works on a full store. Reads the index of all checkpoints once in a while (no page data), and what it moves.
    /// - Returns: what was done, also when something kept it from going on (`obstacle`).
    /// - Throws: `.readOnly`, `.storeFailed`; what reading the segment table throws.
    public func compact(_ options: CompactionOptions = CompactionOptions()) throws(StoreError) -> CompactionReport {
        try checkUsable(forWriting: !options.isDryRun)
        var report = try move(options)
        if report.wasCancelled { return report }
        do throws(StoreError) {
            if options.isDryRun {
                report.givenBackBytes = try registeredFreeSpace().space.bytes
            } else {
                report.givenBackBytes += try giveBackLeftovers(isThorough: true) { options.isCancelled?() ?? false }
            }
        } catch {
            guard error.code != .storeFailed else { throw error }
            report.obstacle = report.obstacle ?? error
        }
        return report
    }

    private func move(_ options: CompactionOptions) throws(StoreError) -> CompactionReport {
        var report = CompactionReport()
        report.leftAlone = options.leftAlone
        let plan = try registeredPlan(options, report)
        report.before = plan.content.use
        report.catalogBefore = plan.catalog.use
        guard !options.isDryRun else { return Self.projection(of: plan, report, options) }
        let pace = Pace(options, medium: medium.name)
        try compactContent(options, pace, &report)
        if !report.wasCancelled {
            let freed = report.freedSegments
            let obstacle = report.obstacle
            try compactCatalog(options, pace, &report)
            // What was freed there may be the room that was missing before.
            if obstacle?.code == .noSpace, report.freedSegments > freed, !report.wasCancelled {
                report.obstacle = nil
                try compactContent(options, pace, &report)
            }
        }
        let end = try registeredPlan(options, report)
        report.after = end.content.use
        report.catalogAfter = end.catalog.use
        report.missedTarget = report.after.amplification > options.targetAmplification
        return report
    }

    /// What a dry run says.
    private static func projection(of plan: CompactionPlan, _ report: CompactionReport, _ options: CompactionOptions) -> CompactionReport {
        var report = report
        report.after = plan.content.projected
        report.catalogAfter = plan.catalog.projected
        report.missedTarget = report.after.amplification > options.targetAmplification
        report.movedBytes = plan.content.plannedBytes + plan.catalog.plannedBytes
        report.freedSegments = plan.content.victims.count + plan.catalog.victims.count
        return report
    }

    /// Empties segments of page runs and index, in rounds, until there is nothing more to win.
    private func compactContent(_ options: CompactionOptions, _ pace: Pace, _ report: inout CompactionReport) throws(StoreError) {
        while true {
            let plan = try registeredPlan(options, report)
            guard !plan.content.victims.isEmpty else { return }
            pace.plan(plan.content.plannedBytes + plan.catalog.plannedBytes)
            let round = CompactionRound(self, options, plan.content.victims, pace, report)
            let obstacle = try Self.end { () throws(StoreError) in try round.run() }
            // What is left can't be moved now: damaged, in use, or changing all the time.
            let isDone = round.report.freedSegments == report.freedSegments && round.report.leftAlone == report.leftAlone
            report = round.report
            if let obstacle { report.end(obstacle) }
            if isDone || obstacle != nil { return }
        }
    }

    /// Empties segments of the catalog, once: the commits that do this make others a little deader.
    private func compactCatalog(_ options: CompactionOptions, _ pace: Pace, _ report: inout CompactionReport) throws(StoreError) {
        let plan = try registeredPlan(options, report)
        guard !plan.catalog.victims.isEmpty else { return }
        pace.plan(plan.catalog.plannedBytes)
        let round = CatalogRound(self, options, plan.catalog.victims, pace, report)
        let obstacle = try Self.end { () throws(StoreError) in try round.run() }
        report = round.report
        if let obstacle { report.end(obstacle) }
    }

    /// Runs `body`. Returns what ended it before it was done.
    ///
    /// - Throws: what makes the handle unusable.
    private static func end(_ body: () throws(StoreError) -> Void) throws(StoreError) -> StoreError? {
        do throws(StoreError) { try body() } catch {
            guard error.code != .storeFailed else { throw error }
            return error
        }
        return nil
    }

    /// The plan for the newest generation, without what `report` says must be left alone.
    private func registeredPlan(_ options: CompactionOptions, _ report: CompactionReport) throws(StoreError) -> CompactionPlan {
        let slot = try register()
        defer { unregister(slot.generation) }
        return try CompactionPlan(self, slot, options, leftAlone: report.leftAlone)
    }
}

extension CompactionReport {
    /// Notes what ended it; the first obstacle is the one to tell.
    fileprivate mutating func end(_ error: StoreError) {
        if error.code == .cancelled { wasCancelled = true } else { obstacle = obstacle ?? error }
    }
}
