// Appending blocks of one class to claimed segments.
//
// Invariants:
// - Whole commit units go out once. Only the last, partly filled one is held back, since blocks of this checkpoint
//   follow in it; `flushHeld` may write it early, and it is written again when it is full.
// - The last commit unit of a segment is kept for the commit record.

import Glibc
import Media
import PageCodec
import StoreFormat
import Units

/// A place for the next block of one class, segment after segment. Confined to one thread at a time.
final class SegmentAppender {
    private let store: CheckpointStore
    private let segmentClass: SegmentClass
    private let birth: BlockBirth
    private let queue: WriteQueue
    private let mayUseReserve: Bool
    private let segmentSize: Int
    private let unit: Int

    /// The current segment; its bytes from `written` on stand in `buffer`.
    private var claim: SegmentClaim?
    private var first = 0
    private var position = 0
    private var written = 0
    private var live: UInt32 = 0
    private var buffer: AlignedBuffer?

    /// Segments that are full, their commit record still missing.
    private var full: [SegmentUse] = []
    private(set) var claims: [SegmentClaim] = []

    /// - Parameter mayUseReserve: true for what frees more than it takes.
    init(
        store: CheckpointStore, segmentClass: SegmentClass, id: CheckpointID, queue: WriteQueue, mayUseReserve: Bool = false
    ) {
        self.store = store
        self.segmentClass = segmentClass
        self.queue = queue
        self.mayUseReserve = mayUseReserve
        birth = BlockBirth(id)
        segmentSize = Int(store.geometry.segmentSize)
        unit = Int(store.geometry.commitUnit)
    }

    /// The size of write buffers for a geometry: at least two of the largest blocks.
    static func bufferBytes(_ geometry: Geometry) -> Int { min(Int(geometry.segmentSize), 1 << 20) + Int(geometry.commitUnit) }

    /// Where blocks must end in a segment.
    private var limit: Int { segmentSize - unit }

    /// True when a block of `length` bytes fits into the current segment.
    func hasRoom(_ length: Int) -> Bool { claim != nil && limit - position >= length }

    /// Private memory for the next block, `maximumLength` bytes; goes on in a new segment when there is no room.
    func beginBlock(_ maximumLength: Int) throws(StoreError) -> UnsafeMutableRawBufferPointer {
        precondition(maximumLength <= SegmentAppender.bufferBytes(store.geometry) - unit)
        if !hasRoom(maximumLength) {
            try closeSegment()
            try openSegment(room: maximumLength + unit)
            guard hasRoom(maximumLength) else { throw tooSmallSegments(maximumLength) }
        }
        if let buffer, buffer.count - (position - written) < maximumLength { try writeOut(padding: false) }
        guard let buffer else { preconditionFailure("an open segment has a buffer") }
        let start = position - written
        return unsafe UnsafeMutableRawBufferPointer(rebasing: buffer.bytes[start..<start + maximumLength])
    }

    /// The block begun last is `length` bytes long. Returns where it stands.
    func endBlock(_ length: Int, live added: UInt32) -> (segment: SegmentIndex, offset: SegmentOffset) {
        guard let claim, let buffer else { preconditionFailure("no block was begun") }
        let offset = position
        let end = position + length
        position = roundUp(end, to: blockAlignment)
        buffer.clear(end - written..<min(position - written, buffer.count))
        live += added
        return (claim.segment, SegmentOffset(offset))
    }

    /// Appends an encoded block. Returns the pointer to it.
    func append(_ bytes: [UInt8]) throws(StoreError) -> BlockPointer {
        let target = unsafe try beginBlock(bytes.count)
        unsafe target.copyBytes(from: bytes)
        let place = endBlock(bytes.count, live: CommitTransaction.liveUnits(bytes.count))
        guard let header = unsafe try? Block.peek(bytes.span.bytes) else { preconditionFailure("encoders seal their blocks") }
        return BlockPointer(
            segment: place.segment, offset: place.offset, storedLength: header.storedLength, kind: header.kind, codec: .raw,
            keyID: 0, birth: header.birth, checksum: header.checksum)
    }

    /// A copy of a block that this appender holds in memory; nil when it has gone to the medium.
    func heldBlock(_ pointer: BlockPointer) -> [UInt8]? {
        guard let claim, let buffer, pointer.segment == claim.segment, pointer.offset.int >= written else { return nil }
        let start = pointer.offset.int - written
        return unsafe Array(buffer.bytes[start..<start + Int(pointer.storedLength)])
    }

