// Reading one block: found where it is now, copied out of the medium, judged in the private copy, then used.
//
// Invariants:
// - Bytes leave this file only after their checksum, birth, kind and length have been found to be what the
//   pointer says, or the forwarding entry that took its place.
// - Blocks are looked up by the forwarding of the generation that is being read, or of an older one that is registered: what is
//   freed after that is not used again meanwhile. A newer one would not know blocks that have been deleted since.

import Media
import PageCodec
import StoreFormat
import Threading
import Units

/// Reads the blocks that one generation's checkpoints reach. Whoever has one keeps that generation from being reclaimed: by a
/// registration, or by the commit lock. Thread-safe.
struct BlockReader: Sendable {
    let store: CheckpointStore
    /// The root of the generation's forwarding tree; nil: no block was ever moved.
    let forwarding: BlockPointer?
    /// In a repair, where blocks are of which the forwarding tables can't be read; takes the place of `forwarding`.
    var recovered: RecoveredMoves?

    /// Where the block at `pointer` is.
    @inline(__always)
    func resolve(_ pointer: BlockPointer) throws(StoreError) -> ResolvedBlock {
        if let recovered { return try recovered.resolve(pointer) }
        guard let forwarding, pointer.kind.isForwarded else { return ResolvedBlock(pointer: pointer, kept: nil) }
        return try store.forwardingMap.resolve(pointer, root: forwarding, store: store)
    }

    /// The verified bytes of the block at `pointer`.
    func readBlock(_ pointer: BlockPointer) throws(StoreError) -> [UInt8] { try store.readInPlace(try resolve(pointer).pointer) }

    /// Copies the run at `pointer` into `buffer` and verifies it there. Returns its bytes and where its pages went.
    func readRun(
        _ pointer: BlockPointer, into buffer: UnsafeMutableRawBufferPointer
    ) throws(StoreError) -> (bytes: UnsafeRawBufferPointer, block: ResolvedBlock) {
        let block = try resolve(pointer)
        return unsafe (try store.readInPlace(block.pointer, into: buffer), block)
    }

    /// Decodes the block at `pointer` with `decode`, naming its place when it can't be.
    func decodeBlock<T>(
        _ pointer: BlockPointer, _ decode: (RawSpan) throws(FormatError) -> T
    ) throws(StoreError) -> T { try store.decodeInPlace(try resolve(pointer).pointer, decode) }

    /// Reads and checks a checkpoint's record.
    func readRecord(_ value: CatalogValue, id: CheckpointID) throws(StoreError) -> CheckpointRecord {
        let record = try decodeBlock(value.record) { bytes throws(FormatError) in try CheckpointRecord.decode(bytes) }
        guard record.id == id else { throw misplaced(value.record, "it is the record of \(record.id), not of \(id)") }
        return record
    }

    /// Damage in the block at `pointer`: it is sound in itself but does not belong where it was found.
    func misplaced(_ pointer: BlockPointer, _ reason: String) -> StoreError {
        corrupt(FormatError(.misplaced, subject: pointer.kind.name, reason: reason), pointer)
    }

    /// What is wrong with the block at `pointer`, with the place where it is now.
    func corrupt(_ error: FormatError, _ pointer: BlockPointer) -> StoreError {
        // The block has been read from there; should that fail now, the place that trees name says as much.
        let place = (try? resolve(pointer))?.pointer ?? pointer
        return store.medium.corrupt(error, at: store.geometry.position(of: place))
    }
}

/// Where a block is now.
struct ResolvedBlock: Sendable {
    /// The pointer to it: that of the trees, or to where it was moved.
    var pointer: BlockPointer
    /// The pages that a run had when it was first written and still has, as a set of their numbers; nil: all, as it was not moved.
    var kept: UInt16?

    /// Where page `number` of the run as it was written stands in the run as it is; nil when it is not kept.
    @inline(__always)
    func place(of number: Int) -> Int? {
        guard let kept else { return number }
        guard number < pagesPerRun, kept >> UInt16(number) & 1 == 1 else { return nil }
        return (kept & ((1 << UInt16(number)) - 1)).nonzeroBitCount
    }
}

extension CheckpointStore {
    /// Reads blocks where pointers say, moved or not: for those who find moved ones themselves.
    var blocksInPlace: BlockReader { BlockReader(store: self, forwarding: nil) }

    /// Reads blocks as the generation of `slot` has them.
    func blocks(in slot: Slot) -> BlockReader { BlockReader(store: self, forwarding: slot.forwarding) }

