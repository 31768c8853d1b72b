// Full leaves: where each page of a span is. FORMAT.md 5.2.
//
// Invariant: extents ascend and don't overlap, each lies in one run that the leaf names, and there is one
// hash for each page that they list. A page that no extent lists is zero.

public import Units

/// Consecutive pages of a span that lie consecutively in one run.
public struct Extent: Hashable, Sendable {
    /// Index in the span, 0..511.
    public var firstPage: UInt16
    /// 1..16.
    public var pageCount: UInt8
    /// Which page of the run `firstPage` is.
    public var pageOffset: UInt8
    /// Index in the leaf's `runs`.
    public var runIndex: UInt16

    public init(firstPage: UInt16, pageCount: UInt8, pageOffset: UInt8, runIndex: UInt16) {
        self.firstPage = firstPage
        self.pageCount = pageCount
        self.pageOffset = pageOffset
        self.runIndex = runIndex
    }
}

/// The leaf that lists every page of a span that is not zero.
public struct Leaf: Hashable, Sendable {
    public var regionKey: RegionKey
    public var span: SpanIndex
    public var runs: [BlockPointer]
    /// Ascending.
    public var extents: [Extent]
    /// Of each listed page, in the order of the extents.
    public var hashes: [Hash128]

    public init(regionKey: RegionKey, span: SpanIndex, runs: [BlockPointer], extents: [Extent], hashes: [Hash128]) {
        self.regionKey = regionKey
        self.span = span
        self.runs = runs
        self.extents = extents
        self.hashes = hashes
    }

    static let fixedLength = 56
    static let extentLength = 8
    /// The longest leaf: 512 runs of one page each.
    public static let maximumLength = fixedLength + pagesPerSpan * (BlockPointer.encodedLength + extentLength + 16)

    /// Bytes of the block.
    public var encodedLength: Int {
        Self.fixedLength + runs.count * BlockPointer.encodedLength + extents.count * Self.extentLength + hashes.count * 16
    }

    /// The sealed block. A leaf that breaks the limits is a programmer's mistake.
    public func encoded(birth: BlockBirth) -> [UInt8] {
        var writer = ByteWriter(blockLength: encodedLength)
        writer.put(regionKey)
        writer.put(span.firstPage)
        writer.put(UInt16(runs.count))
        writer.put(UInt16(extents.count))
        writer.put(UInt16(hashes.count))
        writer.put(UInt16(0))
        for run in runs { writer.put(run) }
        for extent in extents {
            writer.put(extent.firstPage)
            writer.put(extent.pageCount)
            writer.put(extent.pageOffset)
            writer.put(extent.runIndex)
            writer.put(UInt16(0))
        }
        for hash in hashes { writer.put(hash) }
        return writer.sealed(.leaf, birth: birth)
    }

    /// Decodes a whole block and checks every field.
    ///
    /// - Throws: any code of `FormatError` but those of slots.
    public static func decode(_ bytes: RawSpan) throws(FormatError) -> Leaf {
        try Block.checkHeader(bytes, kind: .leaf, fixedLength: fixedLength)
        let (runCount, extentCount, hashCount) = (Int(bytes.u16(48)), Int(bytes.u16(50)), Int(bytes.u16(52)))
        for (count, what) in [(runCount, "runs"), (extentCount, "extents"), (hashCount, "hashes")] {
            try check(count >= 1 && count <= pagesPerSpan, subject, "\(count) \(what)")
        }
        let extentsStart = fixedLength + runCount * BlockPointer.encodedLength
        let hashesStart = extentsStart + extentCount * extentLength
        try bytes.requireExactly(hashesStart + hashCount * 16, subject)
        return Leaf(
            regionKey: RegionKey(bytes.u64(32)), span: try PageTree.span(bytes, at: 40, subject),
            runs: try pointers(bytes, at: fixedLength, count: runCount, kind: .run, subject: subject),
            extents: try extents(
                bytes, at: extentsStart, count: extentCount, runCount: runCount, hashCount: hashCount),
            hashes: (0..<hashCount).map { bytes.hash(hashesStart + $0 * 16) })
    }

    /// Throws `.misplaced` unless the leaf is that of `span` in the region of `regionKey`.
    public func checkPlace(regionKey: RegionKey, span: SpanIndex) throws(FormatError) {
        try PageTree.checkPlace((self.regionKey, self.span), (regionKey, span), Self.subject)
    }

    private static let subject = "full leaf"

    private static func extents(_ bytes: RawSpan, at position: Int, count: Int, runCount: Int, hashCount: Int)
        throws(FormatError) -> [Extent]
    {
        var result: [Extent] = []
        result.reserveCapacity(count)
        var (end, pages) = (0, 0)
        for at in stride(from: position, to: position + count * extentLength, by: extentLength) {
            let extent = Extent(
                firstPage: bytes.u16(at), pageCount: bytes.u8(at + 2), pageOffset: bytes.u8(at + 3),
                runIndex: bytes.u16(at + 4))
            let pageCount = Int(extent.pageCount)
            try check(
                pageCount >= 1 && Int(extent.pageOffset) + pageCount <= pagesPerRun, subject,
                "an extent of \(pageCount) pages from place \(extent.pageOffset) of a run")
            try check(extent.firstPage >= end, subject, "its extents overlap or don't ascend")
            end = Int(extent.firstPage) + pageCount
            try check(end <= pagesPerSpan, subject, "an extent reaches beyond the span")
            try check(extent.runIndex < runCount, subject, "run \(extent.runIndex) of \(runCount)")
            pages += pageCount
            result.append(extent)
        }
        try check(pages == hashCount, subject, "\(pages) pages but \(hashCount) hashes")
        return result
    }
}
