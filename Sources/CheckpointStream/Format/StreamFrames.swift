// The payloads of the frames but those with pages: Formats/STREAM.md 4.
//
// Invariant: what decodes keeps every rule of the format; lengths and counts are checked before anything is made of them.

import CheckpointStore
import StoreFormat
import Units

/// Who sends, and what the sender's store has.
struct StartFrame {
    var stream: StreamID
    /// The store that the stream comes from.
    var origin: StoreUUID
    /// When it was sent, since 1970-01-01 UTC.
    var createdNanoseconds: UInt64
    /// How many checkpoints follow.
    var checkpointCount: UInt32
    /// Checkpoints of the sender's store: how a receiver tells a stream out of order from a foreign one.
    var relatives: [CheckpointID]

    static let fixedBytes = 40
    static let mostRelatives = 4096

    func encoded() -> [UInt8] {
        var writer = ByteWriter(length: Self.fixedBytes + 8 * relatives.count)
        writer.put(stream)
        writer.put(origin.bytes)
        writer.put(createdNanoseconds)
        writer.put(checkpointCount)
        writer.put(UInt32(relatives.count))
        for id in relatives { writer.put(id) }
        return writer.bytes
    }

    static func decode(_ bytes: RawSpan) throws(FormatError) -> StartFrame {
        try bytes.require(fixedBytes, "start frame")
        let count = Int(bytes.u32(36))
        try bytes.requireExactly(fixedBytes + 8 * min(count, mostRelatives + 1), "start frame")
        return StartFrame(
            stream: StreamID(bytes.u64(0)), origin: StoreUUID(bytes, at: 8), createdNanoseconds: bytes.u64(24),
            checkpointCount: bytes.u32(32), relatives: (0..<count).map { CheckpointID(bytes.u64(fixedBytes + 8 * $0)) })
    }
}

/// How far a checkpoint has been sent or received: everything in front of this place.
public struct StreamPosition: Sendable, Hashable, Comparable {
    /// The index of a region of the checkpoint, in the order of their names; their number: all is there.
    public var region: Int
    /// The first page of a span of it.
    public var page: PageIndex

    public init(region: Int, page: PageIndex) {
        self.region = region
        self.page = page
    }
    /// Nothing yet.
    public static let start = StreamPosition(region: 0, page: PageIndex(UInt64(0)))
    public static func < (a: StreamPosition, b: StreamPosition) -> Bool { (a.region, a.page) < (b.region, b.page) }
}

/// One checkpoint's record, and what it is a change of.
struct CheckpointFrame {
    struct Region: Equatable {
        var name: String
        var kind: RegionKind
        var byteLength: ByteCount
        /// Pages that are not zero.
        var storedPages: PageCount
        var pageCount: PageCount { PageCount(covering: byteLength) }
    }

    var id: CheckpointID
    var parent: CheckpointID?
    var createdNanoseconds: UInt64
    /// The checkpoint that the frames change; nil: they have all of it.
    var base: CheckpointID?
    var baseCreatedNanoseconds: UInt64
    /// Where the frames start; what is in front of that was sent before.
    var start: StreamPosition
    var name: String
    var labels: [Label]
    var regions: [Region]
    /// Names that move and lead to it at the sender, ascending; `latest` is not among them.
    var references: [String]

    static let fixedBytes = 64
    /// How long all `references` may be together, each with its length.
    static let mostReferenceBytes = 64 << 10
    /// A record has at most 64 KiB, with more for each region than there is here.
    static let longest = fixedBytes + CheckpointRecord.maximumLength + mostReferenceBytes
    private static let subject = "checkpoint frame"

