// `ckstore bench-time`.

import ArgumentParser
import CheckpointStore
import Media
import StoreFormat
import Units

struct TimeBench: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "bench-time",
        abstract: "Measure how a store behaves as it ages: thousands of checkpoints, a month of them.",
        discussion: """
            Makes a scratch store on STORE, saves memory in full, then over and over what little has changed, and measures at \
            10, 100, 1000 … checkpoints what saving, opening, listing, reading and restoring cost, beside what the \
            machine does at best in the same minute. Then it lives through a month of hourly checkpoints of \
            which old ones are deleted, and counts what the store takes for what is alive in it. The scratch store is removed at the end, \
            and nothing that was there before is touched without --force.

            With --only-compaction nothing but compaction is measured, in rounds, each beside copying as many bytes on the same medium: a \
            checkpoint of which every other run is dead is compacted. That takes a minute or two.

            The memory is real memory of this system, as for `ckstore bench`, or a file's with --image.

            Example:
              ckstore bench-time bench.ck
              ckstore bench-time bench.ck --size 1G --checkpoints 1000
              ckstore bench-time ram:bench --size 64M --checkpoints 10000 --json
              ckstore bench-time bench.ck --only-compaction --rounds 7
            """)

    @OptionGroup var target: StoreArgument
    @Option(
        help: ArgumentHelp("How much memory a checkpoint has (default 256M, 1G with --only-compaction; with --image, all of it).", valueName: "size"),
        transform: { try Size(parsing: $0) })
    var size: Size?
    @Option(help: ArgumentHelp("Save this file's content: memory of a guest or process.", valueName: "file"), completion: .file())
    var image: String?
    @Option(help: ArgumentHelp("How many checkpoints to make, each over the one before.", valueName: "n"))
    var checkpoints = 1000
    @Option(help: ArgumentHelp("Pages that change before each of them, in percent.", valueName: "percent"))
    var dirty = 1.0
    @Option(help: ArgumentHelp("Days of hourly checkpoints with deletions; 0: none.", valueName: "n"))
    var days = 30
    @Flag(help: "Measure compaction beside copying, and nothing else.")
    var onlyCompaction = false
    @Option(help: ArgumentHelp("With --only-compaction: how often.", valueName: "n"))
    var rounds = 5
    @Flag(help: "Replace what is on the medium.")
    var force = false
    @Flag(help: "Leave the store of the many checkpoints there (with --days 0).")
    var keep = false
    @OptionGroup var jobs: JobsOption
    @OptionGroup var output: OutputOptions

    private static let smallest = ByteCount.mebibytes(16)
    private static let largest = ByteCount.gibibytes(64)

    func validate() throws {
        if !(dirty > 0 && dirty <= 10) { throw ValidationError("--dirty is \(dirty); it can be more than 0, up to 10.") }
        if !(10...100_000).contains(checkpoints) { throw ValidationError("--checkpoints is \(checkpoints); it can be 10 to 100000.") }
        if !(0...366).contains(days) { throw ValidationError("--days is \(days); it can be 0 to 366.") }
        if let size, !(Self.smallest...Self.largest).contains(size.bytes) {
            throw ValidationError("--size is \(size.bytes) bytes; it can be 16M to 64G.")
        }
        if !(1...100).contains(rounds) { throw ValidationError("--rounds is \(rounds); it can be 1 to 100.") }
        if keep, onlyCompaction { throw ValidationError("--only-compaction leaves nothing that is worth keeping.") }
        if keep, days > 0 { throw ValidationError("--keep keeps the store of the many checkpoints; give --days 0 with it.") }
    }

    func run() throws {
        Interruption.begin()
        let say = sayer()
        let image = try self.image.map { try BenchImage.load($0, limit: size?.bytes) }
            ?? BenchImage.build(size: size?.bytes ?? .mebibytes(onlyCompaction ? 1024 : 256), say: say)
        say("packing the image")
        let units = try BenchUnits(image)
        let scratch = try BenchScratch(target.store, size: mediumSize(image, units), force: force)
        let report: any Encodable
        let text: String
        do {
            (report, text) = try measure(image, units, scratch, say)
        } catch {
            // The first error is the one to tell.
            if !keep { try? scratch.remove() }
            throw error
        }
        if keep { scratch.keepStore() } else { try scratch.remove() }
        if output.showsProgress { standardError("\r\u{1B}[K") }
        try output.report(report, summary: text)
    }

    /// Room for every checkpoint as it would be without compression, its index, re-packed pages, and the full ones at each mark.
    private func mediumSize(_ image: BenchImage, _ units: BenchUnits) -> ByteCount {
        // Two checkpoints, the second with half of it, and room to move as much.
        if onlyCompaction { return ByteCount(units.packedSpan * 3).roundedUp(to: 2 << 20) + .mebibytes(256) }
        let changed = Double(image.memory.count) * dirty / 100
        let chain = Double(checkpoints + TimeBenchRun.extraCheckpoints(checkpoints)) * (changed * 2.2 + 64 * 1024)
        let full = Double(units.packedSpan) * Double(2 + TimeBenchRun.fullSaves(checkpoints)) * 1.1
        // The month: each of the checkpoints that are kept may hold on to much that no other needs.
        let month = days > 0 ? Double(units.packedSpan) * 40 : 0
        return ByteCount(Int(max(chain + full, month))).roundedUp(to: 2 << 20) + .mebibytes(256)
    }

    private func measure(
        _ image: BenchImage, _ units: BenchUnits, _ scratch: BenchScratch, _ say: @escaping (String) -> Void
    ) throws -> (report: any Encodable, text: String) {
        guard !onlyCompaction else {
            let bench = TimeBenchCompaction(scratch: scratch, image: image, units: units, threads: jobs.value, rounds: rounds, say: say)
            let report = try bench.measure()
            return (report, report.text)
        }
        let report = try age(image, units, scratch, say)
        return (report, report.text)
    }

    private func age(
        _ image: BenchImage, _ units: BenchUnits, _ scratch: BenchScratch, _ say: @escaping (String) -> Void
    ) throws -> TimeBenchReport {
        var report = TimeBenchReport(medium: target.store.description, dirtyPercent: dirty, threads: jobs.value, image: image, units: units)
        var run = try TimeBenchRun(
            scratch: scratch, image: image, units: units, dirtyPercent: dirty, checkpoints: checkpoints, threads: jobs.value, say: say)
        try run.measure(into: &report)
        if days > 0 {
            let store = try scratch.makeStore()
            defer { store.close() }
            var month = TimeBenchMonth(store: store, image: image, units: units, days: days, threads: jobs.value, say: say)
            report.month = try month.live()
        }
        return report
    }

    /// Shows what is going on, to those who watch.
    private func sayer() -> (String) -> Void {
        guard output.showsProgress else { return { _ in } }
        return { text in standardError("\r\(text)\u{1B}[K") }
    }
}
