// Page runs: up to 16 pages of one span, stored together. FORMAT.md 5.1.
//
// Invariant: the page list is strictly ascending, and the payload of a compressed run is shorter than
// its pages, so that no run is longer than `maximumLength`.

public import Units

/// The fields of a page run in front of its payload.
public struct PageRunHeader: Hashable, Sendable {
    public var regionKey: RegionKey
    public var span: SpanIndex
    public var codec: RunCodec
    /// 0: not encrypted.
    public var keyID: UInt16
    /// Indexes in the span (0..511) of the pages, strictly ascending; 1 to 16.
    public var pages: [UInt16]

    public init(regionKey: RegionKey, span: SpanIndex, codec: RunCodec, keyID: UInt16 = 0, pages: [UInt16]) {
        self.regionKey = regionKey
        self.span = span
        self.codec = codec
        self.keyID = keyID
        self.pages = pages
    }

    /// Bytes in front of the page list.
    static let fixedLength = 56
    /// The longest run: 16 raw pages.
    public static let maximumLength = payloadOffset(pageCount: pagesPerRun) + pagesPerRun * pageSize

    /// Where the payload starts in the block.
    public var payloadOffset: Int { Self.payloadOffset(pageCount: pages.count) }

    /// Where the payload starts in a run of `pageCount` pages.
    public static func payloadOffset(pageCount: Int) -> Int { (fixedLength + 2 * pageCount + 7) / 8 * 8 }

    /// Writes the fields and their padding into bytes [32, payloadOffset) of `block`, which is the whole run;
    /// the payload is the caller's, and the header `Block.seal`'s. A wrong page list is a programmer's mistake.
    public func encode(into block: UnsafeMutableRawBufferPointer) {
        precondition(!pages.isEmpty && pages.count <= pagesPerRun, "a run has 1 to \(pagesPerRun) pages")
        precondition(block.count > payloadOffset, "a run has a payload")
        unsafe block.storeBytes(of: regionKey.rawValue.littleEndian, toByteOffset: 32, as: UInt64.self)
        unsafe block.storeBytes(of: span.firstPage.rawValue.littleEndian, toByteOffset: 40, as: UInt64.self)
        unsafe block.storeBytes(of: UInt8(pages.count), toByteOffset: 48, as: UInt8.self)
        unsafe block.storeBytes(of: codec.rawValue, toByteOffset: 49, as: UInt8.self)
        unsafe block.storeBytes(of: keyID.littleEndian, toByteOffset: 50, as: UInt16.self)
        unsafe block.storeBytes(of: 0, toByteOffset: 52, as: UInt32.self)
        // The padding is in the last 8 bytes in front of the payload, as is at least one page.
        unsafe block.storeBytes(of: 0, toByteOffset: payloadOffset - 8, as: UInt64.self)
        var previous = -1
        for (i, page) in pages.enumerated() {
            precondition(Int(page) > previous && Int(page) < pagesPerSpan, "pages ascend within the span")
            previous = Int(page)
            unsafe block.storeBytes(of: page.littleEndian, toByteOffset: Self.fixedLength + 2 * i, as: UInt16.self)
        }
    }

    /// Decodes the fields of a whole run; the payload is bytes [payloadOffset, count).
    ///
    /// - Throws: any code of `FormatError` but those of slots; says nothing of whether the payload decodes.
    public static func decode(_ bytes: RawSpan) throws(FormatError) -> PageRunHeader {
        let (codec, pageCount, _) = try checkFields(bytes)
        var pages: [UInt16] = []
        pages.reserveCapacity(pageCount)
        for i in 0..<pageCount {
            let page = bytes.u16(fixedLength + 2 * i)
            try StoreFormat.check(
                page < pagesPerSpan && page > (pages.last.map(Int.init) ?? -1), subject, "its page list does not ascend")
            pages.append(page)
        }
        return PageRunHeader(
            regionKey: RegionKey(bytes.u64(32)), span: try PageTree.span(bytes, at: 40, subject), codec: codec,
            keyID: bytes.u16(50), pages: pages)
    }

    /// Checks, without allocating, that `bytes` are a whole run of `regionKey` and `span` whose page list has
    /// `page` at `position` (0-based).
    ///
    /// - Throws: `.misplaced` when it is another's; else as `decode`.
    public static func check(
        _ bytes: RawSpan, regionKey: RegionKey, span: SpanIndex, page: UInt16, at position: Int
    ) throws(FormatError) -> (codec: RunCodec, pageCount: Int, payloadOffset: Int) {
        let fields = try checkFields(bytes)
        try checkListed(bytes, regionKey: regionKey, span: span, page: page, at: position)
        return fields
    }

    /// Checks that the first `payloadOffset` bytes of a run, whose checksum the caller has verified, are of `regionKey` and
    /// `span` and list `page` at `position`.
    ///
    /// - Throws: `.truncated` when `bytes` end before the list does; `.misplaced`.
    public static func checkListed(
        _ bytes: RawSpan, regionKey: RegionKey, span: SpanIndex, page: UInt16, at position: Int
    ) throws(FormatError) {
        guard bytes.byteCount >= fixedLength, bytes.byteCount >= payloadOffset(pageCount: Int(bytes.u8(48))) else {
            throw FormatError(.truncated, subject: subject, reason: "\(bytes.byteCount) bytes end before its page list does")
        }
        guard bytes.u64(32) == regionKey.rawValue, bytes.u64(40) == span.firstPage.rawValue else {
            throw FormatError(
                .misplaced, subject: subject,
                reason: "region \(RegionKey(bytes.u64(32))), page \(bytes.u64(40)); wanted \(regionKey), page \(span.firstPage)")
        }
        guard position >= 0, position < Int(bytes.u8(48)), bytes.u16(fixedLength + 2 * position) == page else {
            throw FormatError(
                .misplaced, subject: subject, reason: "page \(page) of the span is not at place \(position) of its list")
        }
    }

    private static let subject = "page run"

    /// The fields that size the run.
    private static func checkFields(_ bytes: RawSpan)
        throws(FormatError) -> (codec: RunCodec, pageCount: Int, payloadOffset: Int)
    {
        try Block.checkHeader(bytes, kind: .run, fixedLength: fixedLength)
        let pageCount = Int(bytes.u8(48))
        try StoreFormat.check(pageCount >= 1 && pageCount <= pagesPerRun, subject, "\(pageCount) pages")
        guard let codec = RunCodec(rawValue: bytes.u8(49)) else {
            throw FormatError(.badField, subject: subject, reason: "codec \(bytes.u8(49))")
        }
        try StoreFormat.check(bytes.u16(50) == 0, subject, "encryption key \(bytes.u16(50)), which version 1 does not have")
        let payloadOffset = payloadOffset(pageCount: pageCount)
        let rawLength = pageCount * pageSize
        switch codec {
        case .raw: try bytes.requireExactly(payloadOffset + rawLength, subject)
        case .lz4:
            try bytes.require(payloadOffset + 1, subject)
            guard bytes.byteCount < payloadOffset + rawLength else {
                throw FormatError(.wrongLength, subject: subject, reason: "compressed, but not smaller")
            }
        }
        return (codec, pageCount, payloadOffset)
    }
}