    /// The verified bytes of the block that is at `pointer` itself.
    func readInPlace(_ pointer: BlockPointer) throws(StoreError) -> [UInt8] {
        let place = try placeOf(pointer)
        let bytes = try medium.bytes(at: place, count: Int(pointer.storedLength))
        do { unsafe try check(bytes.span.bytes, pointer) } catch { throw medium.corrupt(error, at: place) }
        return bytes
    }

    /// Copies the block that is at `pointer` itself into `buffer` and verifies it there. Returns its bytes.
    func readInPlace(
        _ pointer: BlockPointer, into buffer: UnsafeMutableRawBufferPointer
    ) throws(StoreError) -> UnsafeRawBufferPointer {
        let place = try placeOf(pointer)
        let length = Int(pointer.storedLength)
        guard length <= buffer.count else {
            throw medium.corrupt(
                FormatError(.wrongLength, subject: pointer.kind.name, reason: "\(length) bytes are more than it can have"),
                at: place)
        }
        let target = unsafe Handed(UnsafeMutableRawBufferPointer(rebasing: buffer[0..<length]))
        try onMedium { () throws(MediumError) in unsafe try medium.read(at: place, into: target.value) }
        let bytes = unsafe UnsafeRawBufferPointer(target.value)
        do { try check(unsafe bytes.bytes, pointer) } catch { throw medium.corrupt(error, at: place) }
        if has(.readsTwice) { try onMedium { () throws(MediumError) in unsafe try medium.read(at: place, into: target.value) } }
        return unsafe bytes
    }

    /// Compares the block that is at `pointer` itself with the pointer's checksum where it stands, without a copy: for verifying,
    /// where nobody is going to use the bytes. Returns its place.
    func checkSum(_ pointer: BlockPointer) throws(StoreError) -> MediumOffset {
        let place = try placeOf(pointer)
        let skipped = MemoryLayout<UInt64>.size * 2
        var found = (low: UInt64(0), high: UInt64(0))
        try onMedium { () throws(MediumError) in
            try unsafe medium.scan(
                at: place + ByteCount(skipped), ByteCount(Int(pointer.storedLength) - skipped), into: &found, scanHash128)
        }
        // The block says its checksum itself, too; whoever reads it compares both.
        let said = try medium.bytes(at: place, count: skipped)
        guard Hash128(low: UInt64(littleEndian: found.low), high: UInt64(littleEndian: found.high)) == pointer.checksum,
            unsafe said.span.bytes.hash(0) == pointer.checksum
        else {
            throw medium.corrupt(
                FormatError(.badChecksum, subject: pointer.kind.name, reason: "its bytes are not those that its pointer was made for"),
                at: place)
        }
        return place
    }

    /// Decodes the block that is at `pointer` itself: one of the catalogs' and the segment table's, which are never moved.
    func decodeInPlace<T>(
        _ pointer: BlockPointer, _ decode: (RawSpan) throws(FormatError) -> T
    ) throws(StoreError) -> T {
        do throws(StoreError) {
            let bytes = try readInPlace(pointer)
            do { return unsafe try decode(bytes.span.bytes) } catch { throw medium.corrupt(error, at: try placeOf(pointer)) }
        } catch { throw withRemedy(error, pointer) }
    }

    /// What can be done about damage in a tree that the store keeps of itself.
    private func withRemedy(_ error: StoreError, _ pointer: BlockPointer) -> StoreError {
        guard error.isDamage, SegmentClass(holding: pointer.kind) == .catalog else { return error }
        var error = error
        error.remedy = "Run `ckstore repair \(medium.name)`: it rebuilds what the store keeps of itself."
        return error
    }

    /// Damage in the block that is at `pointer` itself: it is sound but does not belong where it was found.
    func misplaced(_ pointer: BlockPointer, _ reason: String) -> StoreError {
        let error = medium.corrupt(
            FormatError(.misplaced, subject: pointer.kind.name, reason: reason), at: geometry.position(of: pointer))
        return withRemedy(error, pointer)
    }

    /// Where `pointer` points, after checking that this is inside the store.
    func placeOf(_ pointer: BlockPointer) throws(StoreError) -> MediumOffset {
        var layout = geometry
        if pointer.segment.rawValue >= UInt64(layout.segmentCount) {
            // Another process may have enlarged the store since.
            layout = try newestSlot().geometry
        }
        guard pointer.segment.rawValue < UInt64(layout.segmentCount),
            UInt64(pointer.offset.rawValue) + UInt64(pointer.storedLength) <= UInt64(layout.segmentSize)
        else {
            throw StoreError(
                .corrupt, "a pointer to a \(pointer.kind.name) leads out of the store (segment \(pointer.segment))",
                remedy: "Run `ckstore verify`.", medium: medium.name)
        }
        return layout.position(of: pointer)
    }
}
