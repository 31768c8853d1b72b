// A write log, read back: what was written to each disk until the instant of the checkpoint.
//
// Invariants:
// - A log that is accepted has every record, in order, with clocks that did not jump: what it says of the instant is right.
// - Where writes overlap, the later one counts.

import CheckpointCore
import QMP
import Units

/// The writes of all disks until an instant. Immutable; read from any thread.
struct WriteLog: Sendable {
    /// One write.
    struct Write: Sendable {
        /// The bytes of the disk that it changed.
        var range: Range<UInt64>
        /// Where its bytes are in the data file; nil: they are zeros.
        var position: UInt64?
    }

    /// The most that the two clocks may drift apart without the wall clock having been set, in nanoseconds.
    private static let clockTolerance: Int64 = 1_000_000
    private static let recordBytes = 64

    private let data: LogFile
    /// For each disk, by span, the writes that touch it, in order.
    private var spans: [[UInt64: [Write]]]
    /// For each disk, how many writes there were until the instant.
    private(set) var writeCounts: [Int]

    static let spanBytes = UInt64(512 * pageSize)

    init(
        index: [UInt8], data: LogFile, disks: [ByteCount], untilMicroseconds limit: Int64, wallClockLead: Int64
    ) throws(EngineError) {
        self.data = data
        spans = Array(repeating: [:], count: disks.count)
        writeCounts = Array(repeating: 0, count: disks.count)
        guard abs(Instant.wallClockLeadNanoseconds - wallClockLead) <= Self.clockTolerance else { throw Self.clockWasSet }
        guard index.count % Self.recordBytes == 0 else { throw Self.damaged("a record is cut off") }
        var last: UInt64 = 0
        for number in 0..<index.count / Self.recordBytes {
            let record = Record(index[number * Self.recordBytes..<(number + 1) * Self.recordBytes])
            guard record.sequence == UInt64(number), record.disk < disks.count else { throw Self.damaged("record \(number)") }
            let (end, overflow) = record.offset.addingReportingOverflow(record.length)
            guard !overflow, end <= disks[record.disk].rawValue.roundedUpToSector, record.length > 0 else {
                throw Self.damaged("record \(number) reaches beyond its disk")
            }
            let lead = Int64(bitPattern: record.realtime &- record.monotonic)
            guard abs(lead - wallClockLead) <= Self.clockTolerance, record.monotonic >= last else { throw Self.clockWasSet }
            last = record.monotonic
            if Int64(record.realtime / 1000) > limit { break }
            add(Write(range: record.offset..<end, position: record.isZero ? nil : record.position), disk: record.disk)
        }
    }

    private mutating func add(_ write: Write, disk: Int) {
        writeCounts[disk] += 1
        for span in write.range.lowerBound / Self.spanBytes...(write.range.upperBound - 1) / Self.spanBytes {
            spans[disk][span, default: []].append(write)
        }
    }

    /// The pages of a span that were written to.
    func pages(disk: Int, span: UInt64) -> PageRanges {
        let bounds = span * Self.spanBytes..<(span + 1) * Self.spanBytes
        return PageRanges(coveringBytes: (spans[disk][span] ?? []).map { $0.range.clamped(to: bounds) })
    }

    /// The spans among `some` that were written to, in order.
    func spans(disk: Int, within some: ClosedRange<UInt64>) -> [UInt64] { spans[disk].keys.filter(some.contains).sorted() }

    /// Puts what was written over `buffer`, the disk's bytes from `offset` on, all of one span.
    func patch(_ buffer: UnsafeMutableRawBufferPointer, at offset: UInt64, disk: Int) throws(EngineError) {
        guard let writes = spans[disk][offset / Self.spanBytes] else { return }
        let whole = offset..<offset + UInt64(buffer.count)
        for write in writes where write.range.overlaps(whole) {
            let part = write.range.clamped(to: whole)
            let target = unsafe UnsafeMutableRawBufferPointer(
                rebasing: buffer[Int(part.lowerBound - offset)..<Int(part.upperBound - offset)])
            if let position = write.position {
                unsafe try data.read(into: target, at: position + (part.lowerBound - write.range.lowerBound))
            } else {
                unsafe target.initializeMemory(as: UInt8.self, repeating: 0)
            }
        }
    }

    private static func damaged(_ what: String) -> EngineError {
        EngineError(.corrupt, "the log of writes is wrong: \(what)", remedy: "Take the checkpoint again.")
    }

    private static var clockWasSet: EngineError {
        EngineError(
            .ioFailed, "the host's clock was set while the checkpoint was taken, so that nobody can tell which writes came before it",
            remedy: "Take the checkpoint again.")
    }
}

/// One record of the index: see cnbdlog.h.
private struct Record {
    let isZero: Bool
    let disk: Int
    let sequence, offset, length, position, realtime, monotonic: UInt64

    init(_ bytes: ArraySlice<UInt8>) {
        func word(_ index: Int, _ width: Int) -> UInt64 {
            // The plugin writes in the byte order of the machine; all that this runs on have the least significant byte first.
            let start = bytes.startIndex + index
            return bytes[start..<start + width].reversed().reduce(0) { $0 << 8 | UInt64($1) }
        }
        isZero = word(0, 4) == 2
        disk = Int(word(4, 4))
        sequence = word(8, 8)
        offset = word(16, 8)
        length = word(24, 8)
        position = word(32, 8)
        realtime = word(40, 8)
        monotonic = word(48, 8)
    }
}

extension UInt64 {
    /// The next multiple of 512: QEMU's disks end there, whatever their length.
    fileprivate var roundedUpToSector: UInt64 { (self + 511) / 512 * 512 }
}
