import CLinux
import CheckpointCore
@testable import DiskCapture
import Glibc
import Testing
import Units

@Suite struct WriteLogTests {
    private static let lead = Instant.wallClockLeadNanoseconds

    /// A record as the plugin writes it, stamped `microsecond` after the wall clock's start.
    private static func record(
        _ sequence: UInt64, at microsecond: UInt64, offset: UInt64, length: UInt64, position: UInt64?, lead: Int64 = lead
    ) -> [UInt8] {
        let realtime = microsecond * 1000
        let words = [
            position == nil ? 2 : 1, sequence, offset, length, position ?? 0, realtime, UInt64(bitPattern: Int64(realtime) - lead), 0,
        ]
        return words.flatMap { word in (0..<8).map { UInt8(truncatingIfNeeded: word >> (8 * $0)) } }
    }

    private static let start = UInt64(Instant.wallClockMicroseconds)

    private static func log(_ index: [UInt8], until microseconds: UInt64) throws -> WriteLog {
        let data = try LogFile(in: "/tmp")
        let bytes = (0..<8192).map { UInt8(truncatingIfNeeded: $0 / 512 + 1) }
        _ = unsafe ck_write_at(data.descriptor, bytes, bytes.count, 0)
        return try WriteLog(
            index: index, data: data, disks: [.mebibytes(4)], untilMicroseconds: Int64(start + microseconds), wallClockLead: lead)
    }

    @Test func `writes until the instant count, the later one where they overlap`() throws {
        let index =
            Self.record(0, at: Self.start + 1, offset: 1024, length: 1024, position: 0)
            + Self.record(1, at: Self.start + 5, offset: 1536, length: 512, position: nil)
            + Self.record(2, at: Self.start + 6, offset: 0, length: 4096, position: 4096)
        for (until, wanted) in [(4, [9, 9, 1, 2]), (5, [9, 9, 1, 0]), (6, [9, 10, 11, 12])] as [(UInt64, [UInt8])] {
            let log = try Self.log(index, until: until)
            var page = [UInt8](repeating: 9, count: 2048)
            try unsafe page.withUnsafeMutableBytes { unsafe try log.patch($0, at: 0, disk: 0) }
            #expect(stride(from: 0, to: 2048, by: 512).map { page[$0] } == wanted)
            #expect(log.pages(disk: 0, span: 0).ranges == [PageIndex(UInt64(0))..<PageIndex(UInt64(1))])
        }
    }

    @Test func `a clock that was set is an error that says to try again`() throws {
        for lead in [Self.lead + 1_100_000, Self.lead - 1_100_000] {
            let index = Self.record(0, at: Self.start, offset: 0, length: 512, position: 0, lead: lead)
            let error = #expect(throws: EngineError.self) { try Self.log(index, until: 10) }
            #expect(error?.code == .ioFailed && error?.remedy.contains("again") == true)
        }
    }

    @Test func `a log with a gap, a cut record or a write beyond the disk is damaged`() throws {
        let good = Self.record(0, at: Self.start, offset: 0, length: 512, position: 0)
        for index in [
            Self.record(1, at: Self.start, offset: 0, length: 512, position: 0), Array(good.dropLast()),
            Self.record(0, at: Self.start, offset: 4 << 20, length: 512, position: 0),
            Self.record(0, at: Self.start, offset: UInt64.max - 100, length: 512, position: 0),
            Self.record(0, at: Self.start, offset: 0, length: 0, position: 0),
        ] {
            let error = #expect(throws: EngineError.self) { try Self.log(index, until: 10) }
            #expect(error?.code == .corrupt)
        }
    }

    @Test func `sets of pages agree with sets of numbers`() {
        let seed = UInt64.random(in: 0...UInt64.max)
        var generator = SplitMix(state: seed)
        func random() -> (PageRanges, Set<UInt64>) {
            let ranges = (0..<Int.random(in: 0...8, using: &generator)).map { _ in
                let start = UInt64.random(in: 0...60, using: &generator)
                return start..<start + UInt64.random(in: 0...9, using: &generator)
            }
            return (PageRanges(coveringBytes: ranges.map { $0.lowerBound * 4096..<$0.upperBound * 4096 }), Set(ranges.joined()))
        }
        func numbers(_ ranges: [Range<PageIndex>]) -> Set<UInt64> { Set(ranges.map { $0.lowerBound.rawValue..<$0.upperBound.rawValue }.joined()) }
        var wrong: [Int] = []
        for round in 0..<2000 {
            let ((a, inA), (b, inB)) = (random(), random())
            let pieces = a.pieces(of: PageCount(16), filling: PageCount(2))
            let filled = numbers(pieces)
            let isRight =
                numbers(a.ranges) == inA && numbers(a.union(b).ranges) == inA.union(inB) && numbers(a.intersection(b).ranges) == inA.intersection(inB)
                && numbers(a.subtracting(b).ranges) == inA.subtracting(inB) && filled.isSuperset(of: inA)
                && pieces.allSatisfy {
                    let (first, last) = ($0.lowerBound.rawValue, $0.upperBound.rawValue - 1)
                    return first / 16 == last / 16 && inA.contains(first) && inA.contains(last)
                }
            if !isRight { wrong.append(round) }
        }
        #expect(wrong == [], "seed \(seed)")
    }
}
