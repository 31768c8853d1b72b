// Checkpoint records: a checkpoint's name, labels, lineage and regions. FORMAT.md 6.1.
//
// Invariant: labels and regions are in ascending bytewise order of unique keys and names; a region's key and
// depth follow from its name and length. A record's birth is its id.

import PageCodec
public import Units

/// A key and value that a user attached to a checkpoint.
public struct Label: Hashable, Sendable, Codable {
    /// 1 to 255 bytes of UTF-8.
    public var key: String
    /// As long as the record fits its limit.
    public var value: String

    public init(key: String, value: String) {
        self.key = key
        self.value = value
    }
}

/// The root of one checkpoint: everything that the catalog does not say itself.
public struct CheckpointRecord: Hashable, Sendable {
    public var id: CheckpointID
    /// The checkpoint that this one was taken on; nil: none.
    public var parent: CheckpointID?
    /// When the checkpoint was begun, since 1970-01-01 UTC.
    public var createdNanoseconds: UInt64
    /// The generation that its writer started from.
    public var baseGeneration: Generation
    public var name: String
    /// Keys ascending bytewise, unique.
    public var labels: [Label]
    /// Pages that this checkpoint stored, in all regions.
    public var newPages: PageCount
    /// Bytes of the runs that this checkpoint stored.
    public var storedBytes: ByteCount
    /// Equal for checkpoints that were committed together; 0: alone.
    public var groupID: UInt64
    /// Names ascending bytewise, unique.
    public var regions: [RegionRecord]

    public init(
        id: CheckpointID, parent: CheckpointID?, createdNanoseconds: UInt64, baseGeneration: Generation, name: String,
        labels: [Label], newPages: PageCount, storedBytes: ByteCount, groupID: UInt64, regions: [RegionRecord]
    ) {
        self.id = id
        self.parent = parent
        self.createdNanoseconds = createdNanoseconds
        self.baseGeneration = baseGeneration
        self.name = name
        self.labels = labels
        self.newPages = newPages
        self.storedBytes = storedBytes
        self.groupID = groupID
        self.regions = regions
    }

    static let fixedLength = 96
    /// The longest record.
    public static let maximumLength = 65536
    /// The most regions of a checkpoint.
    public static let maximumRegions = 4096

    /// Bytes of the block.
    public var encodedLength: Int { Self.encodedLength(name: name, labels: labels, regionNames: regions.map(\.name)) }

    /// Bytes of the block of a record that has these.
    public static func encodedLength(name: String, labels: [Label], regionNames: [String]) -> Int {
        fixedLength + name.utf8.count + labels.reduce(0) { $0 + 4 + $1.key.utf8.count + $1.value.utf8.count }
            + regionNames.reduce(0) { $0 + RegionRecord.fixedLength + $1.utf8.count }
    }

    /// Throws unless the record keeps every rule of the format. Call it on what users gave before `encoded`.
    ///
    /// - Throws: `.badField`; `.wrongLength` when the record would be longer than 64 KiB.
    public func check() throws(FormatError) {
        try StoreFormat.check(id.rawValue != 0, Self.subject, "id 0")
        try StoreFormat.check(parent != id && parent?.rawValue != 0, Self.subject, "it is its own parent, or of id 0")
        try Names.check(name, subject: Self.subject)
        for label in labels {
            try StoreFormat.check(
                (1...Names.maximumLength).contains(label.key.utf8.count), Self.subject,
                "a label key of \(label.key.utf8.count) bytes, 1 to \(Names.maximumLength) allowed")
        }
        try Self.checkAscending(labels.map(\.key), "label keys")
        try StoreFormat.check(
            regions.count <= Self.maximumRegions, Self.subject,
            "\(regions.count) regions, at most \(Self.maximumRegions) allowed")
        for region in regions { try region.check() }
        try Self.checkAscending(regions.map(\.name), "region names")
        try StoreFormat.check(
            Set(regions.map(\.key)).count == regions.count, Self.subject, "two regions whose names have the same key")
        guard encodedLength <= Self.maximumLength else {
            throw FormatError(
                .wrongLength, subject: Self.subject,
                reason: "\(encodedLength) bytes with its labels and regions, at most \(Self.maximumLength) allowed")
        }
    }

