// Compaction beside copying as many bytes: rounds of both by turns, on one medium.
//
// Invariants:
// - What is copied is what saves write to the medium, was written in the same way, and is read back for the first time: from the medium, as
//   what compaction reads.
// - Copying is sequential: a MiB is read and written after the other, then flushed. It neither checks nor looks for anything.

import CheckpointStore
import Media
import PageCodec
import StoreFormat
import Units

/// Measures compaction alone. Confined to one thread.
struct TimeBenchCompaction {
    let scratch: BenchScratch
    let image: BenchImage
    let units: BenchUnits
    let threads: Int
    let rounds: Int
    let say: (String) -> Void

    private static let pieceBytes = 1 << 20

    func measure() throws -> TimeBenchCompactionReport {
        var report = TimeBenchCompactionReport(medium: scratch.locator.description, threads: threads, image: image, units: units)
        var pages = TimeBenchPages(image, units, seed: 43)
        for round in 0..<rounds {
            say("round \(round + 1) of \(rounds)")
            // What is moved is half of what is stored; it is known exactly afterwards, and hardly changes.
            let expected = report.rounds.last?.movedBytes ?? units.packedBytes / 2
            var one: TimeBenchCompactionReport.Round
            if round % 2 == 0 {
                one = try compact(&pages)
                one.copy = try copy(one.movedBytes)
                one.copiedBytes = one.movedBytes
            } else {
                let time = try copy(expected)
                one = try compact(&pages)
                (one.copy, one.copiedBytes) = (time, expected)
            }
            report.rounds.append(one)
        }
        return report
    }

    /// A checkpoint of which every other run is dead, since its child has written that anew, compacted.
    private func compact(_ pages: inout TimeBenchPages) throws -> TimeBenchCompactionReport.Round {
        try scratch.makeStore().close()
        let medium = CountingMedium(try openMedium(scratch.locator, access: .readWrite))
        let store = try CheckpointStore.open(medium)
        defer { store.close() }
        let work = BenchWork(store: store, image: image, threads: threads)
        _ = try work.save("first", .memory(isStable: true))
        let changed = units.units.enumerated().filter { $0.offset % 2 == 1 }.flatMap { $0.element.pages }
        pages.change(changed)
        _ = try work.save("second", parent: "first", .pages(changed))
        if let obstacle = try store.delete(["first"]).obstacle { throw obstacle }
        let before = medium.flushesAndWrites
        var report = CompactionReport()
        let time = try TimeBenchTime { report = try store.compact(CompactionOptions(parallelism: threads)) }
        if let obstacle = report.obstacle { throw obstacle }
        let after = medium.flushesAndWrites
        return .init(
            movedBytes: report.movedBytes.int, commits: report.commits, flushes: after.flushes - before.flushes, writes: after.writes - before.writes,
            compaction: time, copy: time, copiedBytes: 0, amplificationBefore: report.before.amplification,
            amplificationAfter: report.after.amplification)
    }

    /// Copies `count` bytes of the packed image from one place of the medium to another.
    private func copy(_ count: Int) throws -> TimeBenchTime {
        let (medium, place) = try scratch.bareMedium()
        defer { medium.close() }
        let span = (count + Self.pieceBytes - 1) / Self.pieceBytes * Self.pieceBytes
        let target = place + ByteCount(span)
        for start in stride(from: 0, to: count, by: Self.pieceBytes) {
            // The packed image may be shorter than what was moved, index included.
            let from = start % (units.packedSpan - Self.pieceBytes + 1)
            unsafe try medium.write(at: place + ByteCount(start), units.packed.piece(from / pageSize * pageSize..<from / pageSize * pageSize + Self.pieceBytes))
        }
        try medium.flush()
        try medium.reserve(at: target, ByteCount(span))
        let buffer = try BenchMemory(count: Self.pieceBytes, isTouched: true)
        return try TimeBenchTime {
            for start in stride(from: 0, to: count, by: Self.pieceBytes) {
                let length = min(Self.pieceBytes, count - start)
                unsafe try medium.read(at: place + ByteCount(start), into: buffer.writablePiece(0..<length))
                unsafe try medium.write(at: target + ByteCount(start), buffer.piece(0..<length))
            }
            try medium.flush()
        }
    }
}

/// What `ckstore bench-time --only-compaction` prints.
struct TimeBenchCompactionReport: Encodable {
    struct Round: Encodable {
        var movedBytes: Int
        var commits: Int
        /// Calls of the medium by compaction.
        var flushes: Int
        var writes: Int
        var compaction: TimeBenchTime
        var copy: TimeBenchTime
        var copiedBytes: Int
        var amplificationBefore: Double
        var amplificationAfter: Double

        /// Bytes moved in a second by bytes copied in a second.
        var share: Double { (Double(movedBytes) / compaction.seconds) / (Double(copiedBytes) / copy.seconds) }
    }
    var medium: String
    var threads: Int
    var image: BenchReport.Image
    var machine = BenchReport.Machine()
    var rounds: [Round] = []
    /// Of the rounds: the median, the lowest and the highest share.
    var medianShare: Double { sortedShares[sortedShares.count / 2] }
    private var sortedShares: [Double] { rounds.map(\.share).sorted() }

    init(medium: String, threads: Int, image: BenchImage, units: BenchUnits) {
        self.medium = medium
        self.threads = threads
        self.image = .init(image, units)
    }

    private enum Key: CodingKey { case medium, threads, image, machine, rounds, medianShare, lowestShare, highestShare }

    func encode(to encoder: any Encoder) throws {
        var values = encoder.container(keyedBy: Key.self)
        try values.encode(medium, forKey: .medium)
        try values.encode(threads, forKey: .threads)
        try values.encode(image, forKey: .image)
        try values.encode(machine, forKey: .machine)
        try values.encode(rounds, forKey: .rounds)
        try values.encode(medianShare, forKey: .medianShare)
        try values.encode(sortedShares.first, forKey: .lowestShare)
        try values.encode(sortedShares.last, forKey: .highestShare)
    }

    var text: String {
        var table = Table(columns: [
            ("ROUND", .right), ("MOVED", .right), ("MB/s", .right), ("COPIED MB/s", .right), ("SHARE", .right), ("COMPUTING ms", .right),
            ("COPYING ms", .right), ("COMMITS", .right), ("FLUSHES", .right), ("WRITES", .right), ("AMPLIFICATION", .right),
        ])
        table.rows = rounds.enumerated().map { number, one in
            [
                "\(number + 1)", readable(ByteCount(one.movedBytes)), rate(one.movedBytes, one.compaction), rate(one.copiedBytes, one.copy),
                percent(one.share), decimals(one.compaction.processorSeconds * 1000, 0), decimals(one.copy.processorSeconds * 1000, 0),
                "\(one.commits)", "\(one.flushes)", "\(one.writes)",
                "\(decimals(one.amplificationBefore, 2)) -> \(decimals(one.amplificationAfter, 2))",
            ]
        }
        let lowest = sortedShares.first ?? 0, highest = sortedShares.last ?? 0
        return "\(medium), \(counted(threads, "thread")): compaction beside copying as many bytes\n" + table.text
            + "median \(percent(medianShare)), \(percent(lowest)) to \(percent(highest)); the target is 70 %: \(medianShare >= 0.7 ? "met" : "NOT MET")\n"
    }

    private func rate(_ bytes: Int, _ time: TimeBenchTime) -> String { decimals(Double(bytes) / time.seconds / 1e6, 0) }
    private func percent(_ share: Double) -> String { decimals(share * 100, 0) + " %" }
}