    func encoded() -> [UInt8] {
        var writer = ByteWriter(length: Self.fixedBytes + 512)
        writer.put(id)
        writer.put(parent?.rawValue ?? 0)
        writer.put(createdNanoseconds)
        writer.put(base?.rawValue ?? 0)
        writer.put(baseCreatedNanoseconds)
        writer.put(UInt32(start.region))
        writer.put(UInt16(labels.count))
        writer.put(UInt16(name.utf8.count))
        writer.put(start.page)
        writer.put(UInt32(regions.count))
        writer.put(UInt32(references.count))
        writer.put(name.utf8)
        for label in labels {
            writer.put(UInt16(label.key.utf8.count))
            writer.put(UInt16(label.value.utf8.count))
            writer.put(label.key.utf8)
            writer.put(label.value.utf8)
        }
        for region in regions {
            writer.put(UInt16(region.name.utf8.count))
            writer.put(region.kind.rawValue)
            writer.pad(5)
            writer.put(region.byteLength)
            writer.put(region.storedPages)
            writer.put(region.name.utf8)
        }
        for reference in references {
            writer.put(UInt16(reference.utf8.count))
            writer.put(reference.utf8)
        }
        return writer.bytes
    }

    static func decode(_ bytes: RawSpan) throws(FormatError) -> CheckpointFrame {
        try bytes.require(fixedBytes, subject)
        let (labelCount, nameLength, regionCount) = (Int(bytes.u16(44)), Int(bytes.u16(46)), Int(bytes.u32(56)))
        try check(regionCount <= CheckpointRecord.maximumRegions, subject, "\(regionCount) regions")
        try bytes.require(fixedBytes + nameLength, subject)
        var position = fixedBytes + nameLength
        func optional(_ offset: Int) -> CheckpointID? { bytes.u64(offset) == 0 ? nil : CheckpointID(bytes.u64(offset)) }
        let frame = CheckpointFrame(
            id: CheckpointID(bytes.u64(0)), parent: optional(8), createdNanoseconds: bytes.u64(16), base: optional(24),
            baseCreatedNanoseconds: bytes.u64(32), start: StreamPosition(region: Int(bytes.u32(40)), page: PageIndex(bytes.u64(48))),
            name: try bytes.text(fixedBytes, count: nameLength, subject),
            labels: try labels(bytes, at: &position, count: labelCount),
            regions: try regions(bytes, at: &position, count: regionCount),
            references: try references(bytes, at: &position, count: bytes.u32(60)))
        try bytes.requireExactly(position, subject)
        try frame.checkFields()
        return frame
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

    private static func regions(_ bytes: RawSpan, at position: inout Int, count: Int) throws(FormatError) -> [Region] {
        var regions: [Region] = []
        for _ in 0..<count {
            try bytes.require(position + 24, subject)
            let length = Int(bytes.u16(position))
            try bytes.require(position + 24 + length, subject)
            guard let kind = RegionKind(rawValue: bytes.u8(position + 2)) else {
                throw FormatError(.badField, subject: subject, reason: "a region of kind \(bytes.u8(position + 2))")
            }
            regions.append(
                Region(
                    name: try bytes.text(position + 24, count: length, subject), kind: kind, byteLength: ByteCount(bytes.u64(position + 8)),
                    storedPages: PageCount(bytes.u64(position + 16))))
            position += 24 + length
        }
        return regions
    }

    private static func references(_ bytes: RawSpan, at position: inout Int, count: UInt32) throws(FormatError) -> [String] {
        var references: [String] = []
        let start = position
        for _ in 0..<count {
            try bytes.require(position + 2, subject)
            let length = Int(bytes.u16(position))
            try bytes.require(position + 2 + length, subject)
            references.append(try bytes.text(position + 2, count: length, subject))
            position += 2 + length
            try check(position - start <= mostReferenceBytes, subject, "more names than there can be")
        }
        return references
    }

    /// The rules that its receiver builds on; what a record may have beyond them is checked when it is made.
    private func checkFields() throws(FormatError) {
        try check(id.rawValue != 0 && id != base && id != parent, Self.subject, "id 0, or its own base or parent")
        try Names.check(name)
        try check(!Names.isPartial(name), Self.subject, "a name that is kept for what has come in part")
        try check(labels.allSatisfy { (1...Names.maximumLength).contains($0.key.utf8.count) }, Self.subject, "a label key of a wrong length")
        for (a, b) in zip(labels, labels.dropFirst()) { try check(Names.precedes(a.key, b.key), Self.subject, "labels out of order") }
        for (a, b) in zip(regions, regions.dropFirst()) { try check(Names.precedes(a.name, b.name), Self.subject, "regions out of order") }
        for (a, b) in zip(references, references.dropFirst()) {
            try check(Names.precedes(a, b), Self.subject, "names that move out of order")
        }
        for reference in references {
            try Names.check(reference)
            try check(
                !Names.isPartial(reference) && !Names.equal(reference, Reference.latest) && !Names.equal(reference, name), Self.subject,
                "a name that can't be one that moves")
        }
        for region in regions {
            try Names.check(region.name)
            try check(region.byteLength.rawValue <= UInt64(Int64.max), Self.subject, "a region of \(region.byteLength) bytes")
            try check(
                region.kind != .memory || region.byteLength.rawValue % UInt64(pageSize) == 0, Self.subject, "memory that ends within a page")
            try check(region.storedPages <= region.pageCount, Self.subject, "more pages than a region has")
        }
        try check(
            start.region <= regions.count && start.page.rawValue % UInt64(pagesPerSpan) == 0, Self.subject, "a start behind its end")
    }
}

/// Pages of a region that have become zero, whole spans of them.
struct ZerosFrame {
    var region: Int
    var pages: Range<PageIndex>

