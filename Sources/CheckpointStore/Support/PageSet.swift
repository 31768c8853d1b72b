// Which of a span's 512 pages something is about.

import Units

/// A set of page numbers within one span, 0..<512.
struct PageSet: Hashable, Sendable {
    private var words = SIMD8<UInt64>(repeating: 0)

    init() {}

    /// The pages of `range`.
    init(_ range: Range<Int>) {
        precondition(range.lowerBound >= 0 && range.upperBound <= pagesPerSpan)
        for word in 0..<8 {
            let low = max(range.lowerBound - word * 64, 0)
            let high = min(range.upperBound - word * 64, 64)
            guard low < high else { continue }
            let ones = high - low == 64 ? UInt64.max : (UInt64(1) << UInt64(high - low)) - 1
            words[word] = ones << UInt64(low)
        }
    }

    static let all = PageSet(0..<pagesPerSpan)
    var isEmpty: Bool { words == SIMD8(repeating: 0) }
    var count: Int { (0..<8).reduce(0) { $0 + words[$1].nonzeroBitCount } }
    @inline(__always) func contains(_ page: Int) -> Bool { words[page >> 6] >> UInt64(page & 63) & 1 == 1 }
    @inline(__always) mutating func insert(_ page: Int) { words[page >> 6] |= 1 << UInt64(page & 63) }
    @inline(__always) mutating func remove(_ page: Int) { words[page >> 6] &= ~(1 << UInt64(page & 63)) }
    func union(_ other: PageSet) -> PageSet {
        var result = self
        result.words |= other.words
        return result
    }
    func subtracting(_ other: PageSet) -> PageSet {
        var result = self
        result.words &= ~other.words
        return result
    }

    /// Calls `body` with each page, ascending.
    @inline(__always)
    func forEach<E: Error>(_ body: (Int) throws(E) -> Void) throws(E) {
        for word in 0..<8 {
            var bits = words[word]
            while bits != 0 {
                try body(word * 64 + bits.trailingZeroBitCount)
                bits &= bits - 1
            }
        }
    }
}
