// What the bench prints: limits, results, shares and targets.
//
// Invariants:
// - Figures are those of the best round; all rounds are in the JSON.
// - GB are 10^9 bytes of input, where nothing else is said.

import CheckpointStore
import FoundationEssentials
import Glibc
import Media
import Units

struct BenchReport: Encodable {
    struct Image: Encodable {
        var source: String
        var lengthBytes: Int
        var nonZeroBytes: Int
        /// Non-zero bytes by the bytes that LZ4 makes of them in units of 64 KiB.
        var compressionRatio: Double
    }
    struct Machine: Encodable {
        var processor: String
        var cores: Int
        var memoryBytes: Int
        var kernel: String
    }
    struct Limit: Encodable {
        var name: String
        var gigabytesPerSecond: Double
        /// What the bytes are.
        var of: String
        var roundsSeconds: [Double]
    }
    struct Result: Encodable {
        var name: String
        var figure: String
        var gigabytesPerSecond: Double?
        var limit: String?
        /// Of the limit.
        var share: Double?
        var target: String?
        var isMet: Bool?
        var roundsSeconds: [Double]?
    }
    var medium: String
    var mediumKind: String
    var writeMethod: String
    var threads: Int
    var rounds: Int
    var dirtyPercent: Double
    var image: Image
    var machine: Machine
    var limits: [Limit] = []
    var results: [Result] = []

    /// The text for people.
    var text: String {
        let head = listing([
            ("medium", "\(medium), written \(writeMethod)"),
            (
                "image",
                "\(readable(ByteCount(image.lengthBytes))), \(readable(ByteCount(image.nonZeroBytes))) not zero, LZ4 "
                    + "\(decimals(image.compressionRatio, 2)) : 1"
            ),
            ("made of", image.source),
            ("machine", "\(machine.processor), \(machine.cores) cores, \(readable(ByteCount(machine.memoryBytes))), \(machine.kernel)"),
            ("figures", "best of \(counted(rounds, "round")), \(counted(threads, "thread")), GB = 10^9 bytes"),
        ])
        var limitTable = Table(columns: [("LIMIT", .left), ("GB/S", .right), ("OF", .left)])
        for limit in limits { limitTable.rows.append([limit.name, decimals(limit.gigabytesPerSecond, 2), limit.of]) }
        var table = Table(columns: [
            ("RESULT", .left), ("FIGURE", .right), ("SHARE", .right), ("OF LIMIT", .left), ("TARGET", .left), ("", .left),
        ])
        for result in results {
            table.rows.append([
                result.name, result.figure, result.share.map { decimals($0 * 100, 0) + " %" } ?? "", result.limit ?? "",
                result.target ?? "", result.isMet.map { $0 ? "met" : "NOT MET" } ?? "",
            ])
        }
        return head + "\n" + limitTable.text + "\n" + table.text
    }
}

/// Makes the report of what a run gathered.
struct BenchReporter {
    let samples: BenchSamples
    let units: BenchUnits
    let imageBytes: Int
    private var nonZeroBytes: Int { units.nonZeroPages * pageSize }

    func fill(_ report: inout BenchReport) throws {
        report.limits = limits(report.threads)
        try addSaves(&report)
        try addReads(&report)
        addSpace(&report)
    }

    private func rate(_ bytes: Int, _ seconds: Double) -> Double { Double(bytes) / seconds / 1e9 }

    // MARK: limits

