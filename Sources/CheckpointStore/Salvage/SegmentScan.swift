// Finding blocks without the trees: FORMAT.md 4.3.
//
// Invariants:
// - A block is found only where its own checksum says that it is whole.
// - Memory: one block's bytes, and a list of what one segment has.

import Media
import PageCodec
import StoreFormat
import Units

/// A sound block, and where it stands.
struct FoundBlock: Sendable {
    var segment: SegmentIndex
    var offset: SegmentOffset
    var header: BlockHeader
    var codec: RunCodec

    /// The pointer that names it; for kinds that pointers name.
    var pointer: BlockPointer {
        BlockPointer(
            segment: segment, offset: offset, storedLength: header.storedLength, kind: header.kind, codec: codec, birth: header.birth,
            checksum: header.checksum)
    }
}

/// Reads segments block by block. Confined to one thread.
final class SegmentScan {
    private let medium: any Medium
    private let geometry: Geometry
    private let buffer = AlignedBuffer(count: PageRunHeader.maximumLength + pageSize)
    /// Bytes that the medium failed to read.
    private(set) var unreadableBytes = ByteCount.zero

    init(medium: any Medium, geometry: Geometry) {
        self.medium = medium
        self.geometry = geometry
    }

    /// Calls `body` with every sound block of a segment and its bytes, in the order of their places, and `table` before with the
    /// bytes of forwarding tables.
    func forEachBlock<E: Error>(
        in segment: SegmentIndex, table: (RawSpan) throws(E) -> Void, _ body: (FoundBlock, RawSpan) throws(E) -> Void
    ) throws(E) {
        let start = geometry.offset(of: segment)
        let size = Int(geometry.segmentSize)
        var position = 0
        while position + BlockHeader.encodedLength <= size {
            if position % pageSize == 0, isEmptyPage(start + ByteCount(position)) {
                position += pageSize
                continue
            }
            if let length = load(start, position, limit: size - position) {
                let bytes = unsafe UnsafeRawBufferPointer(rebasing: buffer.bytes[0..<length]).bytes
                if let header = try? Block.peek(bytes) {
                    if header.kind == .forwardingTable { try table(bytes) }
                    let codec = header.kind == .run ? RunCodec(rawValue: unsafe buffer.bytes[49]) ?? .raw : .raw
                    try body(FoundBlock(segment: segment, offset: SegmentOffset(position), header: header, codec: codec), bytes)
                    position = roundUp(position + length, to: blockAlignment)
                    continue
                }
            }
            // Damaged blocks are passed by in the smallest steps: others may follow at once.
            position += blockAlignment
        }
    }

    /// True for a page of zeros, and for one that the medium fails to read.
    private func isEmptyPage(_ place: MediumOffset) -> Bool {
        let page = unsafe UnsafeMutableRawBufferPointer(rebasing: buffer.bytes[0..<pageSize])
        guard unsafe (try? medium.read(at: place, into: page)) != nil else {
            unreadableBytes += ByteCount(pageSize)
            return true
        }
        return unsafe isZero(UnsafeRawBufferPointer(page))
    }

    /// Copies what may be a block into the buffer. Returns its length; nil when its header says that it is none.
    private func load(_ segment: MediumOffset, _ position: Int, limit: Int) -> Int? {
        let place = segment + ByteCount(position)
        let head = unsafe UnsafeMutableRawBufferPointer(rebasing: buffer.bytes[0..<BlockHeader.encodedLength])
        guard unsafe (try? medium.read(at: place, into: head)) != nil else { return nil }
        let header = unsafe UnsafeRawBufferPointer(head).bytes
        guard let length = announcedLength(header), length <= limit else { return nil }
        let whole = unsafe UnsafeMutableRawBufferPointer(rebasing: buffer.bytes[0..<length])
        return unsafe (try? medium.read(at: place, into: whole)) != nil ? length : nil
    }

    private func announcedLength(_ header: RawSpan) -> Int? {
        let magic = UInt32(littleEndian: unsafe header.unsafeLoadUnaligned(fromByteOffset: 16, as: UInt32.self))
        let length = Int(UInt32(littleEndian: unsafe header.unsafeLoadUnaligned(fromByteOffset: 20, as: UInt32.self)))
        guard let kind = BlockKind(magic: magic), length >= BlockHeader.encodedLength, length <= kind.maximumLength else { return nil }
        return length
    }
}
