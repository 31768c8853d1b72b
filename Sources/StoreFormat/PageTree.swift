// What the nodes of a page-table tree share: the region, its place in the tree, and how deep a tree is.
//
// Invariant: places are checked at decoding so that arithmetic on them can't overflow: a region has
// at most 2^63 bytes, that is 2^51 pages, 2^42 spans and six levels of inner nodes.

public import Units

/// The arithmetic of page-table trees.
public enum PageTree {
    /// Children of an inner node.
    public static let fanout = 128
    /// The deepest tree that a region needs.
    public static let maximumDepth: UInt8 = 6
    /// The longest region.
    public static let maximumByteLength = ByteCount(UInt64(1) << 63)

    static let maximumPages = UInt64(1) << 51

    /// Levels of inner nodes above the leaves of a region of `pageCount` pages: the smallest d with
    /// 128^d >= its spans. Regions above 2^63 bytes are a programmer's mistake.
    public static func depth(pageCount: PageCount) -> UInt8 {
        precondition(pageCount.rawValue <= maximumPages, "a region has at most 2^63 bytes")
        let spans = pageCount.rawValue / UInt64(pagesPerSpan) + (pageCount.rawValue % UInt64(pagesPerSpan) == 0 ? 0 : 1)
        var depth: UInt8 = 0
        while UInt64(1) << (7 * UInt64(depth)) < spans { depth += 1 }
        return depth
    }

    /// Pages that one child of an inner node of `level` (1...6) covers.
    public static func pagesPerChild(level: UInt8) -> PageCount {
        precondition(level >= 1 && level <= maximumDepth, "levels are 1...6")
        return PageCount(UInt64(pagesPerSpan) << (7 * UInt64(level - 1)))
    }

    /// The index of the child that covers `page` in an inner node of `level` (1...6), wherever the node is.
    public static func childIndex(of page: PageIndex, level: UInt8) -> Int {
        Int(page.rawValue / pagesPerChild(level: level).rawValue % UInt64(fanout))
    }

    /// Decodes the first page of a span at `position`.
    static func span(_ bytes: RawSpan, at position: Int, _ subject: String) throws(FormatError) -> SpanIndex {
        let page = bytes.u64(position)
        try check(
            page % UInt64(pagesPerSpan) == 0 && page < maximumPages, subject, "page \(page) is no span's first")
        return SpanIndex(page / UInt64(pagesPerSpan))
    }

    /// Throws `.misplaced` unless a block of `regionKey` and `span` is where one of the other is wanted.
    static func checkPlace(
        _ found: (RegionKey, SpanIndex), _ wanted: (RegionKey, SpanIndex), _ subject: String
    ) throws(FormatError) {
        if found != wanted {
            throw FormatError(
                .misplaced, subject: subject,
                reason: "it belongs to region \(found.0), span \(found.1); wanted \(wanted.0), span \(wanted.1)")
        }
    }
}

/// Decodes `count` pointers from `position`, none null, all of `kind`.
func pointers(_ bytes: RawSpan, at position: Int, count: Int, kind: BlockKind, subject: String)
    throws(FormatError) -> [BlockPointer]
{
    var result: [BlockPointer] = []
    result.reserveCapacity(count)
    for i in 0..<count {
        result.append(
            try BlockPointer.decode(
                bytes, at: position + i * BlockPointer.encodedLength, kinds: [kind], subject: subject))
    }
    return result
}
