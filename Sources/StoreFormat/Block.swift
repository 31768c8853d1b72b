// The header that every block starts with, and the checks that stand between a medium and a decoder.
//
// Invariant: bytes that passed `Block.verify` are those that the pointer's writer sealed, bit for bit.

import PageCodec
public import Units

/// The first 32 bytes of a block.
public struct BlockHeader: Hashable, Sendable {
    public var checksum: Hash128
    public var kind: BlockKind
    /// Bytes of the block, this header included.
    public var storedLength: UInt32
    public var birth: BlockBirth

    public init(checksum: Hash128, kind: BlockKind, storedLength: UInt32, birth: BlockBirth) {
        self.checksum = checksum
        self.kind = kind
        self.storedLength = storedLength
        self.birth = birth
    }

    public static let encodedLength = 32
}

/// Sealing and verifying blocks.
public enum Block {
    /// Reads and verifies the block at the start of `bytes`, which may reach beyond it: for scans, when
    /// there is no pointer. Hashes at most the longest block of the kind.
    ///
    /// - Throws: `.truncated`, `.badMagic`, `.wrongLength`, `.badChecksum`.
    public static func peek(_ bytes: RawSpan) throws(FormatError) -> BlockHeader {
        try bytes.require(BlockHeader.encodedLength, "block")
        guard let kind = BlockKind(magic: bytes.u32(16)) else {
            throw FormatError(.badMagic, subject: "block", reason: "no magic of a block")
        }
        let storedLength = bytes.u32(20)
        guard storedLength >= BlockHeader.encodedLength, storedLength <= kind.maximumLength else {
            throw FormatError(.wrongLength, subject: kind.name, reason: "\(storedLength) bytes, which none has")
        }
        try bytes.require(Int(storedLength), kind.name)
        let checksum = bytes.hash(0)
        guard hash128(bytes.extracting(16..<Int(storedLength))) == checksum else {
            throw FormatError(.badChecksum, subject: kind.name, reason: "the bytes are not those that were written")
        }
        return BlockHeader(
            checksum: checksum, kind: kind, storedLength: storedLength, birth: BlockBirth(bytes.u64(24)))
    }

    /// Checks that `bytes`, which must be exactly the pointer's `storedLength`, are the block that
    /// `pointer` names: checksum (the header's and the pointer's), kind, length, birth, codec. What
    /// remains is to check that it belongs to its place in the tree.
    ///
    /// - Throws: `.truncated`, `.wrongLength`, `.badMagic`, `.badChecksum`, `.wrongKind`, `.wrongBirth`, `.badField`.
    public static func verify(_ bytes: RawSpan, pointer: BlockPointer) throws(FormatError) {
        let subject = pointer.kind.name
        try bytes.require(BlockHeader.encodedLength, subject)
        try bytes.requireExactly(Int(pointer.storedLength), subject)
        let checksum = bytes.hash(0)
        guard hash128(bytes.extracting(16..<bytes.byteCount)) == checksum else {
            throw FormatError(.badChecksum, subject: subject, reason: "the bytes are not those that were written")
        }
        try checkHeader(bytes, kind: pointer.kind)
        guard bytes.u64(24) == pointer.birth.rawValue else {
            throw FormatError(
                .wrongBirth, subject: subject,
                reason: "birth \(BlockBirth(bytes.u64(24))) where \(pointer.birth) is named: a stale or misdirected block")
        }
        guard checksum == pointer.checksum else {
            throw FormatError(
                .badChecksum, subject: subject, reason: "a sound block, but not the one named: stale or misdirected")
        }
        if pointer.kind == .run {
            try bytes.require(PageRunHeader.fixedLength, subject)
            try check(
                bytes.u8(49) == pointer.codec.rawValue && bytes.u16(50) == pointer.keyID, subject,
                "codec or key differ from the pointer's")
        }
    }

    /// Writes the header into the first 32 bytes of a finished block: its length is `bytes.count`.
    ///
    /// - Returns: the checksum.
    @discardableResult
    public static func seal(_ bytes: inout [UInt8], kind: BlockKind, birth: BlockBirth) -> Hash128 {
        unsafe bytes.withUnsafeMutableBytes { unsafe seal($0, kind: kind, birth: birth) }
    }

    /// Writes the header into the first 32 bytes of a finished block: its length is `bytes.count`, which must
    /// be one that the kind can have.
    ///
    /// Nobody may change the bytes meanwhile or afterwards: they are what the checksum is taken of.
    /// - Returns: the checksum.
    @discardableResult
    public static func seal(_ bytes: UnsafeMutableRawBufferPointer, kind: BlockKind, birth: BlockBirth) -> Hash128 {
        precondition(
            bytes.count >= BlockHeader.encodedLength && bytes.count <= kind.maximumLength,
            "no \(kind) has \(bytes.count) bytes")
        unsafe bytes.storeBytes(of: kind.magic.littleEndian, toByteOffset: 16, as: UInt32.self)
        unsafe bytes.storeBytes(of: UInt32(bytes.count).littleEndian, toByteOffset: 20, as: UInt32.self)
        unsafe bytes.storeBytes(of: birth.rawValue.littleEndian, toByteOffset: 24, as: UInt64.self)
        let checksum = unsafe hash128(UnsafeRawBufferPointer(rebasing: bytes[16...]))
        unsafe bytes.storeBytes(of: checksum.low.littleEndian, toByteOffset: 0, as: UInt64.self)
        unsafe bytes.storeBytes(of: checksum.high.littleEndian, toByteOffset: 8, as: UInt64.self)
        return checksum
    }

    /// Checks magic and length of a block's bytes, its checksum being somebody else's matter, and that
    /// the fixed fields of the kind (`fixedLength` bytes) are there. What every decoder starts with.
    static func checkHeader(_ bytes: RawSpan, kind: BlockKind, fixedLength: Int = BlockHeader.encodedLength)
        throws(FormatError)
    {
        try bytes.require(fixedLength, kind.name)
        guard bytes.u32(16) == kind.magic else {
            guard let other = BlockKind(magic: bytes.u32(16)) else {
                throw FormatError(.badMagic, subject: kind.name, reason: "no magic of a block")
            }
            throw FormatError(.wrongKind, subject: kind.name, reason: "a \(other) is there")
        }
        guard Int(bytes.u32(20)) == bytes.byteCount, bytes.byteCount <= kind.maximumLength else {
            throw FormatError(
                .wrongLength, subject: kind.name,
                reason: "its header says \(bytes.u32(20)) bytes, \(bytes.byteCount) are there")
        }
    }
}
