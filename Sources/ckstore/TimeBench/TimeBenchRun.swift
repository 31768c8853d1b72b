// A store that becomes old: one checkpoint after the other, and what things cost at each power of ten.
//
// Invariant: what is measured at a mark is measured beside the machine's own figures, in the same minute.

import CheckpointStore
import Glibc
import Media
import StoreFormat
import Threading
import Units

/// Ages one store and measures it. Confined to one thread.
struct TimeBenchRun {
    let scratch: BenchScratch
    let image: BenchImage
    let units: BenchUnits
    let target: BenchMemory
    let count: Int
    let checkpoints: Int
    let threads: Int
    let say: (String) -> Void
    private var pages: TimeBenchPages
    private var latest: String?
    private var made = 0

    private static let windowRounds = 7
    private static let fullRounds = 2
    private static let restoreRounds = 5
    private static let opens = 21
    private static let smallCommits = 11
    private static let pageReads = 20_000

    init(
        scratch: BenchScratch, image: BenchImage, units: BenchUnits, dirtyPercent: Double, checkpoints: Int, threads: Int,
        say: @escaping (String) -> Void
    ) throws {
        self.scratch = scratch
        self.image = image
        self.units = units
        self.checkpoints = checkpoints
        self.threads = threads
        self.say = say
        target = try BenchMemory(count: image.memory.count, isTouched: true)
        pages = TimeBenchPages(image, units, seed: 31)
        count = pages.count(percent: dirtyPercent)
    }

    /// 10, 100 … and the last one.
    static func marks(_ checkpoints: Int) -> [Int] {
        var marks = Array(sequence(first: 10) { $0 * 10 }.prefix { $0 < checkpoints })
        marks.append(checkpoints)
        return marks
    }

    /// What the marks add to the checkpoints asked for: saves of one percent, and full ones.
    static func extraCheckpoints(_ checkpoints: Int) -> Int { marks(checkpoints).count * windowRounds * 4 }
    static func fullSaves(_ checkpoints: Int) -> Int { marks(checkpoints).count * fullRounds }

    mutating func measure(into report: inout TimeBenchReport) throws {
        try bareMedium(&report)
        let store = try scratch.makeStore()
        defer { store.close() }
        let work = BenchWork(store: store, image: image, threads: threads)
        say("the first checkpoint")
        _ = try work.save("first", .memory(isStable: true))
        let first = try BenchMemory(count: image.memory.count, isTouched: true)
        unsafe first.bytes.copyMemory(from: image.memory.reading)
        latest = "first"
        for mark in Self.marks(checkpoints) {
            let chain = try age(work, to: mark)
            var row = TimeBenchReport.Mark(checkpoints: made)
            row.chain = chain
            say("\(made) checkpoints: saves")
            try saves(work, &row)
            say("\(made) checkpoints: the catalog")
            try catalog(work, &row)
            say("\(made) checkpoints: restores and reads")
            try restores(work, first, &row)
            report.marks.append(row)
        }
        let verified = try work.verify(latest ?? "first")
        report.verifiedBytes = verified.bytes
        let start = monotonicSeconds()
        report.deleteNodesRead = try store.delete(["c-\(made / 2)"]).nodesRead
        report.deleteSeconds = monotonicSeconds() - start
        report.info = TimeBenchReport.Space(try store.info())
        say("compaction")
        report.compaction = try compaction(store)
    }

    /// Deletes every second checkpoint and moves what lives in the segments that have lost something.
    private func compaction(_ store: CheckpointStore) throws -> TimeBenchReport.Compaction {
        let doomed = (1..<made).filter { $0 % 2 == 1 && $0 != made / 2 }.map { "c-\($0)" }
        let (deletionSeconds, besideDeletion) = try deleteBesideSaves(doomed, store)
        var report = CompactionReport()
        let time = try seconds { report = try store.compact(CompactionOptions(targetAmplification: 1.02, minimumDeadShare: 0.05, parallelism: threads)) }
        if let obstacle = report.obstacle { throw obstacle }
        return TimeBenchReport.Compaction(
            deleted: doomed.count, deletionSeconds: deletionSeconds, besideDeletion: besideDeletion, seconds: time, movedBytes: report.movedBytes.int,
            freedSegments: report.freedSegments, amplificationBefore: report.before.amplification,
            amplificationAfter: report.after.amplification)
    }

    /// Deletes `doomed`, 128 at a time, while another handle commits one small checkpoint after the other. Returns how long deleting took, and
    /// each of the commits.
    private func deleteBesideSaves(_ doomed: [String], _ store: CheckpointStore) throws -> (seconds: Double, commits: TimeBenchReport.Spread) {
        let saver = try scratch.open()
        defer { saver.close() }
        let outcome = Lock<Result<Double, any Error>?>(nil)
        let thread = PlainThread {
            let result = Result {
                try seconds {
                    for start in stride(from: 0, to: doomed.count, by: 128) { _ = try store.delete(Array(doomed[start..<min(start + 128, doomed.count)])) }
                }
            }
            outcome.withLock { $0 = result }
        }
        guard let thread else { throw StoreError(.busy, "the system has no thread for the bench", remedy: "End other programs.") }
        var commits: [Double] = []
        let saves = Result {
            while outcome.withLock({ $0 == nil }) {
                let writer = try saver.begin("beside-\(commits.count)", options: WriterOptions(parallelism: 1))
                commits.append(try seconds { try writer.commit() })
            }
        }
        thread.join()
        try saves.get()
        return (try outcome.withLock { $0 }?.get() ?? 0, .init(commits))
    }

