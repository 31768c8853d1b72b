// Inner nodes of page-table trees. FORMAT.md 5.4.
//
// Invariant: there are 128 child places; an absent child is all zero pages, and a node has at least one child.

public import Units

/// An inner node of a region's page-table tree.
public struct InnerNode: Hashable, Sendable {
    public var regionKey: RegionKey
    /// The first page of the node's range, a multiple of the range's length.
    public var firstPage: PageIndex
    /// 1: children are leaves; else inner nodes of one level less. At most 6.
    public var level: UInt8
    /// 128 places.
    public var children: [BlockPointer?]

    public init(regionKey: RegionKey, firstPage: PageIndex, level: UInt8, children: [BlockPointer?]) {
        self.regionKey = regionKey
        self.firstPage = firstPage
        self.level = level
        self.children = children
    }

    static let fixedLength = 72
    /// The longest node: all children present.
    public static let maximumLength = fixedLength + PageTree.fanout * BlockPointer.encodedLength

    /// Bytes of a node of that many children.
    public static func encodedLength(childCount: Int) -> Int { fixedLength + childCount * BlockPointer.encodedLength }
    /// The children of a node of that many bytes.
    public static func childCount(ofLength length: Int) -> Int { (length - fixedLength) / BlockPointer.encodedLength }

    /// The sealed block. A node without 128 places or without a child is a programmer's mistake.
    public func encoded(birth: BlockBirth) -> [UInt8] {
        precondition(children.count == PageTree.fanout, "an inner node has \(PageTree.fanout) child places")
        let present = children.compactMap(\.self)
        precondition(!present.isEmpty, "an inner node without children is the null pointer")
        var writer = ByteWriter(blockLength: Self.encodedLength(childCount: present.count))
        writer.put(regionKey)
        writer.put(firstPage)
        writer.put(level)
        writer.put(UInt8(0))
        writer.put(UInt16(present.count))
        writer.put(UInt32(0))
        writer.put(bitmap(of: children))
        for child in present { writer.put(child) }
        return writer.sealed(.inner, birth: birth)
    }

    /// Decodes a whole block and checks every field.
    ///
    /// - Throws: any code of `FormatError` but those of slots.
    public static func decode(_ bytes: RawSpan) throws(FormatError) -> InnerNode {
        try Block.checkHeader(bytes, kind: .inner, fixedLength: fixedLength)
        let level = bytes.u8(48)
        try check(level >= 1 && level <= PageTree.maximumDepth, subject, "level \(level)")
        let range = PageTree.pagesPerChild(level: level).rawValue * UInt64(PageTree.fanout)
        let firstPage = bytes.u64(40)
        try check(
            firstPage % range == 0 && firstPage < PageTree.maximumPages, subject,
            "page \(firstPage) is no first page of level \(level)")
        let kinds: [BlockKind] = level == 1 ? [.leaf, .patchLeaf] : [.inner]
        return InnerNode(
            regionKey: RegionKey(bytes.u64(32)), firstPage: PageIndex(firstPage), level: level,
            children: try sparseChildren(
                bytes, bitmapAt: 56, places: PageTree.fanout, count: Int(bytes.u16(50)), kinds: kinds, subject: subject))
    }

    /// Throws `.misplaced` unless the node is that of `firstPage` and `level` in the region of `regionKey`.
    public func checkPlace(regionKey: RegionKey, firstPage: PageIndex, level: UInt8) throws(FormatError) {
        guard self.regionKey == regionKey, self.firstPage == firstPage, self.level == level else {
            throw FormatError(
                .misplaced, subject: Self.subject,
                reason: "it belongs to region \(self.regionKey), page \(self.firstPage), level \(self.level); "
                    + "wanted \(regionKey), page \(firstPage), level \(level)")
        }
    }

    private static let subject = "inner node"
}

/// The bitmap of the places that are not nil, least significant bit first.
func bitmap(of children: [BlockPointer?]) -> [UInt8] {
    var bits = [UInt8](repeating: 0, count: children.count / 8)
    for (i, child) in children.enumerated() where child != nil { bits[i / 8] |= 1 << UInt8(i % 8) }
    return bits
}

/// Decodes a bitmap of `places` bits at `position` and, up to the end of `bytes`, the pointers of those that are
/// set, `count` in number and all of `kinds`.
func sparseChildren(
    _ bytes: RawSpan, bitmapAt position: Int, places: Int, count: Int, kinds: [BlockKind], subject: String
) throws(FormatError) -> [BlockPointer?] {
    let bits = bytes.copy(position, count: places / 8)
    let present = bits.reduce(0) { $0 + $1.nonzeroBitCount }
    try check(count >= 1 && count == present, subject, "\(count) children, but \(present) present bits")
    try bytes.requireExactly(position + places / 8 + count * BlockPointer.encodedLength, subject)
    var children = [BlockPointer?](repeating: nil, count: places)
    var at = position + places / 8
    for i in 0..<places where bits[i / 8] & (1 << UInt8(i % 8)) != 0 {
        children[i] = try BlockPointer.decode(bytes, at: at, kinds: kinds, subject: subject)
        at += BlockPointer.encodedLength
    }
    return children
}