    private func limits(_ threads: Int) -> [BenchReport.Limit] {
        let all = threads == 1 ? "1 thread" : "\(threads) threads"
        let rows: [(BenchItem, String, Int, String)] = [
            (.memcpyOne, "memcpy, warm, 1 thread", imageBytes, "input"),
            (.memcpyAll, "memcpy, warm, \(all)", imageBytes, "input"),
            (.zeroScan, "zero scan, \(all)", imageBytes, "input"),
            (.hash, "hash (XXH3-128 of pages, \(all))", imageBytes, "input"),
            (.compressOne, "LZ4 compress, 64 KiB, 1 thread", nonZeroBytes, "non-zero input"),
            (.compressAll, "LZ4 compress, 64 KiB, \(all)", nonZeroBytes, "non-zero input"),
            (.decompressOne, "LZ4 decompress, 64 KiB, 1 thread", nonZeroBytes, "non-zero input"),
            (.decompressAll, "LZ4 decompress, 64 KiB, \(all)", nonZeroBytes, "non-zero input"),
            (.compute, "compute (zero test + hash + LZ4, \(all))", imageBytes, "input"),
            (.computeAndMediumWrite, "compute and medium write at once", imageBytes, "input"),
            (.decode, "decode (copy + XXH3 + LZ4, \(all))", imageBytes, "input"),
            (.firstTouch, "first touch of fresh memory, \(all)", imageBytes, "input"),
            (.mediumWrite, "medium write + flush (best with \(samples.mediumThreads) threads)", units.packedSpan, "compressed"),
            (.mediumRead, "medium read, warm, \(all)", units.packedSpan, "compressed"),
            (.hashStored, "XXH3-128 of stored units, \(all)", units.packedBytes, "compressed"),
        ]
        return rows.compactMap { item, name, bytes, of in
            guard let best = samples.best(item), let all = samples.seconds[item] else { return nil }
            return .init(name: name, gigabytesPerSecond: rate(bytes, best), of: of, roundsSeconds: all)
        }
    }

    /// The slowest of some limits over the same input: in seconds, and in words.
    private func binding(_ items: [(BenchItem, String)]) -> (seconds: Double, name: String)? {
        let known = items.compactMap { item, name in samples.best(item).map { (seconds: $0, name: name) } }
        guard let slowest = known.max(by: { $0.seconds < $1.seconds }) else { return nil }
        return (slowest.seconds, "\(slowest.name) \(decimals(rate(imageBytes, slowest.seconds), 2)) GB/s")
    }

    // MARK: results

    private func add(
        _ name: String, _ item: BenchItem, limit: (seconds: Double, name: String)?, target: Double?, to report: inout BenchReport
    ) {
        guard let best = samples.best(item) else { return }
        let share = limit.map { $0.seconds / best }
        report.results.append(
            .init(
                name: name, figure: decimals(rate(imageBytes, best), 2) + " GB/s", gigabytesPerSecond: rate(imageBytes, best),
                limit: limit?.name, share: share, target: target.map { ">= \(decimals($0 * 100, 0)) %" },
                isMet: target.flatMap { target in share.map { $0 >= target } }, roundsSeconds: samples.seconds[item]))
    }

    private func addSaves(_ report: inout BenchReport) throws {
        let full = binding([(.compute, "compute"), (.mediumWrite, "medium")])
        let hash = binding([(.hash, "hash")])
        add("full durable save, stable memory", .saveStable, limit: full, target: 0.9, to: &report)
        let both = binding([(.computeAndMediumWrite, "compute and medium at once")])
        add("  the same against both limits at once", .saveStable, limit: both, target: nil, to: &report)
        add("full durable save, memory copied first", .saveUnstable, limit: full, target: 0.9, to: &report)
        add("full durable save, file descriptor", .saveFile, limit: full, target: nil, to: &report)
        add("unchanged save, whole image given", .saveUnchanged, limit: hash, target: 0.6, to: &report)
        let percent = decimals(report.dirtyPercent, report.dirtyPercent < 1 ? 2 : 0)
        add("\(percent) % scattered dirty, whole image given", .saveDirty, limit: hash, target: nil, to: &report)
        if let best = samples.best(.saveDirtyPages) {
            report.results.append(
                .init(
                    name: "\(percent) % scattered dirty, these pages alone", figure: decimals(best * 1000, 1) + " ms",
                    roundsSeconds: samples.seconds[.saveDirtyPages]))
        }
    }

    private func addReads(_ report: inout BenchReport) throws {
        add("restore to resident memory", .restoreResident, limit: binding([(.decode, "decode")]), target: 0.7, to: &report)
        add("restore to fresh memory", .restoreFresh, limit: binding([(.firstTouch, "first touch")]), target: 0.9, to: &report)
        if let decode = samples.best(.decode), let touch = samples.best(.firstTouch) {
            let both = (seconds: decode + touch, name: "touch, then decode \(decimals(rate(imageBytes, decode + touch), 2)) GB/s")
            add("  the same against both limits", .restoreFresh, limit: both, target: nil, to: &report)
        }
        addVerify(&report)
        addLatencies(&report)
        for (item, name) in [(BenchItem.open, "open (median)"), (.openSparse, "open of a sparse 1 TiB store (median)")] {
            guard let median = samples.median(item) else { continue }
            report.results.append(.init(name: name, figure: decimals(median * 1e6, 0) + " us", roundsSeconds: samples.seconds[item]))
        }
        if let median = samples.median(.commitEmpty) {
            report.results.append(
                .init(
                    name: "commit of an empty checkpoint (median)", figure: decimals(median * 1e3, 2) + " ms",
                    limit: "\(counted(samples.emptyCommit.flushes, "flush"))".replacing("flushs", with: "flushes")
                        + ", \(counted(samples.emptyCommit.writes, "write"))",
                    roundsSeconds: samples.seconds[.commitEmpty]))
        }
    }

