// Copying blocks out of one segment into others.
//
// Invariants:
// - Every block is verified in private memory before it is copied: damage is never given a new checksum.
// - Whole blocks are copied byte for byte. Runs with dead pages are written anew with the living ones, for the same place of the same region.

import Glibc
import Media
import PageCodec
import StoreFormat
import Units

/// A block that was copied.
struct Move: Sendable {
    /// As trees name it.
    var pointer: BlockPointer
    var copy: BlockPointer
    /// The pages of the run as it was first written that the copy has.
    var kept: UInt16
    /// The pages that leaves list.
    var live: UInt16
    var isRewritten: Bool

    /// What it adds to the `live` of its new segment.
    var liveUnits: UInt32 { CommitTransaction.liveUnits(of: copy, places: live) }
}

/// What came of emptying a segment.
enum MoveOutcome: Sendable {
    case moved([Move])
    /// A block can't be read, or is not what it should be. What was copied before it is dead.
    case damaged(StoreError)
}

/// Copies blocks to segments of its own. Confined to one thread at a time.
final class BlockMover {
    private let store: CheckpointStore
    private let pace: Pace
    private let appenders: [SegmentClass: SegmentAppender]
    private let window = AlignedBuffer(count: BlockMover.windowBytes + PageRunHeader.maximumLength + 2 * pageSize)
    private let decoded = AlignedBuffer(count: pagesPerRun * pageSize)
    private let gathered = AlignedBuffer(count: pagesPerRun * pageSize)
    private var compressor = RunCompressor()

    /// Bytes read at once.
    private static let windowBytes = 1 << 20
    /// Dead bytes between two blocks that are read with them rather than passed over.
    private static let bridgedBytes = 64 << 10

    init(store: CheckpointStore, id: CheckpointID, queue: WriteQueue, pace: Pace) {
        self.store = store
        self.pace = pace
        appenders = Dictionary(
            uniqueKeysWithValues: [SegmentClass.runs, .index].map {
                ($0, SegmentAppender(store: store, segmentClass: $0, id: id, queue: queue, mayUseReserve: true))
            })
    }

    /// The segments that this mover appends to.
    var claims: [SegmentClaim] { appenders.values.flatMap(\.claims) }

    /// Puts commit records behind what was appended, and submits everything.
    func finish() throws(StoreError) -> [SegmentUse] {
        var uses: [SegmentUse] = []
        for segmentClass in [SegmentClass.runs, .index] {
            if let appender = appenders[segmentClass] { uses += try appender.finish(record: nil, name: "") }
        }
        return uses
    }

    /// Drops what has not been written.
    func abandon() { for appender in appenders.values { appender.abandon() } }

    /// Copies `blocks`, which are in one segment, ascending by place.
    ///
    /// - Throws: what appending throws; `.cancelled`.
    func move(_ blocks: [LiveBlock]) throws(StoreError) -> MoveOutcome {
        var moves: [Move] = []
        moves.reserveCapacity(blocks.count)
        var rest = blocks[...]
        while let first = rest.first?.block.pointer {
            try pace.checkNotCancelled()
            let count = Self.windowCount(rest)
            let last = rest[rest.startIndex + count - 1].block.pointer
            let start = first.offset.int / pageSize * pageSize
            let length = last.offset.int + Int(last.storedLength) - start
            let bytes = unsafe UnsafeMutableRawBufferPointer(rebasing: window.bytes[0..<length])
            try pace.take(ByteCount(length))
            do throws(StoreError) { unsafe try read(first, start: start, into: bytes) } catch {
                guard error.isDamage else { throw error }
                return .damaged(error)
            }
            for live in rest.prefix(count) {
                let offset = live.block.pointer.offset.int - start
                let block = unsafe UnsafeRawBufferPointer(rebasing: bytes[offset..<offset + Int(live.block.pointer.storedLength)])
                let checked: Checked
                do throws(FormatError) { checked = try unsafe check(live, block) } catch {
                    return .damaged(store.medium.corrupt(error, at: store.geometry.position(of: live.block.pointer)))
                }
                moves.append(try unsafe append(live, checked, block))
            }
            pace.didMove(rest.prefix(count).reduce(.zero) { $0 + ByteCount(UInt64($1.block.pointer.storedLength)) })
            rest = rest.dropFirst(count)
        }
        return .moved(moves)
    }

