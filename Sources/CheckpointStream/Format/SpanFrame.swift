// Pages of one span of a region, as runs: Formats/STREAM.md 4.3.
//
// Invariants:
// - No page is listed twice in a frame, and none behind the region's end.
// - A payload is decoded only after the frame's chain value has been found right.

import CheckpointStore
import Glibc
import PageCodec
import StoreFormat
import Units

/// The layout of a span frame.
enum SpanFrame {
    static let fixedBytes = 16
    /// What can stand in front of the payloads: 256 ranges of zeros, 512 runs of a page.
    static let longestHead = fixedBytes + 4 * (pagesPerSpan / 2) + (8 + 2) * pagesPerSpan
    static let subject = "span frame"

    /// The region's index and the span's first page.
    static func place(_ bytes: RawSpan) throws(FormatError) -> (region: Int, firstPage: PageIndex) {
        try bytes.require(fixedBytes, subject)
        try check(bytes.u64(8) % UInt64(pagesPerSpan) == 0 && bytes.u64(8) < 1 << 51, subject, "a span that can't be")
        return (Int(bytes.u16(0)), PageIndex(bytes.u64(8)))
    }

    /// How many pages the runs have, and how many have become zero, by the frame's head.
    static func counts(_ bytes: RawSpan) throws(FormatError) -> (written: PageCount, zeroed: PageCount) {
        var position = fixedBytes
        var (written, zeroed) = (0, 0)
        for _ in 0..<bytes.u16(4) {
            try bytes.require(position + 4, subject)
            zeroed += Int(bytes.u16(position + 2))
            position += 4
        }
        for _ in 0..<bytes.u16(2) {
            try bytes.require(position + 8, subject)
            written += Int(bytes.u8(position))
            position += 8 + 2 * Int(bytes.u8(position))
        }
        return (PageCount(written), PageCount(zeroed))
    }
}

/// A frame's payload in memory that is used again.
struct FramePayload: Sendable {
    var kind: FrameKind
    let buffer: AlignedBuffer
    var range: Range<Int>
    /// Whether the sender's store had each run as it is here.
    var storedRuns = 0
    var encodedRuns = 0
}

/// Makes span frames. One thread at a time.
final class SpanFrameEncoder {
    private let pages = AlignedBuffer(count: pagesPerSpan * pageSize)
    private let gathered = AlignedBuffer(count: pagesPerRun * pageSize)
    private var compressor = RunCompressor()

    /// How large a buffer a frame needs.
    static let bufferBytes = SpanFrame.longestHead + pagesPerSpan * pageSize

    /// The frame of a span's changes, in `buffer`.
    func encode(_ span: ChangedSpan, region: Int, into buffer: AlignedBuffer) throws(StoreError) -> FramePayload {
        var runs: [(pages: [UInt16], codec: RunCodec, byteCount: Int)] = []
        // Payloads come first, behind room for the longest head; the head then ends where they begin.
        var end = SpanFrame.longestHead
        let rest = unsafe try span.takeRuns(into: pages.bytes) { list, codec, payload in
            unsafe UnsafeMutableRawBufferPointer(rebasing: buffer.bytes[end..<end + payload.count]).copyMemory(from: payload)
            end += payload.count
            runs.append((list, codec, payload.count))
        }
        let storedRuns = runs.count
        for start in stride(from: 0, to: rest.count, by: pagesPerRun) {
            let list = Array(rest[start..<min(start + pagesPerRun, rest.count)])
            let target = unsafe UnsafeMutableRawBufferPointer(rebasing: buffer.bytes[end..<end + list.count * pageSize])
            let (codec, count) = unsafe pack(list, into: target)
            end += count
            runs.append((list, codec, count))
        }
        let head = Self.head(span, region, runs)
        let start = SpanFrame.longestHead - head.count
        unsafe UnsafeMutableRawBufferPointer(rebasing: buffer.bytes[start..<SpanFrame.longestHead]).copyBytes(from: head)
        return FramePayload(
            kind: .span, buffer: buffer, range: start..<end, storedRuns: storedRuns, encodedRuns: runs.count - storedRuns)
    }

    private static func head(
        _ span: ChangedSpan, _ region: Int, _ runs: [(pages: [UInt16], codec: RunCodec, byteCount: Int)]
    ) -> [UInt8] {
        var writer = ByteWriter(length: SpanFrame.longestHead)
        writer.put(UInt16(region))
        writer.put(UInt16(runs.count))
        writer.put(UInt16(span.zeroed.count))
        writer.put(UInt16(0))
        writer.put(span.firstPage)
        for range in span.zeroed {
            writer.put(UInt16(range.lowerBound))
            writer.put(UInt16(range.count))
        }
        for run in runs {
            writer.put(UInt8(run.pages.count))
            writer.put(run.codec.rawValue)
            writer.put(UInt16(0))
            writer.put(UInt32(run.byteCount))
            for page in run.pages { writer.put(page) }
        }
        return writer.bytes
    }

