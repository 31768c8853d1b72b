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
        let pace = Pace(options, medium: medium.name)
        var isFirst = true
        while true {
            let plan = try registeredPlan(options)
            if isFirst { report.before = plan.use }
            report.after = plan.use
            isFirst = false
            if options.isDryRun {
                report.after = plan.projected
                report.movedBytes = plan.plannedBytes
                report.freedSegments = plan.victims.count
                return report
            }
            guard !plan.victims.isEmpty else { return report }
            pace.plan(plan.plannedBytes)
            let round = CompactionRound(self, options, plan.victims, pace, report)
            do throws(StoreError) {
                try round.run()
            } catch {
                report = round.report
                guard error.code != .storeFailed else { throw error }
                if error.code == .cancelled { report.wasCancelled = true } else { report.obstacle = error }
                report.after = try registeredPlan(options).use
                return report
            }
            let isDone = round.report.freedSegments == report.freedSegments
            report = round.report
            // What is left can't be moved now: damaged, in use, or changing all the time.
            if isDone { return report }
        }
    }

    /// The plan for the newest generation.
    private func registeredPlan(_ options: CompactionOptions) throws(StoreError) -> CompactionPlan {
        let slot = try register()
        defer { unregister(slot.generation) }
        return try CompactionPlan(self, slot, options)
    }
}
