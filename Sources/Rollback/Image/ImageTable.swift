// The table of an image: each page's hash, and which of its two locations holds it. Formats/ROLLBACK.md 4.
//
// Invariant: the bytes are always those that the medium gets.

import PageCodec
import Units

/// A table in memory, in the form of the medium. Its owner sees to it that uses don't overlap.
final class ImageTable: Sendable {
    let geometry: ImageGeometry
    let bytes: AlignedBytes
    /// How many pieces of 4096 bytes.
    let chunkCount: PageCount
    private let bitsOffset: Int

    /// All pages zero.
    init(_ geometry: ImageGeometry) {
        self.geometry = geometry
        bytes = AlignedBytes(count: geometry.tableBytes.int)
        chunkCount = PageCount(covering: geometry.tableBytes)
        bitsOffset = geometry.pageCount.int * ImageGeometry.hashBytes
    }

    /// The hash of a page; zero: the page is zero and has no location.
    func hash(_ page: PageIndex) -> Hash128 { bytes.hash(page.int * ImageGeometry.hashBytes) }
    func location(_ page: PageIndex) -> UInt8 { bytes.u8(bitsOffset + page.int / 8) >> UInt8(page.int % 8) & 1 }

    func set(_ page: PageIndex, _ hash: Hash128, location: UInt8) {
        bytes.put(hash, at: page.int * ImageGeometry.hashBytes)
        let mask = UInt8(1) << UInt8(page.int % 8)
        let place = bitsOffset + page.int / 8
        bytes.put(location == 0 ? bytes.u8(place) & ~mask : bytes.u8(place) | mask, at: place)
    }

    /// The chunks that a page's entry lies in.
    func chunks(of page: PageIndex) -> (hash: PageIndex, bit: PageIndex) {
        (PageIndex(page.int * ImageGeometry.hashBytes / pageSize), PageIndex((bitsOffset + page.int / 8) / pageSize))
    }

    /// Makes these chunks equal to another table's.
    func copy(_ chunks: PageRanges, from other: ImageTable) {
        for range in chunks.ranges {
            let place = range.lowerBound.int * pageSize..<range.upperBound.int * pageSize
            unsafe other.bytes.withBytes(place) { unsafe bytes.put($0, at: place.lowerBound) }
        }
    }

    /// Of all bytes.
    var checksum: Hash128 { bytes.hash() }
}

/// The hash that the table has for a page. A page whose own hash is zero by chance would count as a page of zeros: it gets another.
func tableHash(_ page: UnsafeRawBufferPointer) -> Hash128 {
    if unsafe isZero(page) { return .zero }
    let hash = unsafe hash128(page)
    return hash == .zero ? Hash128(low: 1, high: 0) : hash
}