    private func addVerify(_ report: inout BenchReport) {
        guard let best = samples.best(.verify), let read = samples.best(.mediumRead), let hash = samples.best(.hashStored) else { return }
        let figure = rate(samples.verifiedBytes, best)
        let (readRate, hashRate) = (rate(units.packedSpan, read), rate(units.packedBytes, hash))
        let limit = min(readRate, hashRate)
        report.results.append(
            .init(
                name: "verify (of stored bytes)", figure: decimals(figure, 2) + " GB/s", gigabytesPerSecond: figure,
                limit: "\(readRate < hashRate ? "medium read" : "XXH3 of stored") \(decimals(limit, 2)) GB/s", share: figure / limit,
                target: ">= 70 %", isMet: figure / limit >= 0.7, roundsSeconds: samples.seconds[.verify]))
    }

    private func addLatencies(_ report: inout BenchReport) {
        let rows: [(Double, String, Double?)] = [(50, "p50", 20), (99, "p99", 60), (99.9, "p99.9", nil)]
        for (percentile, name, most) in rows {
            let microseconds = Double(samples.pageReads.valueAtPercentile(percentile)) / 1000
            report.results.append(
                .init(
                    name: "random page read, \(name)", figure: decimals(microseconds, 1) + " us",
                    target: most.map { "<= \(decimals($0, 0)) us" }, isMet: most.map { microseconds <= $0 }))
        }
    }

    private func addSpace(_ report: inout BenchReport) {
        let memory = Double(samples.saveMemoryBytes)
        let stored = Double(samples.full.runBytes) / Double(max(units.packedBytes, 1))
        let rows: [(String, String, String, Bool)] = [
            ("private memory of a save", readable(bytes: memory), "<= 64 MiB", memory <= Double(64 << 20)),
            ("stored runs / LZ4 of non-zero pages", decimals(stored, 4) + " x", "<= 1.02 x", stored <= 1.02),
            (
                "metadata of the full save", decimals(samples.full.metadataShare * 100, 2) + " % of runs", "<= 1.5 %",
                samples.full.metadataShare <= 0.015
            ),
            (
                "metadata of the dirty save", decimals(samples.dirty.metadataShare * 100, 2) + " % of runs", "<= 10 %",
                samples.dirty.metadataShare <= 0.1
            ),
        ]
        for (name, figure, target, isMet) in rows {
            report.results.append(.init(name: name, figure: figure, target: target, isMet: isMet))
        }
    }
}

extension BenchReport.Machine {
    /// The machine that this runs on, as far as it says.
    init() {
        var name = utsname()
        unsafe uname(&name)
        kernel = unsafe withUnsafeBytes(of: &name.release) { unsafe String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) }
        cores = Int(sysconf(Int32(_SC_NPROCESSORS_ONLN)))
        memoryBytes = Int(sysconf(Int32(_SC_PHYS_PAGES))) * Int(sysconf(Int32(_SC_PAGESIZE)))
        let lines = (try? String(contentsOfFile: "/proc/cpuinfo", encoding: .utf8))?.split(separator: "\n") ?? []
        let model = lines.first { $0.hasPrefix("model name") }?.split(separator: ":").last
        processor = model.map { $0.drop { $0 == " " } }.map(String.init) ?? "unknown processor"
    }
}

/// "1.23".
func decimals(_ value: Double, _ digits: Int) -> String {
    guard value.isFinite else { return "\(value)" }
    let scale = (0..<digits).reduce(1) { product, _ in product * 10 }
    let scaled = Int((abs(value) * Double(scale)).rounded())
    let sign = value < 0 && scaled != 0 ? "-" : ""
    guard digits > 0 else { return "\(sign)\(scaled)" }
    let rest = String(scaled % scale)
    return "\(sign)\(scaled / scale).\(String(repeating: "0", count: digits - rest.count))\(rest)"
}
