// The two blocks that nothing points to: segment headers and commit records. FORMAT.md 4.1, 4.2.
//
// Invariant: they say of a segment what the trees say too, for the time when the trees are gone.

public import Units

/// The block at the start of a segment.
public struct SegmentHeader: Hashable, Sendable {
    public var storeUUID: StoreUUID
    /// The segment that it heads.
    public var segment: SegmentIndex
    public var segmentClass: SegmentClass
    /// The newest durable generation when the segment was claimed.
    public var baseGeneration: Generation
    /// In bytes.
    public var segmentSize: UInt32
    /// The first writer's.
    public var birth: BlockBirth

    public init(
        storeUUID: StoreUUID, segment: SegmentIndex, segmentClass: SegmentClass, baseGeneration: Generation,
        segmentSize: UInt32, birth: BlockBirth
    ) {
        self.storeUUID = storeUUID
        self.segment = segment
        self.segmentClass = segmentClass
        self.baseGeneration = baseGeneration
        self.segmentSize = segmentSize
        self.birth = birth
    }

    /// Bytes of the block; the first block behind it may stand directly there.
    public static let encodedLength = 128

    /// The sealed block.
    public func encoded() -> [UInt8] {
        var writer = ByteWriter(blockLength: Self.encodedLength)
        writer.put(storeUUID.bytes)
        writer.put(index: segment)
        writer.put(segmentClass.rawValue)
        writer.pad(3)
        writer.put(baseGeneration)
        writer.put(segmentSize)
        writer.pad(to: Self.encodedLength)
        return writer.sealed(.segmentHeader, birth: birth)
    }

    /// Decodes a whole block and checks every field.
    ///
    /// - Throws: any code of `FormatError` but those of slots.
    public static func decode(_ bytes: RawSpan) throws(FormatError) -> SegmentHeader {
        let subject = "segment header"
        try Block.checkHeader(bytes, kind: .segmentHeader, fixedLength: encodedLength)
        guard let segmentClass = SegmentClass(rawValue: bytes.u8(52)) else {
            throw FormatError(.badField, subject: subject, reason: "class \(bytes.u8(52))")
        }
        return SegmentHeader(
            storeUUID: StoreUUID(bytes, at: 32), segment: SegmentIndex(UInt64(bytes.u32(48))),
            segmentClass: segmentClass, baseGeneration: Generation(bytes.u64(56)), segmentSize: bytes.u32(64),
            birth: BlockBirth(bytes.u64(24)))
    }
}

/// The last block of what one checkpoint wrote in one segment: tells committed blocks from abandoned ones.
public struct CommitRecord: Hashable, Sendable {
    /// The checkpoint's record.
    public var record: BlockPointer?
    /// The segment that it stands in.
    public var segment: SegmentIndex
    /// Where the checkpoint's blocks start in this segment.
    public var firstOffset: SegmentOffset
    /// The end of its last block before this one.
    public var endOffset: SegmentOffset
    /// The checkpoint's name.
    public var name: String
    /// The birth of the blocks before it: the checkpoint's id, or the random number of its writer when it came from another store. The id
    /// is the birth of `record`.
    public var birth: BlockBirth

    public init(
        record: BlockPointer?, segment: SegmentIndex, firstOffset: SegmentOffset, endOffset: SegmentOffset, name: String,
        birth: BlockBirth
    ) {
        self.record = record
        self.segment = segment
        self.firstOffset = firstOffset
        self.endOffset = endOffset
        self.name = name
        self.birth = birth
    }

    static let fixedLength = 88
    /// The longest commit record; fits every commit unit.
    public static let maximumLength = fixedLength + Names.maximumLength

    /// Bytes of the block.
    public var encodedLength: Int { Self.fixedLength + name.utf8.count }

    /// The sealed block.
    public func encoded() -> [UInt8] {
        var writer = ByteWriter(blockLength: encodedLength)
        writer.put(record)
        writer.put(index: segment)
        writer.put(firstOffset.rawValue)
        writer.put(endOffset.rawValue)
        writer.put(UInt16(name.utf8.count))
        writer.put(UInt16(0))
        writer.put(name.utf8)
        return writer.sealed(.commitRecord, birth: birth)
    }

    private static func record(_ bytes: RawSpan, _ subject: String) throws(FormatError) -> BlockPointer? {
        guard let pointer = try BlockPointer.decode(bytes, at: 32) else { return nil }
        try check(pointer.kind == .checkpointRecord, subject, "a pointer to a \(pointer.kind)")
        return pointer
    }

    /// Decodes a whole block and checks every field.
    ///
    /// - Throws: any code of `FormatError` but those of slots.
    public static func decode(_ bytes: RawSpan) throws(FormatError) -> CommitRecord {
        let subject = "commit record"
        try Block.checkHeader(bytes, kind: .commitRecord, fixedLength: fixedLength)
        let nameLength = Int(bytes.u16(84))
        try bytes.requireExactly(fixedLength + nameLength, subject)
        let record = CommitRecord(
            record: try record(bytes, subject),
            segment: SegmentIndex(UInt64(bytes.u32(72))), firstOffset: SegmentOffset(bytes.u32(76)),
            endOffset: SegmentOffset(bytes.u32(80)), name: try bytes.text(fixedLength, count: nameLength, subject),
            birth: BlockBirth(bytes.u64(24)))
        try check((record.record == nil) == record.name.isEmpty, subject, "a name without a record")
        if record.record != nil { try Names.check(record.name, subject: subject) }
        try check(
            record.firstOffset.int % blockAlignment == 0 && record.firstOffset < record.endOffset, subject,
            "blocks from \(record.firstOffset) to \(record.endOffset)")
        return record
    }
}
