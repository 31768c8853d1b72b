// Sets of block groups as bits.
//
// Invariant: one bit for each group of the disk.

import Units

/// A set of a disk's block groups. Swapping two costs nothing.
struct GroupSet: Sendable, Equatable {
    private var words: [UInt64]

    init(count: Int) { words = [UInt64](repeating: 0, count: (count + 63) / 64) }

    mutating func insert(_ groups: Range<Int>) {
        for group in groups { words[group / 64] |= 1 << UInt64(group % 64) }
    }

    mutating func formUnion(_ other: GroupSet) {
        for index in words.indices { words[index] |= other.words[index] }
    }

    /// The groups as ranges, ascending, joined where they touch.
    var ranges: [Range<BlockGroup>] {
        var result: [Range<BlockGroup>] = []
        for (index, word) in words.enumerated() where word != 0 {
            for bit in 0..<64 where word >> UInt64(bit) & 1 != 0 {
                let group = BlockGroup(index * 64 + bit)
                if let last = result.last, last.upperBound == group {
                    result[result.count - 1] = last.lowerBound..<BlockGroup(group.rawValue + 1)
                } else {
                    result.append(group..<BlockGroup(group.rawValue + 1))
                }
            }
        }
        return result
    }
}
