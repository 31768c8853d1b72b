// `ckstore compact`.

import ArgumentParser
import CheckpointStore
import Glibc
import Media
import Units

struct Compact: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Give back the space of what was deleted, though parts of it still share segments with what lives.",
        discussion: """
            Deleting frees segments in which nothing lives any more. What lives in mostly dead ones is moved together \
            here, and they are freed, until the store takes no more than --target times what lives in it. Checkpoints \
            stay as they are; others can read, save and delete meanwhile. Works on a full store too. The catalog (what leads \
            to checkpoints, segments and moved blocks) is looked at by itself: what still counts in its mostly dead segments \
            is written anew where commits append.

            What is free and still takes space on the medium is given back: what a reader of an older state kept when it \
            was freed, or what an interrupted save left behind. What is still being read stays until the next time.

            Segments of which little is dead are left alone: less than 15 %, or, with a --target below 1.18, than what that allows. \
            It says so when the target was not reached.

            Interrupted, it stops after the piece under way: what was moved so far stays, and nothing is lost. With \
            --watch it goes on until then, looking again every --interval seconds; a damaged block is then told, and tried, once.

            Example:
              ckstore compact vm.ck --dry-run
              ckstore compact vm.ck --rate 50M
              ckstore compact vm.ck --watch --interval 300
            """)

    @OptionGroup var target: StoreArgument
    @Option(name: .customLong("target"), help: ArgumentHelp("Stop when the store takes this many times what lives in it.", valueName: "factor"))
    var amplification = 1.1
    @Option(help: ArgumentHelp("Read at most this much in a second of what is to be moved; as fast as it goes if not given.", valueName: "size"), transform: { try Size(parsing: $0) })
    var rate: Size?
    @Flag(help: "Only say what would be moved and freed.")
    var dryRun = false
    @Flag(help: "Go on until interrupted.")
    var watch = false
    @Option(help: ArgumentHelp("With --watch: how long to wait before looking again; 60 if not given.", valueName: "seconds"))
    var interval: Int?
    @OptionGroup var jobs: JobsOption
    @OptionGroup var output: OutputOptions

    func validate() throws {
        guard (1...1000).contains(amplification) else { throw ValidationError("--target is \(amplification); it can be 1 to 1000, for example 1.1.") }
        if let rate, rate.bytes == .zero { throw ValidationError("--rate is 0; nothing would ever be moved.") }
        if let interval {
            guard watch else { throw ValidationError("--interval says how often to look again; that takes --watch.") }
            guard (1...1_000_000).contains(interval) else { throw ValidationError("--interval is \(interval); it can be 1 to 1000000 seconds.") }
        }
        if dryRun, watch { throw ValidationError("--dry-run changes nothing, so there is nothing to --watch.") }
    }

    func run() throws {
        Interruption.begin()
        let store = try target.open(dryRun ? .readOnly : .readWrite)
        defer { store.close() }
        // The first signal is seen at the next piece; a second one ends at once.
        Interruption.setCancel {}
        let progress = Progress(isShown: output.showsProgress, total: nil)
        var options = CompactionOptions(
            targetAmplification: amplification, bytesPerSecond: rate?.bytes, parallelism: jobs.value, isDryRun: dryRun,
            progress: { progress.update($0.movedBytes) }, isCancelled: { Interruption.received != nil })
        repeat {
            let report: CompactionReport
            do {
                defer { progress.clear() }
                report = try store.compact(options)
            }
            // What is damaged need not be told, nor tried, each time.
            options.leftAlone = report.leftAlone
            try tell(report, store)
            if !watch { return try end(report, store) }
            wait()
        } while Interruption.received == nil
    }

    private func tell(_ report: CompactionReport, _ store: CheckpointStore) throws {
        // While it watches, only what was done is worth a line.
        if watch, report.commits == 0, report.givenBackBytes == .zero, report.obstacle == nil, report.damaged.isEmpty { return }
        if !output.json {
            for damage in report.damaged { standardError("ckstore: left where it is: \(damage)\n") }
            if let obstacle = report.obstacle { standardError("ckstore: \(obstacle)\n") }
        }
        let result = Result(report, store, target: amplification, isDryRun: dryRun)
        try output.report(result, summary: result.summary)
    }

    private func wait() {
        for _ in 0..<(interval ?? 60) * 10 where Interruption.received == nil { usleep(100_000) }
    }

    private func end(_ report: CompactionReport, _ store: CheckpointStore) throws {
        if report.wasCancelled { throw ExitCode(Interruption.received.map { 128 + $0 } ?? ExitStatus.failed) }
        if let obstacle = report.obstacle { throw ExitCode(ExitStatus.code(for: obstacle)) }
        if !report.damaged.isEmpty { throw ExitCode(ExitStatus.corrupt) }
    }

    private struct Result: Encodable {
        var medium: String
        var isDryRun: Bool
        var wasInterrupted: Bool
        /// How many times what lives in them page runs and index should take, and whether they take no more now.
        var target: Double
        var isTargetReached: Bool
        var usedBytesBefore: UInt64
        var usedBytesAfter: UInt64
        var liveBytes: UInt64
        /// The same for the segments of the catalog.
        var catalogBytesBefore: UInt64
        var catalogBytesAfter: UInt64
        var catalogLiveBytes: UInt64
        var movedBytes: UInt64
        var movedBlocks: Int
        var rewrittenRuns: Int
        /// Of the moved blocks, those of the catalog.
        var rewrittenNodes: Int
        var freedSegments: Int
        var freedBytes: UInt64
        /// What the medium got back, of these and of segments that were free before.
        var givenBackBytes: UInt64
        var skippedSegments: Int
        var commits: Int
        /// Blocks that could not be moved since they are damaged.
        var damages: [FailureObject]
        /// Why it could not go on; absent when all is well.
        var obstacle: FailureObject?

        init(_ report: CompactionReport, _ store: CheckpointStore, target: Double, isDryRun: Bool) {
            medium = store.medium.name
            self.isDryRun = isDryRun
            wasInterrupted = report.wasCancelled
            self.target = target
            isTargetReached = !report.missedTarget
            usedBytesBefore = report.before.usedBytes.rawValue
            usedBytesAfter = report.after.usedBytes.rawValue
            liveBytes = report.after.liveBytes.rawValue
            catalogBytesBefore = report.catalogBefore.usedBytes.rawValue
            catalogBytesAfter = report.catalogAfter.usedBytes.rawValue
            catalogLiveBytes = report.catalogAfter.liveBytes.rawValue
            movedBytes = report.movedBytes.rawValue
            movedBlocks = report.movedBlocks
            rewrittenRuns = report.rewrittenRuns
            rewrittenNodes = report.rewrittenNodes
            freedSegments = report.freedSegments
            freedBytes = UInt64(report.freedSegments) * UInt64(store.geometry.segmentSize)
            givenBackBytes = report.givenBackBytes.rawValue
            skippedSegments = report.skippedSegments
            commits = report.commits
            damages = report.damaged.map(FailureObject.init)
            obstacle = report.obstacle.map(FailureObject.init)
        }

        var summary: String {
            func sizes(_ before: UInt64, _ after: UInt64, _ live: UInt64) -> String {
                "\(readable(ByteCount(before))) before, \(readable(ByteCount(after))) after, \(readable(ByteCount(live))) live"
            }
            var all = sizes(usedBytesBefore, usedBytesAfter, liveBytes)
            if catalogBytesBefore != catalogBytesAfter { all += "; catalog " + sizes(catalogBytesBefore, catalogBytesAfter, catalogLiveBytes) }
            let (moved, freed) = (readable(ByteCount(movedBytes)), counted(freedSegments, "segment"))
            let given = readable(ByteCount(givenBackBytes))
            let missed = isTargetReached || wasInterrupted ? "" : "; more than \(target) times what lives is left"
            if isDryRun { return "\(medium): would move \(moved) and free \(freed) (\(all)), and give back \(given) that is free already\(missed)\n" }
            return "\(medium): moved \(moved), freed \(freed) (\(all)), gave back \(given)\(missed)\(wasInterrupted ? "; interrupted" : "")\n"
        }
    }
}
