// Little-endian appends: the mirror image of ByteReading.swift.
//
// Invariant: a writer only grows; offsets are those of the format because fields are put in its order.

package import Units

/// Builds the bytes of one structure, field by field.
package struct ByteWriter {
    package var bytes: [UInt8] = []

    /// A writer for a block of `length` bytes: starts with a blank block header, which `Block.seal` fills in.
    package init(blockLength length: Int) {
        bytes.reserveCapacity(length)
        pad(to: BlockHeader.encodedLength)
    }

    /// A writer for `length` bytes that are not a block.
    package init(length: Int) { bytes.reserveCapacity(length) }

    package mutating func put(_ value: UInt8) { bytes.append(value) }
    package mutating func put(_ value: UInt16) { append(value.littleEndian) }
    package mutating func put(_ value: UInt32) { append(value.littleEndian) }
    package mutating func put(_ value: UInt64) { append(value.littleEndian) }
    package mutating func put(_ value: some Quantity) { put(value.rawValue) }
    package mutating func put(_ text: String.UTF8View) { bytes.append(contentsOf: text) }
    package mutating func put(_ values: [UInt8]) { bytes.append(contentsOf: values) }

    package mutating func put(_ hash: Hash128) {
        put(hash.low)
        put(hash.high)
    }

    /// A segment's index in 32 bits; one that does not fit is a programmer's mistake.
    package mutating func put(index: SegmentIndex) { put(UInt32(index.rawValue)) }

    /// A pointer, or the null pointer.
    package mutating func put(_ pointer: BlockPointer?) {
        guard let pointer else { return pad(BlockPointer.encodedLength) }
        put(index: pointer.segment)
        put(pointer.offset.rawValue)
        put(pointer.storedLength)
        put(pointer.kind.rawValue)
        put(pointer.codec.rawValue)
        put(pointer.keyID)
        put(pointer.birth)
        put(pointer.checksum)
    }

    /// `count` zero bytes.
    package mutating func pad(_ count: Int) { bytes.append(contentsOf: repeatElement(0, count: count)) }

    /// Zero bytes up to `length`.
    package mutating func pad(to length: Int) { pad(length - bytes.count) }

    /// The finished block.
    package consuming func sealed(_ kind: BlockKind, birth: BlockBirth) -> [UInt8] {
        var bytes = bytes
        Block.seal(&bytes, kind: kind, birth: birth)
        return bytes
    }

    private mutating func append<T: FixedWidthInteger>(_ value: T) {
        unsafe withUnsafeBytes(of: value) { unsafe bytes.append(contentsOf: $0) }
    }
}
