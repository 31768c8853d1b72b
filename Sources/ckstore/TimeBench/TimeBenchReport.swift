// What `ckstore bench-time` prints: a row for each mark, and the month.
//
// Invariants:
// - Figures are medians, but for limits, full saves and restores, which are the best of their rounds; the JSON has every round.
// - GB are 10^9 bytes of input.

import CheckpointStore
import Histogram
import StoreFormat
import Units

struct TimeBenchReport: Encodable {
    /// How long many of a kind took, in seconds.
    struct Spread: Encodable {
        var count: Int
        var median: Double
        var p95: Double
        var most: Double
        init(_ times: [Double]) {
            let sorted = times.sorted()
            count = sorted.count
            median = sorted.isEmpty ? 0 : sorted[sorted.count / 2]
            p95 = sorted.isEmpty ? 0 : sorted[min(sorted.count - 1, sorted.count * 95 / 100)]
            most = sorted.last ?? 0
        }
    }
    struct Latency: Encodable {
        var p50Microseconds = 0.0
        var p99Microseconds = 0.0
        init() {}
        init(_ histogram: Histogram<UInt64>) {
            p50Microseconds = Double(histogram.valueAtPercentile(50)) / 1000
            p99Microseconds = Double(histogram.valueAtPercentile(99)) / 1000
        }
    }
    struct Mark: Encodable {
        var checkpoints: Int
        /// The saves since the mark before.
        var chain = Spread([])
        /// Saves by how the pages lay and how they were handed over, full ones, looking for what changed, restores.
        var times: [String: [TimeBenchTime]] = [:]
        var open: [Double] = []
        var list: [Double] = []
        var names: [Double] = []
        var smallCommit: [Double] = []
        var readFirst = Latency()
        var readLatest = Latency()

        init(checkpoints: Int) { self.checkpoints = checkpoints }

        mutating func add(_ kind: String, _ time: TimeBenchTime) { times[kind, default: []].append(time) }
        /// What a save of a few pages may take: 3 % of a full one, and looking for what changed.
        func allowance(_ figure: (TimeBenchTime) -> Double) -> Double { best("full", figure) * 0.03 + best("hash scan", figure) }
        func median(_ kind: String, _ figure: (TimeBenchTime) -> Double) -> Double { Spread((times[kind] ?? []).map(figure)).median }
        func best(_ kind: String, _ figure: (TimeBenchTime) -> Double) -> Double { (times[kind] ?? []).map(figure).min() ?? 0 }
        /// The speed of restoring the latest by that of the first.
        func restoreShare(_ figure: (TimeBenchTime) -> Double) -> Double { best("restore first", figure) / best("restore latest", figure) }
    }
    struct Space: Encodable {
        var usedBytes: Int
        var liveBytes: Int
        var runBytes: Int
        var indexBytes: Int
        var amplification: Double { Double(usedBytes) / Double(max(liveBytes, 1)) }
        init(_ info: StoreInfo) {
            usedBytes = info.usedSegments * Int(info.geometry.segmentSize)
            liveBytes = info.liveBytes.int
            runBytes = info.runBytes.int
            indexBytes = info.indexBytes.int
        }
    }
    /// Compaction after every second checkpoint was deleted.
    struct Compaction: Encodable {
        var deleted: Int
        var deletionSeconds: Double
        /// Commits of small checkpoints by another handle meanwhile.
        var besideDeletion: Spread
        var seconds: Double
        var movedBytes: Int
        var freedSegments: Int
        var amplificationBefore: Double
        var amplificationAfter: Double
    }
    struct Month: Encodable {
        var days: Int
        var kept: Int
        var saves: Spread
        var deletions: Spread
        /// One at the end of each day.
        var compactions: Spread
        var movedBytes: Int
        var space: Space
    }
    var medium: String
    var dirtyPercent: Double
    var threads: Int
    var image: BenchReport.Image
    var imageBytes: Int
    var machine = BenchReport.Machine()
    var memcpySeconds = 0.0
    var mediumWriteSeconds = 0.0
    var mediumWriteBytes: Int
    var marks: [Mark] = []
    var verifiedBytes = 0
    var deleteSeconds = 0.0
    var deleteNodesRead = 0
    var compaction: Compaction?
    var info: Space?
    var month: Month?

    init(medium: String, dirtyPercent: Double, threads: Int, image: BenchImage, units: BenchUnits) {
        self.medium = medium
        self.dirtyPercent = dirtyPercent
        self.threads = threads
        imageBytes = image.memory.count
        mediumWriteBytes = units.packedSpan
        self.image = .init(image, units)
    }
}

extension BenchReport.Image {
    init(_ image: BenchImage, _ units: BenchUnits) {
        let nonZero = units.nonZeroPages * pageSize
        self.init(
            source: image.source, lengthBytes: image.memory.count, nonZeroBytes: nonZero,
            compressionRatio: Double(nonZero) / Double(max(units.packedBytes, 1)))
    }
}

// MARK: text

extension TimeBenchReport {
    var text: String {
        let saves = "Saves, in milliseconds until they are durable:\n" + saveTable(\.seconds)
        let computing = "The same, milliseconds of computing on all threads:\n" + saveTable(\.processorSeconds)
        return head + "\n" + saves + "\n" + computing + "\n" + costTable + (end.isEmpty ? "" : "\n" + end)
    }