    /// How many of the blocks are read at once.
    private static func windowCount(_ blocks: ArraySlice<LiveBlock>) -> Int {
        guard let first = blocks.first else { return 0 }
        let start = first.block.pointer.offset.int
        var end = start
        var count = 0
        for live in blocks {
            let pointer = live.block.pointer
            guard count == 0 || (pointer.offset.int - end <= bridgedBytes && pointer.offset.int + Int(pointer.storedLength) - start <= windowBytes)
            else { break }
            end = pointer.offset.int + Int(pointer.storedLength)
            count += 1
        }
        return count
    }

    private func read(_ first: BlockPointer, start: Int, into bytes: UnsafeMutableRawBufferPointer) throws(StoreError) {
        _ = try store.placeOf(first)
        let target = unsafe bytes
        let place = store.geometry.offset(of: first.segment) + ByteCount(start)
        try onMedium { () throws(MediumError) in unsafe try store.medium.read(at: place, into: target) }
    }

    /// A block that was found sound, and what of it is to be copied.
    private struct Checked {
        /// The pages of the run as it was first written that the copy will have.
        var kept: UInt16 = 1
        /// Set when only part of the run's pages live: they stand in `gathered`.
        var rewritten: PageRunHeader?
    }

    /// Finds out whether the bytes are those of the block, with all that leaves list.
    private func check(_ live: LiveBlock, _ bytes: UnsafeRawBufferPointer) throws(FormatError) -> Checked {
        let pointer = live.block.pointer
        if !store.has(.movesUnverified) { try unsafe store.check(bytes.bytes, pointer) }
        guard pointer.kind == .run else { return Checked() }
        let header = unsafe try PageRunHeader.decode(bytes.bytes)
        let present = live.block.kept ?? (UInt16.max >> UInt16(pagesPerRun - header.pages.count))
        guard present.nonzeroBitCount == header.pages.count, live.places & ~present == 0, live.places != 0 else {
            throw FormatError(.misplaced, subject: "page run", reason: "leaves list pages that it does not have")
        }
        if live.places == present { return Checked(kept: present) }
        return Checked(kept: live.places, rewritten: unsafe try gather(live, header, bytes))
    }

    /// Puts the listed pages of a run one behind the other. Returns the header of a run of just these.
    private func gather(
        _ live: LiveBlock, _ header: PageRunHeader, _ bytes: UnsafeRawBufferPointer
    ) throws(FormatError) -> PageRunHeader {
        let payload = unsafe UnsafeRawBufferPointer(rebasing: bytes[header.payloadOffset...])
        let whole = unsafe UnsafeMutableRawBufferPointer(rebasing: decoded.bytes[0..<header.pages.count * pageSize])
        switch header.codec {
        case .raw: unsafe whole.copyMemory(from: payload)
        case .lz4:
            guard unsafe decompress(payload, into: whole) else {
                throw FormatError(.badField, subject: "page run", reason: "its payload does not decode")
            }
        }
        var rest = header
        rest.pages = []
        for number in 0..<pagesPerRun where live.places >> UInt16(number) & 1 == 1 {
            guard let place = live.block.place(of: number) else { preconditionFailure("what is listed is there: checked before") }
            unsafe memcpy(gathered.base + rest.pages.count * pageSize, decoded.base + place * pageSize, pageSize)
            rest.pages.append(header.pages[place])
        }
        return rest
    }

    private func append(_ live: LiveBlock, _ checked: Checked, _ bytes: UnsafeRawBufferPointer) throws(StoreError) -> Move {
        let pointer = live.block.pointer
        guard let segmentClass = SegmentClass(holding: pointer.kind), let appender = appenders[segmentClass] else {
            preconditionFailure("only what checkpoints are made of is moved")
        }
        let places = pointer.kind == .run ? live.places : 1
        var copy = pointer
        if let header = checked.rewritten {
            let pages = unsafe UnsafeRawBufferPointer(rebasing: UnsafeRawBufferPointer(gathered.bytes)[0..<header.pages.count * pageSize])
            let block = unsafe try appender.beginBlock(header.payloadOffset + pages.count)
            let length = unsafe RunEncoding.fill(block, pages, header.pages, key: header.regionKey, span: header.span, &compressor)
            copy = unsafe RunEncoding.finish(block, length, pageCount: header.pages.count, birth: pointer.birth, appender)
        } else {
            unsafe try appender.beginBlock(bytes.count).copyMemory(from: bytes)
            let place = appender.endBlock(bytes.count, live: CommitTransaction.liveUnits(of: pointer, places: places))
            (copy.segment, copy.offset) = (place.segment, place.offset)
        }
        return Move(pointer: live.pointer, copy: copy, kept: checked.kept, live: places, isRewritten: checked.rewritten != nil)
    }
}
