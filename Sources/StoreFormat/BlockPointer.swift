// Pointers: where a block is and what it must be.
//
// Invariant: a `BlockPointer` is never the null pointer, which is `nil`. A decoded one names a kind that
// can be pointed to, at an aligned offset, with a length that the kind can have.

public import Units

/// The place, length, kind, birth and checksum of a block.
public struct BlockPointer: Hashable, Sendable, CustomStringConvertible {
    public var segment: SegmentIndex
    /// Where in the segment; a multiple of 64, at least 128.
    public var offset: SegmentOffset
    /// Bytes of the block, header included.
    public var storedLength: UInt32
    public var kind: BlockKind
    /// As in the run's header; `.raw` for other kinds.
    public var codec: RunCodec
    /// The encryption key; 0 for none, the only value in version 1.
    public var keyID: UInt16
    public var birth: BlockBirth
    /// The block's checksum.
    public var checksum: Hash128

    public init(
        segment: SegmentIndex, offset: SegmentOffset, storedLength: UInt32, kind: BlockKind, codec: RunCodec = .raw,
        keyID: UInt16 = 0, birth: BlockBirth, checksum: Hash128
    ) {
        self.segment = segment
        self.offset = offset
        self.storedLength = storedLength
        self.kind = kind
        self.codec = codec
        self.keyID = keyID
        self.birth = birth
        self.checksum = checksum
    }

    /// Bytes of a pointer on the medium.
    public static let encodedLength = 40

    public var description: String {
        "\(kind) at segment \(segment) + \(offset), \(storedLength) bytes, birth \(birth)"
    }

    /// The 40 bytes of the pointer.
    public func encoded() -> [UInt8] {
        var writer = ByteWriter(length: Self.encodedLength)
        writer.put(self)
        return writer.bytes
    }

    /// Decodes the 40 bytes at `position`; nil for the null pointer.
    ///
    /// - Throws: `.truncated`; `.badField` or `.wrongLength` for a pointer that no block can have.
    public static func decode(_ bytes: RawSpan, at position: Int = 0) throws(FormatError) -> BlockPointer? {
        let subject = "pointer"
        guard position >= 0, position <= bytes.byteCount, bytes.byteCount - position >= encodedLength else {
            throw FormatError(.truncated, subject: subject, reason: "\(bytes.byteCount) bytes end before it does")
        }
        let storedLength = bytes.u32(position + 8)
        if storedLength == 0 {
            let isNull = (0..<5).allSatisfy { bytes.u64(position + 8 * $0) == 0 }
            try check(isNull, subject, "no length, but not the null pointer")
            return nil
        }
        guard let kind = BlockKind(rawValue: bytes.u8(position + 12)), kind.isPointedTo else {
            throw FormatError(.badField, subject: subject, reason: "kind \(bytes.u8(position + 12))")
        }
        guard let codec = RunCodec(rawValue: bytes.u8(position + 13)), kind == .run || codec == .raw else {
            throw FormatError(.badField, subject: subject, reason: "codec \(bytes.u8(position + 13)) of a \(kind)")
        }
        let pointer = BlockPointer(
            segment: SegmentIndex(UInt64(bytes.u32(position))), offset: SegmentOffset(bytes.u32(position + 4)),
            storedLength: storedLength, kind: kind, codec: codec, keyID: bytes.u16(position + 14),
            birth: BlockBirth(bytes.u64(position + 16)), checksum: bytes.hash(position + 24))
        try pointer.checkFields()
        return pointer
    }

    /// Decodes a pointer that must not be null and must be of one of `kinds`.
    static func decode(_ bytes: RawSpan, at position: Int, kinds: [BlockKind], subject: String)
        throws(FormatError) -> BlockPointer
    {
        guard let pointer = try decode(bytes, at: position) else {
            throw FormatError(.badField, subject: subject, reason: "a null pointer where a block must be named")
        }
        try check(kinds.contains(pointer.kind), subject, "a pointer to a \(pointer.kind)")
        return pointer
    }

    /// Throws unless there can be a block of the kind with this place and length.
    func checkFields() throws(FormatError) {
        try check(
            offset.int % blockAlignment == 0 && offset.int >= SegmentHeader.encodedLength, "pointer",
            "offset \(offset), not a multiple of \(blockAlignment) behind the segment's header")
        try check(keyID == 0, "pointer", "encryption key \(keyID), which version 1 does not have")
        guard storedLength >= BlockHeader.encodedLength, storedLength <= kind.maximumLength else {
            throw FormatError(
                .wrongLength, subject: "pointer",
                reason: "\(storedLength) bytes, which no \(kind) has (at most \(kind.maximumLength))")
        }
    }
}

extension BlockPointer {
    /// The pointer to a block that was sealed in `bytes` and is to stand at `offset` of `segment`.
    ///
    /// `bytes` must be a sealed block of `kind`; anything else is a programmer's mistake.
    public init(sealed bytes: [UInt8], kind: BlockKind, segment: SegmentIndex, offset: SegmentOffset) {
        let header = unsafe bytes.span.bytes
        precondition(header.byteCount >= BlockHeader.encodedLength && header.u32(16) == kind.magic, "not a sealed \(kind)")
        self.init(
            segment: segment, offset: offset, storedLength: header.u32(20), kind: kind,
            codec: kind == .run ? RunCodec(rawValue: header.u8(49))! : .raw,
            birth: BlockBirth(header.u64(24)), checksum: header.hash(0))
    }
}