    /// Compresses pages of the span, or takes them as they are where that gains nothing.
    private func pack(_ list: [UInt16], into target: UnsafeMutableRawBufferPointer) -> (RunCodec, Int) {
        for (index, page) in list.enumerated() {
            unsafe memcpy(gathered.base + index * pageSize, pages.base + Int(page) * pageSize, pageSize)
        }
        let source = unsafe UnsafeRawBufferPointer(rebasing: UnsafeRawBufferPointer(gathered.bytes)[0..<list.count * pageSize])
        if let count = unsafe compressor.compress(source, into: target) { return (.lz4, count) }
        unsafe target.copyMemory(from: source)
        return (.raw, source.count)
    }
}

/// Reads span frames. One thread at a time.
final class SpanFrameDecoder {
    /// The pages of the span: page q at q * 4096.
    let pages = AlignedBuffer(count: pagesPerSpan * pageSize)
    private let run = AlignedBuffer(count: pagesPerRun * pageSize)

    /// What a frame has.
    struct Content {
        var firstPage: PageIndex
        /// Ascending; their bytes are in `pages`.
        var given: [UInt16]
        /// Ascending.
        var zeros: [Range<Int>]
    }

    /// Decodes a frame, whose chain value was right.
    /// - Throws: a rule of the format is broken: the sender's fault, not the line's.
    func decode(_ frame: UnsafeRawBufferPointer) throws(FormatError) -> Content {
        let bytes = unsafe frame.bytes
        var seen = [Bool](repeating: false, count: pagesPerSpan)
        func take(_ range: Range<Int>) throws(FormatError) {
            try check(range.upperBound <= pagesPerSpan && !seen[range].contains(true), SpanFrame.subject, "a page that is listed twice")
            for page in range { seen[page] = true }
        }
        var content = Content(firstPage: try SpanFrame.place(bytes).firstPage, given: [], zeros: [])
        let (runCount, zeroCount) = (Int(bytes.u16(2)), Int(bytes.u16(4)))
        var position = SpanFrame.fixedBytes
        try bytes.require(position + 4 * zeroCount, SpanFrame.subject)
        for _ in 0..<zeroCount {
            let first = Int(bytes.u16(position))
            let range = first..<first + Int(bytes.u16(position + 2))
            try check(!range.isEmpty && first >= (content.zeros.last?.upperBound ?? 0), SpanFrame.subject, "zeros out of order")
            try take(range)
            content.zeros.append(range)
            position += 4
        }
        let runs = try runs(bytes, runCount, at: &position)
        for run in runs {
            for page in run.pages { try take(Int(page)..<Int(page) + 1) }
            try bytes.require(position + run.byteCount, SpanFrame.subject)
            try unsafe decode(run, UnsafeRawBufferPointer(rebasing: frame[position..<position + run.byteCount]))
            content.given += run.pages
            position += run.byteCount
        }
        try bytes.requireExactly(position, SpanFrame.subject)
        content.given.sort()
        return content
    }

    private struct Run {
        var pages: [UInt16]
        var codec: RunCodec
        var byteCount: Int
    }

    private func runs(_ bytes: RawSpan, _ count: Int, at position: inout Int) throws(FormatError) -> [Run] {
        try check(count <= pagesPerSpan, SpanFrame.subject, "\(count) runs")
        var runs: [Run] = []
        for _ in 0..<count {
            try bytes.require(position + 8, SpanFrame.subject)
            let pageCount = Int(bytes.u8(position))
            guard (1...pagesPerRun).contains(pageCount), let codec = RunCodec(rawValue: bytes.u8(position + 1)) else {
                throw FormatError(.badField, subject: SpanFrame.subject, reason: "a run of \(pageCount) pages, codec \(bytes.u8(position + 1))")
            }
            let byteCount = Int(bytes.u32(position + 4))
            try check(
                codec == .raw ? byteCount == pageCount * pageSize : byteCount > 0 && byteCount < pageCount * pageSize, SpanFrame.subject,
                "a run of \(byteCount) bytes for \(pageCount) pages")
            position += 8
            try bytes.require(position + 2 * pageCount, SpanFrame.subject)
            let list = (0..<pageCount).map { bytes.u16(position + 2 * $0) }
            try check(
                zip(list, list.dropFirst()).allSatisfy { $0 < $1 } && list[pageCount - 1] < pagesPerSpan, SpanFrame.subject,
                "pages of a run out of order")
            position += 2 * pageCount
            runs.append(Run(pages: list, codec: codec, byteCount: byteCount))
        }
        return runs
    }

    private func decode(_ run: Run, _ payload: UnsafeRawBufferPointer) throws(FormatError) {
        let count = run.pages.count
        let isRow = Int(run.pages[count - 1]) - Int(run.pages[0]) == count - 1
        let start = isRow ? unsafe pages.base + Int(run.pages[0]) * pageSize : unsafe self.run.base
        let target = unsafe UnsafeMutableRawBufferPointer(start: start, count: count * pageSize)
        switch run.codec {
        case .raw: unsafe target.copyMemory(from: payload)
        case .lz4:
            try check(unsafe decompress(payload, into: target), SpanFrame.subject, "a run that does not decode to its \(count) pages")
        }
        guard !isRow else { return }
        for (index, page) in run.pages.enumerated() {
            unsafe memcpy(pages.base + Int(page) * pageSize, start + index * pageSize, pageSize)
        }
    }
}