    static let byteCount = 24
    private static let subject = "zeros frame"

    func encoded() -> [UInt8] {
        var writer = ByteWriter(length: Self.byteCount)
        writer.put(UInt16(region))
        writer.pad(6)
        writer.put(pages.lowerBound)
        writer.put(pages.upperBound - pages.lowerBound)
        return writer.bytes
    }

    static func decode(_ bytes: RawSpan) throws(FormatError) -> ZerosFrame {
        try bytes.requireExactly(byteCount, subject)
        let (first, count) = (bytes.u64(8), bytes.u64(16))
        try check(first % UInt64(pagesPerSpan) == 0 && first < 1 << 51 && count > 0 && count <= 1 << 51, subject, "pages that can't be")
        return ZerosFrame(region: Int(bytes.u16(0)), pages: PageIndex(first)..<PageIndex(first + count))
    }
}

/// A checkpoint is complete; the figures are those of this stream's frames.
struct CheckpointEndFrame: Equatable {
    var id: CheckpointID
    /// Pages in span frames.
    var writtenPages: PageCount
    /// Pages that became zero, in span frames and zeros frames.
    var zeroedPages: PageCount
    /// Span frames and zeros frames.
    var dataFrames: UInt64

    static let byteCount = 32

    func encoded() -> [UInt8] {
        var writer = ByteWriter(length: Self.byteCount)
        writer.put(id)
        writer.put(writtenPages)
        writer.put(zeroedPages)
        writer.put(dataFrames)
        return writer.bytes
    }

    static func decode(_ bytes: RawSpan) throws(FormatError) -> CheckpointEndFrame {
        try bytes.requireExactly(byteCount, "checkpoint end frame")
        return CheckpointEndFrame(
            id: CheckpointID(bytes.u64(0)), writtenPages: PageCount(bytes.u64(8)), zeroedPages: PageCount(bytes.u64(16)),
            dataFrames: bytes.u64(24))
    }
}

/// The stream is complete. Its chain value is the checksum over all of it.
struct EndFrame: Equatable {
    var stream: StreamID
    var checkpointCount: UInt64
    /// Frames in front of this one.
    var frameCount: UInt64

    static let byteCount = 24

    func encoded() -> [UInt8] {
        var writer = ByteWriter(length: Self.byteCount)
        writer.put(stream)
        writer.put(checkpointCount)
        writer.put(frameCount)
        return writer.bytes
    }

    static func decode(_ bytes: RawSpan) throws(FormatError) -> EndFrame {
        try bytes.requireExactly(byteCount, "end frame")
        return EndFrame(stream: StreamID(bytes.u64(0)), checkpointCount: bytes.u64(8), frameCount: bytes.u64(16))
    }
}
