// Patch leaves: what differs from a full leaf of the same span. FORMAT.md 5.3.
//
// Invariant: a patch's base is a full leaf, never another patch, so that a page is at most two leaves away.

public import Units

/// One page of a patch leaf.
public struct PatchEntry: Hashable, Sendable {
    /// Index in the span, 0..511.
    public var page: UInt16
    /// Index in the leaf's `runs`; nil: the page is zero now.
    public var run: UInt16?
    /// Which page of the run it is; 0 for a zero page.
    public var pageOffset: UInt8
    /// `P128` of the page; zero for a zero page.
    public var hash: Hash128

    public init(page: UInt16, run: UInt16?, pageOffset: UInt8, hash: Hash128) {
        self.page = page
        self.run = run
        self.pageOffset = pageOffset
        self.hash = hash
    }
}

/// The leaf that lists the pages of a span that differ from those of `base`.
public struct PatchLeaf: Hashable, Sendable {
    public var regionKey: RegionKey
    public var span: SpanIndex
    /// A full leaf of the same region and span.
    public var base: BlockPointer
    public var runs: [BlockPointer]
    /// Pages strictly ascending.
    public var entries: [PatchEntry]

    public init(
        regionKey: RegionKey, span: SpanIndex, base: BlockPointer, runs: [BlockPointer], entries: [PatchEntry]
    ) {
        self.regionKey = regionKey
        self.span = span
        self.base = base
        self.runs = runs
        self.entries = entries
    }

    /// The most entries, and the most runs, of a patch leaf.
    public static let maximumEntries = 64
    static let fixedLength = 96
    public static let entryLength = 24
    static let noRun: UInt16 = 0xFFFF
    /// The longest patch leaf.
    public static let maximumLength = fixedLength + maximumEntries * (BlockPointer.encodedLength + entryLength)

    /// Bytes of the block.
    public var encodedLength: Int {
        Self.fixedLength + runs.count * BlockPointer.encodedLength + entries.count * Self.entryLength
    }

    /// The sealed block. A leaf that breaks the limits is a programmer's mistake.
    public func encoded(birth: BlockBirth) -> [UInt8] {
        var writer = ByteWriter(blockLength: encodedLength)
        writer.put(regionKey)
        writer.put(span.firstPage)
        writer.put(UInt16(runs.count))
        writer.put(UInt16(entries.count))
        writer.put(UInt32(0))
        writer.put(base)
        for run in runs { writer.put(run) }
        for entry in entries {
            writer.put(entry.page)
            writer.put(entry.run ?? Self.noRun)
            writer.put(entry.pageOffset)
            writer.pad(3)
            writer.put(entry.hash)
        }
        return writer.sealed(.patchLeaf, birth: birth)
    }

    /// Decodes a whole block and checks every field.
    ///
    /// - Throws: any code of `FormatError` but those of slots.
    public static func decode(_ bytes: RawSpan) throws(FormatError) -> PatchLeaf {
        try Block.checkHeader(bytes, kind: .patchLeaf, fixedLength: fixedLength)
        let (runCount, entryCount) = (Int(bytes.u16(48)), Int(bytes.u16(50)))
        try check(runCount <= maximumEntries, subject, "\(runCount) runs")
        try check(entryCount >= 1 && entryCount <= maximumEntries, subject, "\(entryCount) entries")
        let entriesStart = fixedLength + runCount * BlockPointer.encodedLength
        try bytes.requireExactly(entriesStart + entryCount * entryLength, subject)
        return PatchLeaf(
            regionKey: RegionKey(bytes.u64(32)), span: try PageTree.span(bytes, at: 40, subject),
            base: try BlockPointer.decode(bytes, at: 56, kinds: [.leaf], subject: subject),
            runs: try pointers(bytes, at: fixedLength, count: runCount, kind: .run, subject: subject),
            entries: try entries(bytes, at: entriesStart, count: entryCount, runCount: runCount))
    }

    /// Throws `.misplaced` unless the leaf is that of `span` in the region of `regionKey`.
    public func checkPlace(regionKey: RegionKey, span: SpanIndex) throws(FormatError) {
        try PageTree.checkPlace((self.regionKey, self.span), (regionKey, span), Self.subject)
    }

    private static let subject = "patch leaf"

    private static func entries(_ bytes: RawSpan, at position: Int, count: Int, runCount: Int)
        throws(FormatError) -> [PatchEntry]
    {
        var result: [PatchEntry] = []
        result.reserveCapacity(count)
        for at in stride(from: position, to: position + count * entryLength, by: entryLength) {
            let run = bytes.u16(at + 2)
            let entry = PatchEntry(
                page: bytes.u16(at), run: run == noRun ? nil : run, pageOffset: bytes.u8(at + 4), hash: bytes.hash(at + 8))
            try check(entry.page < pagesPerSpan, subject, "page \(entry.page) of a span")
            try check(result.last.map { $0.page < entry.page } ?? true, subject, "its entries don't ascend")
            if entry.run == nil {
                try check(entry.pageOffset == 0 && entry.hash == .zero, subject, "a zero page with a place or hash")
            } else {
                try check(run < runCount, subject, "run \(run) of \(runCount)")
                try check(entry.pageOffset < pagesPerRun, subject, "place \(entry.pageOffset) of a run")
            }
            result.append(entry)
        }
        return result
    }
}