    static let subject = "checkpoint record"

    private static func checkAscending(_ names: [String], _ what: String) throws(FormatError) {
        for (a, b) in zip(names, names.dropFirst()) {
            try StoreFormat.check(Names.precedes(a, b), subject, "\(what) that are not unique and ascending")
        }
    }
}

extension CheckpointRecord {
    /// The sealed block; its birth is the record's id. A record that `check` refuses is a programmer's mistake.
    public func encoded() -> [UInt8] {
        var writer = ByteWriter(blockLength: encodedLength)
        writer.put(id)
        writer.put(parent?.rawValue ?? 0)
        writer.put(createdNanoseconds)
        writer.put(baseGeneration)
        writer.put(UInt16(name.utf8.count))
        writer.put(UInt16(labels.count))
        writer.put(UInt32(regions.count))
        writer.put(newPages)
        writer.put(storedBytes)
        writer.put(groupID)
        writer.put(name.utf8)
        for label in labels {
            writer.put(UInt16(label.key.utf8.count))
            writer.put(UInt16(label.value.utf8.count))
            writer.put(label.key.utf8)
            writer.put(label.value.utf8)
        }
        for region in regions { region.encode(into: &writer) }
        return writer.sealed(.checkpointRecord, birth: BlockBirth(id))
    }

    /// Decodes a whole block and checks every field.
    ///
    /// - Throws: any code of `FormatError` but those of slots.
    public static func decode(_ bytes: RawSpan) throws(FormatError) -> CheckpointRecord {
        try Block.checkHeader(bytes, kind: .checkpointRecord, fixedLength: fixedLength)
        guard bytes.u64(24) == bytes.u64(32) else {
            throw FormatError(.wrongBirth, subject: subject, reason: "its birth is not its id")
        }
        let (nameLength, labelCount, regionCount) = (Int(bytes.u16(64)), Int(bytes.u16(66)), bytes.u32(68))
        try StoreFormat.check(regionCount <= maximumRegions, subject, "\(regionCount) regions")
        try bytes.require(fixedLength + nameLength, subject)
        let name = try bytes.text(fixedLength, count: nameLength, subject)
        var position = fixedLength + nameLength
        let labels = try labels(bytes, at: &position, count: labelCount)
        var regions: [RegionRecord] = []
        for _ in 0..<regionCount { regions.append(try RegionRecord.decode(bytes, at: &position)) }
        try bytes.requireExactly(position, subject)
        let record = CheckpointRecord(
            id: CheckpointID(bytes.u64(32)), parent: bytes.u64(40) == 0 ? nil : CheckpointID(bytes.u64(40)),
            createdNanoseconds: bytes.u64(48), baseGeneration: Generation(bytes.u64(56)), name: name, labels: labels,
            newPages: PageCount(bytes.u64(72)), storedBytes: ByteCount(bytes.u64(80)), groupID: bytes.u64(88),
            regions: regions)
        try record.check()
        return record
    }

    private static func labels(_ bytes: RawSpan, at position: inout Int, count: Int) throws(FormatError) -> [Label] {
        var labels: [Label] = []
        for _ in 0..<count {
            try bytes.require(position + 4, subject)
            let (keyLength, valueLength) = (Int(bytes.u16(position)), Int(bytes.u16(position + 2)))
            try bytes.require(position + 4 + keyLength + valueLength, subject)
            labels.append(
                Label(
                    key: try bytes.text(position + 4, count: keyLength, subject),
                    value: try bytes.text(position + 4 + keyLength, count: valueLength, subject)))
            position += 4 + keyLength + valueLength
        }
        return labels
    }
}
