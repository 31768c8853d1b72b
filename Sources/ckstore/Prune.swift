// `ckstore prune`.

import ArgumentParser
import CheckpointStore
import Media
import Units

struct Prune: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Delete the checkpoints that no rule keeps.",
        discussion: """
            A checkpoint is kept when one of the rules that are given keeps it, or when a moving name leads to it, `latest` \
            included. --keep-hourly 24 keeps the newest checkpoint of each of the latest 24 hours that have any; days, weeks \
            (from Monday) and months are those of UTC.

            Example:
              ckstore prune vm.ck --keep-last 10 --keep-daily 7 --dry-run
              ckstore prune vm.ck --keep-within 24h --keep-weekly 8
              ckstore prune vm.ck --keep-monthly 12 --keep-label keep
            """)

    @OptionGroup var target: StoreArgument
    @Option(help: ArgumentHelp("Keep the n newest.", valueName: "n"))
    var keepLast: Int?
    @Option(
        help: ArgumentHelp("Keep those begun within this time: 90m, 24h, 7d, 2w.", valueName: "time"),
        transform: { try Age(parsing: $0) })
    var keepWithin: Age?
    @Option(help: ArgumentHelp("Keep the newest of each of the latest n hours.", valueName: "n"))
    var keepHourly: Int?
    @Option(help: ArgumentHelp("Keep the newest of each of the latest n days.", valueName: "n"))
    var keepDaily: Int?
    @Option(help: ArgumentHelp("Keep the newest of each of the latest n weeks.", valueName: "n"))
    var keepWeekly: Int?
    @Option(help: ArgumentHelp("Keep the newest of each of the latest n months.", valueName: "n"))
    var keepMonthly: Int?
    @Option(
        help: ArgumentHelp("Keep those that have this label; may be repeated.", valueName: "key[=value]"),
        transform: { try LabelFilter(parsing: $0) })
    var keepLabel: [LabelFilter] = []
    @Flag(help: "Only say what would be deleted.")
    var dryRun = false
    @OptionGroup var output: OutputOptions

    private var counts: [(option: String, count: Int?, period: RetentionPeriod?)] {
        [
            ("--keep-last", keepLast, nil), ("--keep-hourly", keepHourly, .hourly), ("--keep-daily", keepDaily, .daily),
            ("--keep-weekly", keepWeekly, .weekly), ("--keep-monthly", keepMonthly, .monthly),
        ]
    }

    func validate() throws {
        for (option, count, _) in counts {
            if let count, count < 1 { throw ValidationError("\(option) is \(count); it must be 1 or more.") }
        }
        if policy.isEmpty { throw ValidationError("Say what to keep, for example --keep-last 10: without a rule all would go.") }
    }

    private var policy: RetentionPolicy {
        var policy = RetentionPolicy()
        policy.last = keepLast ?? 0
        policy.withinNanoseconds = keepWithin?.nanoseconds ?? 0
        for (_, count, period) in counts { if let period { policy.periods[period] = count } }
        policy.labels = keepLabel.map(\.rule)
        return policy
    }

    func run() throws {
        let store = try target.open(dryRun ? .readOnly : .readWrite)
        defer { store.close() }
        let result = try store.prune(policy, isDryRun: dryRun)
        let freed = UInt64(result.deletion?.freedSegments ?? 0) * UInt64(store.geometry.segmentSize)
        let obstacle = result.deletion?.obstacle
        result.deletion?.reportObstacle()
        let object = Result(
            isDryRun: dryRun, kept: result.verdicts.filter { !$0.reasons.isEmpty }.map(Result.Kept.init),
            deleted: result.deletion?.deleted ?? result.verdicts.filter(\.reasons.isEmpty).map(\.checkpoint.name), freedBytes: freed,
            unreadable: result.deletion.flatMap { $0.unreadable.isEmpty ? nil : $0.unreadable.map(FailureObject.init) },
            obstacle: obstacle.map(FailureObject.init))
        try output.report(object, summary: text(result, freed: ByteCount(freed)))
        if let obstacle { throw ExitCode(ExitStatus.code(for: obstacle)) }
    }

    private func text(_ result: PruneResult, freed: ByteCount) -> String {
        var table = Table(columns: [("NAME", .left), ("CREATED", .left), ("", .left), ("REASONS", .left)])
        table.rows = result.verdicts.map { verdict in
            [
                printable(verdict.checkpoint.name), timestamp(nanoseconds: verdict.checkpoint.createdNanoseconds, isExact: false),
                verdict.reasons.isEmpty ? (dryRun ? "would go" : "deleted") : "kept",
                verdict.reasons.map { printable($0.text) }.joined(separator: ", "),
            ]
        }
        let gone = result.deletion?.deleted.count ?? result.verdicts.count(where: \.reasons.isEmpty)
        let summary = dryRun ? "would delete \(counted(gone, "checkpoint"))" : "deleted \(counted(gone, "checkpoint")), freed \(readable(freed))"
        return table.text + summary + "\n"
    }

    private struct Result: Encodable {
        struct Kept: Encodable {
            var name: String
            var id: String
            var reasons: [String]

            init(_ verdict: PruneResult.Verdict) {
                name = verdict.checkpoint.name
                id = verdict.checkpoint.id.description
                reasons = verdict.reasons.map(\.text)
            }
        }
        var isDryRun: Bool
        var kept: [Kept]
        /// What was deleted, or would be.
        var deleted: [String]
        var freedBytes: UInt64
        /// Blocks that can't be read, so that what stands below them still counts as used; absent when all is well.
        var unreadable: [FailureObject]?
        /// Why some space could not be freed; absent when all is well.
        var obstacle: FailureObject?
    }
}

extension RetentionPolicy.Reason {
    /// The option that keeps it, or the name that does.
    fileprivate var text: String {
        switch self {
        case .referenced(let name): "name \(name)"
        case .last: "last"
        case .within: "within"
        case .period(let period): period.rawValue
        case .label(let rule): "label \(rule.key)" + (rule.value.map { "=\($0)" } ?? "")
        }
    }
}
