// From pages to a stored run: header, page list, compressed payload, checksum (format, 5.1).

import PageCodec
import StoreFormat
import Units

enum RunEncoding {
    /// Writes header and payload of a run into `block`, which must have room for the pages as they are. Returns the run's length.
    static func fill(
        _ block: UnsafeMutableRawBufferPointer, _ payload: UnsafeRawBufferPointer, _ pages: [UInt16], key: RegionKey, span: SpanIndex,
        _ compressor: inout RunCompressor
    ) -> Int {
        let payloadOffset = PageRunHeader.payloadOffset(pageCount: pages.count)
        let target = unsafe UnsafeMutableRawBufferPointer(rebasing: block[payloadOffset..<payloadOffset + payload.count])
        var codec = RunCodec.raw
        var length = payload.count
        if let compressed = unsafe compressor.compress(payload, into: target) {
            codec = .lz4
            length = compressed
        } else {
            unsafe target.copyMemory(from: payload)
        }
        unsafe PageRunHeader(regionKey: key, span: span, codec: codec, keyID: 0, pages: pages).encode(into: block)
        return payloadOffset + length
    }

    /// Seals the run of `length` bytes that stands in the block begun last, and ends that. Returns the pointer to it.
    static func finish(
        _ block: UnsafeMutableRawBufferPointer, _ length: Int, pageCount: Int, birth: BlockBirth, _ appender: SegmentAppender
    ) -> BlockPointer {
        let isRaw = length == PageRunHeader.payloadOffset(pageCount: pageCount) + pageCount * pageSize
        let checksum = unsafe Block.seal(UnsafeMutableRawBufferPointer(rebasing: block[0..<length]), kind: .run, birth: birth)
        let place = appender.endBlock(length, live: UInt32(pageCount))
        return BlockPointer(
            segment: place.segment, offset: place.offset, storedLength: UInt32(length), kind: .run, codec: isRaw ? .raw : .lz4, keyID: 0,
            birth: birth, checksum: checksum)
    }
}
