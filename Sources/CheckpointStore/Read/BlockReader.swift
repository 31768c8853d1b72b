// Reading one block: copied out of the medium first, then judged in the private copy, then used.
//
// Invariant: bytes leave this file only after their checksum, birth, kind and length have been found to
// be what the pointer says.

import Media
import PageCodec
import StoreFormat
import Threading
import Units

extension CheckpointStore {
    /// The verified bytes of the block at `pointer`.
    func readBlock(_ pointer: BlockPointer) throws(StoreError) -> [UInt8] {
        let place = try placeOf(pointer)
        let bytes = try medium.bytes(at: place, count: Int(pointer.storedLength))
        do { unsafe try check(bytes.span.bytes, pointer) } catch { throw medium.corrupt(error, at: place) }
        return bytes
    }

    /// Copies the block at `pointer` into `buffer` and verifies it there. Returns its bytes.
    func readBlock(
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

    /// Compares the block at `pointer` with the pointer's checksum where it stands, without a copy: for verifying, where nobody
    /// is going to use the bytes. Returns its place.
    func checkSum(_ pointer: BlockPointer) throws(StoreError) -> MediumOffset {
        let place = try placeOf(pointer)
        let skipped = MemoryLayout<UInt64>.size * 2
        var found = (low: UInt64(0), high: UInt64(0))
        try onMedium { () throws(MediumError) in
            try unsafe medium.scan(
                at: place + ByteCount(skipped), ByteCount(Int(pointer.storedLength) - skipped), into: &found, scanHash128)
        }
        guard Hash128(low: UInt64(littleEndian: found.low), high: UInt64(littleEndian: found.high)) == pointer.checksum else {
            throw medium.corrupt(
                FormatError(.badChecksum, subject: pointer.kind.name, reason: "its bytes are not those that its pointer was made for"),
                at: place)
        }
        return place
    }

    /// Decodes the block at `pointer` with `decode`, naming its place when it can't be.
    func decodeBlock<T>(
        _ pointer: BlockPointer, _ decode: (RawSpan) throws(FormatError) -> T
    ) throws(StoreError) -> T {
        let bytes = try readBlock(pointer)
        do { return unsafe try decode(bytes.span.bytes) } catch { throw medium.corrupt(error, at: try placeOf(pointer)) }
    }

    /// Damage in the block at `pointer`: it is sound in itself but does not belong where it was found.
    func misplaced(_ pointer: BlockPointer, _ reason: String) -> StoreError {
        medium.corrupt(
            FormatError(.misplaced, subject: pointer.kind.name, reason: reason), at: geometry.position(of: pointer))
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
