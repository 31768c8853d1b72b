// One bit for each page of a memory block.
//
// Invariant: bits behind the last page are clear.

import Units

/// A set of pages of one memory block.
public struct PageBitmap: Sendable, Equatable {
    /// How many pages the block has.
    public let pageCount: PageCount
    private var words: [UInt64]
    /// How many pages are in the set.
    public private(set) var count: PageCount

    /// No page, or all of them. Takes one bit of memory for each: check sizes from outside first.
    public init(pageCount: PageCount, isFull: Bool = false) {
        self.pageCount = pageCount
        words = [UInt64](repeating: 0, count: (pageCount.int + 63) / 64)
        count = .zero
        if isFull { insert(PageIndex(UInt64(0))..<PageIndex(pageCount.rawValue)) }
    }

    /// The set whose member i is bit i % 8 of byte i / 8; nil when there are fewer bytes than that needs, or when a bit
    /// behind the last page is set.
    public init?(pageCount: PageCount, littleEndian bytes: some Collection<UInt8>) {
        guard bytes.count >= (pageCount.int + 7) / 8 else { return nil }
        self.init(pageCount: pageCount)
        for (index, byte) in bytes.enumerated() where byte != 0 {
            guard index / 8 < words.count else { return nil }
            words[index / 8] |= UInt64(byte) << UInt64(index % 8 * 8)
        }
        let rest = pageCount.int % 64
        if rest != 0, let last = words.last, last >> UInt64(rest) != 0 { return nil }
        count = PageCount(words.reduce(0) { $0 + $1.nonzeroBitCount })
    }

    public var isEmpty: Bool { count == .zero }

    public func contains(_ page: PageIndex) -> Bool {
        precondition(page.rawValue < pageCount.rawValue)
        return words[page.int / 64] >> UInt64(page.int % 64) & 1 != 0
    }

    public mutating func insert(_ pages: Range<PageIndex>) {
        forEachWord(of: pages) { words, index, mask in
            let new = mask & ~words[index]
            words[index] |= mask
            return new.nonzeroBitCount
        }
    }

    public mutating func remove(_ pages: Range<PageIndex>) {
        forEachWord(of: pages) { words, index, mask in
            let gone = mask & words[index]
            words[index] &= ~mask
            return -gone.nonzeroBitCount
        }
    }

    /// Takes out what is in `other`, a set of pages of the same block.
    public mutating func subtract(_ other: PageBitmap) {
        precondition(other.pageCount == pageCount)
        for index in words.indices { words[index] &= ~other.words[index] }
        count = PageCount(words.reduce(0) { $0 + $1.nonzeroBitCount })
    }

    /// The first page of `pages` that is in the set, or that is not; nil when there is none. O(words).
    public func first(in pages: Range<PageIndex>, isMember: Bool) -> PageIndex? {
        precondition(pages.upperBound.rawValue <= pageCount.rawValue)
        var page = pages.lowerBound.int
        let end = pages.upperBound.int
        while page < end {
            let word = isMember ? words[page / 64] : ~words[page / 64]
            let rest = word >> UInt64(page % 64)
            if rest != 0 {
                page += rest.trailingZeroBitCount
                return page < end ? PageIndex(page) : nil
            }
            page = (page / 64 + 1) * 64
        }
        return nil
    }

    /// The pages of the set around `page`, as far as they follow each other within `limits`; `page` is one of them.
    public func run(around page: PageIndex, within limits: Range<PageIndex>) -> Range<PageIndex> {
        precondition(contains(page) && limits.contains(page))
        var low = page
        while low > limits.lowerBound, contains(PageIndex(low.rawValue - 1)) { low = PageIndex(low.rawValue - 1) }
        let high = first(in: page..<limits.upperBound, isMember: false) ?? limits.upperBound
        return low..<high
    }

    private mutating func forEachWord(
        of pages: Range<PageIndex>, _ change: (inout [UInt64], _ index: Int, _ mask: UInt64) -> Int
    ) {
        precondition(pages.upperBound.rawValue <= pageCount.rawValue)
        var difference = 0
        var page = pages.lowerBound.int
        let end = pages.upperBound.int
        while page < end {
            let next = min(end, (page / 64 + 1) * 64)
            let length = next - page
            let mask = (length == 64 ? UInt64.max : (1 << UInt64(length)) - 1) << UInt64(page % 64)
            difference += change(&words, page / 64, mask)
            page = next
        }
        count = PageCount(count.int + difference)
    }
}
