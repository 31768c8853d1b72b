// Which pages change before a checkpoint, and changing them.
//
// Invariant: a page keeps the nature of its content, however often it is changed: 64 bytes change at a time, all of them among its
// first 256.

import Units

/// Picks pages of an image and changes them. The same choice in every run.
struct TimeBenchPages {
    /// How the changed pages lie.
    enum Pattern: String, CaseIterable, Encodable {
        case scattered, clustered
    }
    private let image: BenchImage
    /// Pages that are not zero, ascending.
    private let candidates: [Int]
    private var random: BenchRandom
    private static let changedBytes = 64
    private static let changedPlaces = 4
    /// Pages of a cluster: 1 MiB.
    private static let cluster = 256

    init(_ image: BenchImage, _ units: BenchUnits, seed: UInt64) {
        self.image = image
        candidates = units.units.flatMap(\.pages)
        random = BenchRandom(seed: seed)
    }

    /// How many of the image's pages `percent` are.
    func count(percent: Double) -> Int { max(1, min(candidates.count, Int(Double(image.pageCount) * percent / 100))) }

    /// Picks `count` pages that are not zero, and changes them. Returns them, ascending.
    mutating func change(_ pattern: Pattern, count: Int) -> [Int] {
        var chosen = Set<Int>()
        switch pattern {
        case .scattered:
            while chosen.count < count { chosen.insert(candidates[Int.random(in: 0..<candidates.count, using: &random)]) }
        case .clustered:
            while chosen.count < count {
                let start = Int.random(in: 0..<candidates.count, using: &random)
                chosen.formUnion(candidates[start..<min(start + min(Self.cluster, count - chosen.count), candidates.count)])
            }
        }
        let pages = chosen.sorted()
        change(pages)
        return pages
    }

    /// Changes the given pages.
    mutating func change(_ pages: [Int]) {
        for page in pages {
            let place = page * pageSize + Int.random(in: 0..<Self.changedPlaces, using: &random) * Self.changedBytes
            for word in 0..<Self.changedBytes / 8 {
                unsafe (image.memory.base + place + word * 8).storeBytes(of: random.next(), as: UInt64.self)
            }
        }
    }

    /// A page that is not zero.
    mutating func one() -> Int { candidates[Int.random(in: 0..<candidates.count, using: &random)] }
    var all: [Int] { candidates }
}