    /// Writes what is held back too, so that every block appended so far can be read from the medium once the queue has
    /// drained. It is written again when the unit is full: still by this checkpoint only.
    func flushHeld() throws(StoreError) {
        guard let claim, let buffer, position > written else { return }
        let count = roundUp(position - written, to: unit)
        buffer.clear(position - written..<count)
        let place = store.geometry.offset(of: claim.segment) + ByteCount(written)
        try onMedium { () throws(MediumError) in
            unsafe try store.medium.write(at: place, UnsafeRawBufferPointer(rebasing: buffer.bytes[0..<count]))
        }
    }

    /// Puts a commit record behind what was written in each segment, and submits everything to the queue.
    ///
    /// - Parameter record: the checkpoint's record; nil, with an empty name, for blocks that were moved here.
    func finish(record: BlockPointer?, name: String) throws(StoreError) -> [SegmentUse] {
        var uses: [SegmentUse] = []
        for var use in full {
            let bytes = commitRecord(use, record, name)
            let page = try queue.takeBuffer()
            page.clear(0..<unit)
            unsafe page.bytes.copyBytes(from: bytes)
            try queue.submit(page, count: unit, at: store.geometry.offset(of: use.segment) + ByteCount(segmentSize - unit))
            use.committedLength = segmentSize
            uses.append(use)
        }
        full = []
        if let claim {
            var use = currentUse(claim)
            if position > first {
                let bytes = commitRecord(use, record, name)
                try makeRoom(bytes.count)
                guard let buffer else { preconditionFailure("an open segment has a buffer") }
                unsafe UnsafeMutableRawBufferPointer(rebasing: buffer.bytes[(position - written)...]).copyBytes(from: bytes)
                position += bytes.count
                try writeOut(padding: true)
                use.committedLength = written
                uses.append(use)
            }
            self.claim = nil
        }
        giveBackBuffer()
        return uses
    }

    /// Drops what has not been written.
    func abandon() {
        claim = nil
        full = []
        giveBackBuffer()
    }

    // MARK: segments

    /// Goes on in a segment with `room` bytes left, the unit for the commit record counted.
    private func openSegment(room: Int) throws(StoreError) {
        let claim = try store.claimSegment(segmentClass, room: room, mayUseReserve: mayUseReserve)
        claims.append(claim)
        // Taken first: an open segment always has a buffer.
        if buffer == nil { buffer = try queue.takeBuffer() }
        self.claim = claim
        live = 0
        written = claim.start
        position = claim.start
        if claim.isFresh, let buffer {
            unsafe buffer.bytes.copyBytes(from: header(claim))
            position = SegmentHeader.encodedLength
        }
        first = position
    }

    /// Another program may have made a store with segments that are hardly larger than a unit.
    private func tooSmallSegments(_ length: Int) -> StoreError {
        StoreError(
            .unsupported, "a block of \(length) bytes does not fit into a segment of \(segmentSize) bytes with units of \(unit)",
            remedy: "Create the store with larger segments.", medium: store.medium.name)
    }

    private func closeSegment() throws(StoreError) {
        guard let claim else { return }
        let use = currentUse(claim)
        try writeOut(padding: true)
        full.append(use)
        self.claim = nil
    }

    private func currentUse(_ claim: SegmentClaim) -> SegmentUse {
        SegmentUse(
            segment: claim.segment, segmentClass: segmentClass, firstOffset: first, endOffset: position,
            committedLength: 0, live: live, written: live, birth: birth)
    }

    private func makeRoom(_ length: Int) throws(StoreError) {
        if let buffer, buffer.count - (position - written) < length + unit { try writeOut(padding: false) }
    }

    /// Submits the whole units of the buffer; with `padding`, the last one too, filled up with zeros.
    private func writeOut(padding: Bool) throws(StoreError) {
        guard let claim, let full = buffer else { return }
        let held = position - written
        let count = padding ? roundUp(held, to: unit) : held / unit * unit
        guard count > 0 else { return }
        if padding { full.clear(held..<count) }
        let next = try queue.takeBuffer()
        if !padding { unsafe memcpy(next.base, full.base + count, held - count) }
        buffer = next
        try queue.submit(full, count: count, at: store.geometry.offset(of: claim.segment) + ByteCount(written))
        written += count
        if padding { position = written }
    }

    private func giveBackBuffer() {
        if let buffer { queue.giveBack(buffer) }
        buffer = nil
    }

    private func header(_ claim: SegmentClaim) -> [UInt8] {
        SegmentHeader(
            storeUUID: store.uuid, segment: claim.segment, segmentClass: segmentClass, baseGeneration: claim.baseGeneration,
            segmentSize: UInt32(segmentSize), birth: birth
        ).encoded()
    }

    private func commitRecord(_ use: SegmentUse, _ record: BlockPointer?, _ name: String) -> [UInt8] {
        CommitRecord(
            record: record, segment: use.segment, firstOffset: SegmentOffset(use.firstOffset),
            endOffset: SegmentOffset(use.endOffset), name: name, birth: birth
        ).encoded()
    }
}