    private func bareMedium(_ report: inout TimeBenchReport) throws {
        let limits = BenchLimits(image: image, units: units, target: target, threads: threads)
        let (medium, place) = try scratch.bareMedium()
        defer { medium.close() }
        report.mediumWriteSeconds = try (2...4).map { threads in try limits.mediumWrite(medium, at: place, threads: threads) }.min() ?? 0
        report.memcpySeconds = try (0..<3).map { _ in try limits.memcpy(threads: threads) }.min() ?? 0
    }

    /// Saves until there are at least `mark` checkpoints beside the first one. Returns how long each took.
    private mutating func age(_ work: BenchWork, to mark: Int) throws -> TimeBenchReport.Spread {
        var times: [Double] = []
        while made < mark {
            if made % 10 == 0 { say("checkpoint \(made) of \(checkpoints)") }
            times.append(try save(work, .scattered, isListed: true).seconds)
        }
        return TimeBenchReport.Spread(times)
    }

    /// Changes pages and saves: by the list of them, or by handing over all memory.
    private mutating func save(_ work: BenchWork, _ pattern: TimeBenchPages.Pattern, isListed: Bool) throws -> TimeBenchTime {
        let changed = pages.change(pattern, count: count)
        made += 1
        let name = "c-\(made)"
        defer { latest = name }
        return try TimeBenchTime { _ = try work.save(name, parent: latest, isListed ? .pages(changed) : .memory(isStable: true)) }
    }

    private mutating func saves(_ work: BenchWork, _ row: inout TimeBenchReport.Mark) throws {
        let limits = BenchLimits(image: image, units: units, target: target, threads: threads)
        for round in 0..<Self.windowRounds {
            row.add("hash scan", try TimeBenchTime { _ = try limits.hash() })
            for pattern in TimeBenchPages.Pattern.allCases {
                for isListed in [true, false] {
                    row.add(pattern.rawValue + (isListed ? " listed" : " scanned"), try save(work, pattern, isListed: isListed))
                }
            }
            if round < Self.fullRounds {
                let name = "full-\(row.checkpoints)-\(round)"
                row.add("full", try TimeBenchTime { _ = try work.save(name, .memory(isStable: true)) })
            }
        }
    }

    private func catalog(_ work: BenchWork, _ row: inout TimeBenchReport.Mark) throws {
        for _ in 0..<Self.opens { row.open.append(try seconds { try scratch.open().close() }) }
        for _ in 0..<3 {
            row.list.append(try seconds { _ = try work.store.snapshot().checkpoints() })
            row.names.append(try seconds { _ = try work.store.snapshot().names() })
        }
        for number in 0..<Self.smallCommits {
            row.smallCommit.append(
                try seconds {
                    let writer = try work.store.begin("small-\(row.checkpoints)-\(number)", options: WriterOptions(parallelism: 1))
                    try writer.commit()
                })
        }
    }

    private mutating func restores(_ work: BenchWork, _ first: BenchMemory, _ row: inout TimeBenchReport.Mark) throws {
        guard let latest else { return }
        for round in 0...Self.restoreRounds {
            let old = try TimeBenchTime { _ = try work.restore("first", into: target, isZeroed: false) }
            if round == 0 { try check(target, first, work.store) }
            let new = try TimeBenchTime { _ = try work.restore(latest, into: target, isZeroed: false) }
            if round == 0 { try work.checkRestored(target) }
            // The first of each has the store's mapping to put in place.
            guard round > 0 else { continue }
            row.add("restore first", old)
            row.add("restore latest", new)
        }
        row.readFirst = .init(try work.readPages("first", pages.all, count: Self.pageReads))
        row.readLatest = .init(try work.readPages(latest, pages.all, count: Self.pageReads))
    }

    private func check(_ target: BenchMemory, _ expected: BenchMemory, _ store: CheckpointStore) throws {
        guard unsafe memcmp(target.base, expected.base, expected.count) == 0 else {
            throw StoreError(
                .corrupt, "what was restored is not what was saved", remedy: "This is a defect of ckstore or of the machine.",
                medium: store.medium.name, checkpoint: "first")
        }
    }
}

/// How long something took, and how much computing: the latter changes little where others use the machine at the same time.
struct TimeBenchTime: Encodable {
    var seconds: Double
    /// Of all threads of this process.
    var processorSeconds: Double

    init(_ body: () throws -> Void) rethrows {
        let before = Self.processorTime()
        let start = monotonicSeconds()
        try body()
        seconds = monotonicSeconds() - start
        processorSeconds = Self.processorTime() - before
    }

    private static func processorTime() -> Double {
        var now = timespec()
        unsafe clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now)
        return Double(now.tv_sec) + Double(now.tv_nsec) / 1e9
    }
}
