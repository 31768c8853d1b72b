// The image cut up and packed in the simplest way: what the limits are measured with.
//
// Invariants:
// - Units hold the pages that are not zero, in order, 64 KiB each, the last one perhaps less.
// - Packed units start at multiples of 64 bytes, as stored runs do.

import PageCodec
import Units

/// The image's non-zero pages in units of 64 KiB, and these packed by LZ4.
final class BenchUnits: Sendable {
    /// Where one unit is.
    struct Unit: Sendable {
        /// Its pages in the image.
        var pages: [Int]
        /// Where its packed form starts in `packed`.
        var offset: Int
        /// How long that is.
        var length: Int
        /// True when LZ4 did not make it smaller.
        var isRaw: Bool
        var byteCount: Int { pages.count * pageSize }
    }
    let units: [Unit]
    let packed: BenchMemory
    /// Bytes of the packed units without the space between them.
    let packedBytes: Int
    /// Bytes of `packed` that are used, rounded up to a MiB: what is written to the medium to learn its limit.
    let packedSpan: Int
    let nonZeroPages: Int

    static let unitBytes = pagesPerRun * pageSize

    init(_ image: BenchImage) throws {
        var nonZero: [Int] = []
        for page in 0..<image.pageCount where unsafe !isZero(image.memory.piece(page * pageSize..<(page + 1) * pageSize)) {
            nonZero.append(page)
        }
        let gathered = try BenchMemory(count: Self.unitBytes, isTouched: true)
        let packed = try BenchMemory(count: image.memory.count + nonZero.count / pagesPerRun * 64 + (2 << 20), isTouched: false)
        var units: [Unit] = []
        var compressor = RunCompressor()
        var offset = 0
        var total = 0
        for start in stride(from: 0, to: nonZero.count, by: pagesPerRun) {
            let pages = Array(nonZero[start..<min(start + pagesPerRun, nonZero.count)])
            let input = unsafe Self.gather(pages[...], image, gathered)
            let room = unsafe packed.writablePiece(offset..<offset + input.count)
            let compressed = unsafe compressor.compress(input, into: room)
            if compressed == nil { unsafe room.copyMemory(from: input) }
            let length = compressed ?? input.count
            units.append(Unit(pages: pages, offset: offset, length: length, isRaw: compressed == nil))
            total += length
            offset = (offset + length + 63) / 64 * 64
        }
        self.units = units
        self.packed = packed
        packedBytes = total
        packedSpan = max((offset + (1 << 20) - 1) >> 20, 1) << 20
        nonZeroPages = nonZero.count
    }

    /// The pages of a unit as one piece: in place when they follow each other.
    static func gather(_ pages: ArraySlice<Int>, _ image: BenchImage, _ buffer: BenchMemory) -> UnsafeRawBufferPointer {
        let first = pages[pages.startIndex]
        if pages[pages.endIndex - 1] - first == pages.count - 1 {
            return unsafe image.memory.piece(first * pageSize..<(first + pages.count) * pageSize)
        }
        for (index, page) in pages.enumerated() {
            let target = unsafe buffer.writablePiece(index * pageSize..<(index + 1) * pageSize)
            unsafe target.copyMemory(from: image.memory.piece(page * pageSize..<(page + 1) * pageSize))
        }
        return unsafe buffer.piece(0..<pages.count * pageSize)
    }
}
