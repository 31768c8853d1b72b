// Which of a span's 512 pages something is about.

import Units

/// A set of page numbers within one span, 0..<512.
struct PageSet: Equatable, Sendable {
    /// Not a SIMD vector: single pages are put in and looked up far more often than whole sets are combined.
    private var words = InlineArray<8, UInt64>(repeating: 0)

    init() {}

    /// The pages of `range`.
    init(_ range: Range<Int>) {
        precondition(range.lowerBound >= 0 && range.upperBound <= pagesPerSpan)
        for word in Self.words {
            let low = max(range.lowerBound - word * 64, 0)
            let high = min(range.upperBound - word * 64, 64)
            guard low < high else { continue }
            let ones = high - low == 64 ? UInt64.max : (UInt64(1) << UInt64(high - low)) - 1
            words[word] = ones << UInt64(low)
        }
    }

    static let all = PageSet(0..<pagesPerSpan)
    static func == (a: PageSet, b: PageSet) -> Bool { words.allSatisfy { a.words[$0] == b.words[$0] } }
    private static var words: Range<Int> { 0..<8 }
    var isEmpty: Bool { Self.words.allSatisfy { words[$0] == 0 } }
    var count: Int { Self.words.reduce(0) { $0 + words[$1].nonzeroBitCount } }
    @inline(__always) func contains(_ page: Int) -> Bool { words[page >> 6] >> UInt64(page & 63) & 1 == 1 }
    @inline(__always) mutating func insert(_ page: Int) { words[page >> 6] |= 1 << UInt64(page & 63) }
    @inline(__always) mutating func remove(_ page: Int) { words[page >> 6] &= ~(1 << UInt64(page & 63)) }
    /// The highest page; nil when there is none.
    var last: Int? {
        for word in Self.words.reversed() where words[word] != 0 { return word * 64 + 63 - words[word].leadingZeroBitCount }
        return nil
    }
    func union(_ other: PageSet) -> PageSet {
        var result = self
        for word in Self.words { result.words[word] |= other.words[word] }
        return result
    }
    func subtracting(_ other: PageSet) -> PageSet {
        var result = self
        for word in Self.words { result.words[word] &= ~other.words[word] }
        return result
    }

    /// The pages as those of a region, this set being of `span`.
    func ranges(in span: SpanIndex) -> PageRanges {
        PageRanges(
            (0..<pagesPerSpan).runs(where: contains).map {
                span.firstPage + PageCount($0.lowerBound)..<span.firstPage + PageCount($0.upperBound)
            })
    }

    /// Calls `body` with each page, ascending.
    @inline(__always)
    func forEach<E: Error>(_ body: (Int) throws(E) -> Void) throws(E) {
        for word in Self.words {
            var bits = words[word]
            while bits != 0 {
                try body(word * 64 + bits.trailingZeroBitCount)
                bits &= bits - 1
            }
        }
    }
}