    private var head: String {
        listing([
            ("medium", medium),
            (
                "image", "\(readable(ByteCount(imageBytes))), \(readable(ByteCount(image.nonZeroBytes))) not zero, LZ4 "
                    + "\(decimals(image.compressionRatio, 2)) : 1"
            ),
            ("made of", image.source),
            ("machine", "\(machine.processor), \(machine.cores) cores, \(readable(ByteCount(machine.memoryBytes))), \(machine.kernel)"),
            (
                "limits", "memcpy \(rate(imageBytes, memcpySeconds)), medium write "
                    + "\(rate(mediumWriteBytes, mediumWriteSeconds)) of compressed bytes"
            ),
            (
                "figures", "\(counted(threads, "thread")); \(decimals(dirtyPercent, dirtyPercent < 1 ? 2 : 0)) % of the pages change before "
                    + "a checkpoint"
            ),
        ])
    }

    private func saveTable(_ figure: (TimeBenchTime) -> Double) -> String {
        var table = Table(columns: [
            ("AFTER", .right), ("SCATTERED, LISTED", .right), ("SCANNED", .right), ("CLUSTERED, LISTED", .right), ("SCANNED", .right),
            ("FULL", .right), ("HASH SCAN", .right), ("3 % + SCAN", .right), ("", .left),
        ])
        for mark in marks {
            let kinds = ["scattered listed", "scattered scanned", "clustered listed", "clustered scanned"].map { mark.median($0, figure) }
            let limits = [mark.best("full", figure), mark.best("hash scan", figure), mark.allowance(figure)]
            table.rows.append(
                ["\(mark.checkpoints)"] + (kinds + limits).map(milliseconds)
                    + [(kinds.max() ?? 0) <= mark.allowance(figure) ? "met" : "NOT MET"])
        }
        return table.text
    }

    private var costTable: String {
        var table = Table(columns: [
            ("AFTER", .right), ("OPEN us", .right), ("LIST ms", .right), ("NAMES ms", .right), ("BEGIN+COMMIT ms", .right),
            ("RESTORE FIRST", .right), ("LATEST", .right), ("SHARE", .right), ("IN COMPUTING", .right), ("READ FIRST p50/p99 us", .right),
            ("LATEST", .right), ("", .left),
        ])
        for mark in marks {
            table.rows.append([
                "\(mark.checkpoints)", decimals(Spread(mark.open).median * 1e6, 0), milliseconds(Spread(mark.list).median),
                milliseconds(Spread(mark.names).median), milliseconds(Spread(mark.smallCommit).median),
                rate(imageBytes, mark.best("restore first", \.seconds)), rate(imageBytes, mark.best("restore latest", \.seconds)),
                percent(mark.restoreShare(\.seconds)), percent(mark.restoreShare(\.processorSeconds)),
                latency(mark.readFirst), latency(mark.readLatest),
                mark.restoreShare(\.seconds) >= 0.5 ? "met" : "NOT MET",
            ])
        }
        return "Opening, listing, an empty checkpoint, restoring, reading pages at random:\n" + table.text
    }

    private var end: String {
        var lines: [(name: String, value: String)] = []
        for mark in marks {
            let chain = mark.chain
            lines.append((
                "up to \(mark.checkpoints)", "saves of scattered pages, listed: median \(milliseconds(chain.median)) ms, p95 "
                    + "\(milliseconds(chain.p95)), most \(milliseconds(chain.most))"
            ))
        }
        if let info {
            lines.append(("delete one of the many", "\(milliseconds(deleteSeconds)) ms, \(deleteNodesRead) index blocks read"))
            lines.append((
                "the store then", "\(readable(ByteCount(info.usedBytes))) used, \(readable(ByteCount(info.runBytes))) of runs, "
                    + "\(readable(ByteCount(info.indexBytes))) of index, amplification \(decimals(info.amplification, 2))"
            ))
        }
        if let compaction {
            lines.append((
                "every second deleted", "\(compaction.deleted) in \(decimals(compaction.deletionSeconds, 2)) s; compacting then moved "
                    + "\(readable(ByteCount(compaction.movedBytes))) in \(decimals(compaction.seconds, 2)) s, "
                    + "\(rate(compaction.movedBytes, compaction.seconds)): amplification \(decimals(compaction.amplificationBefore, 2)) -> "
                    + decimals(compaction.amplificationAfter, 2)
            ))
        }
        if let commits = compaction?.besideDeletion, commits.count > 0 {
            lines.append((
                "commits beside that", "\(commits.count) while these were deleted: median \(milliseconds(commits.median)) ms, p95 "
                    + "\(milliseconds(commits.p95)), most \(milliseconds(commits.most))"
            ))
        }
        if let month {
            lines.append((
                "\(month.days) days, hourly", "\(month.kept) checkpoints kept; a save \(milliseconds(month.saves.median)) ms (p95 "
                    + "\(milliseconds(month.saves.p95))), a deletion \(milliseconds(month.deletions.median)) ms (p95 "
                    + "\(milliseconds(month.deletions.p95))), a compaction \(milliseconds(month.compactions.median)) ms"
            ))
            lines.append((
                "space after them", "\(readable(ByteCount(month.space.usedBytes))) used for "
                    + "\(readable(ByteCount(month.space.liveBytes))) alive: amplification "
                    + decimals(month.space.amplification, 2)
            ))
        }
        return listing(lines)
    }

    private func milliseconds(_ seconds: Double) -> String { decimals(seconds * 1000, 1) }
    private func percent(_ share: Double) -> String { decimals(share * 100, 0) + " %" }
    private func rate(_ bytes: Int, _ seconds: Double) -> String { decimals(Double(bytes) / seconds / 1e9, 2) + " GB/s" }
    private func latency(_ latency: Latency) -> String { "\(decimals(latency.p50Microseconds, 1)) / \(decimals(latency.p99Microseconds, 1))" }
}
