// What is measured of the store: saves, restores, reads and the rest, each a call of the library.
//
// Invariant: a save counts until its commit has returned, when it is durable.

import CheckpointStore
import Glibc
import Histogram
import Media
import StoreFormat
import Units

/// Measures one store. One method call is one round; those that return a `Double` return seconds.
struct BenchWork {
    let store: CheckpointStore
    let image: BenchImage
    let threads: Int

    static let region = "ram"

    enum Input: Sendable {
        /// From memory that nobody changes, or from memory that might change.
        case memory(isStable: Bool)
        case file(Int32)
        /// Page by page, these alone.
        case pages([Int])
    }

    /// Saves the image as a checkpoint.
    func save(_ name: String, parent: String? = nil, _ input: Input) throws -> Double {
        try seconds {
            let writer = try store.begin(name, parent: parent, options: WriterOptions(parallelism: threads))
            let region = try writer.addRegion(Self.region, kind: .memory, byteLength: ByteCount(image.memory.count))
            switch input {
            case .memory(let isStable):
                unsafe try region.write(image.memory.reading, at: PageIndex(UInt64(0)), isStable: isStable)
            case .file(let descriptor):
                try region.write(file: descriptor, byteLength: ByteCount(image.memory.count))
            case .pages(let pages):
                for page in pages {
                    unsafe try region.put(page: PageIndex(page), image.memory.piece(page * pageSize..<(page + 1) * pageSize))
                }
            }
            try writer.commit()
        }
    }

    /// A commit of a checkpoint without regions.
    func commitEmpty(_ name: String) throws -> Double {
        let writer = try store.begin(name, options: WriterOptions(parallelism: 1))
        return try seconds { try writer.commit() }
    }

    func region(of name: String) throws -> RegionReader {
        try store.snapshot().reader(named: name).region(Self.region)
    }

    /// Reads the whole region into `target`.
    func restore(_ name: String, into target: BenchMemory, isZeroed: Bool) throws -> Double {
        let region = try region(of: name)
        return try seconds { unsafe try region.readAll(into: target.bytes, isZeroed: isZeroed, parallelism: threads) }
    }

    /// Times `count` reads of pages chosen at random among `pages`, in nanoseconds. Everything has been read once.
    func readPages(_ name: String, _ pages: [Int], count: Int) throws -> Histogram<UInt64> {
        let region = try region(of: name)
        let buffer = try BenchMemory(count: pageSize, isTouched: true)
        var random = BenchRandom(seed: 11)
        var histogram = Histogram<UInt64>(highestTrackableValue: 10_000_000_000)
        let chosen = (0..<count).map { _ in pages[Int.random(in: 0..<pages.count, using: &random)] }
        for page in chosen.prefix(count / 10) { unsafe try region.read(page: PageIndex(page), into: buffer.bytes) }
        for page in chosen {
            let start = monotonicNanoseconds()
            unsafe try region.read(page: PageIndex(page), into: buffer.bytes)
            histogram.record(monotonicNanoseconds() - start)
        }
        return histogram
    }

    /// Verifies one checkpoint. Returns the stored bytes that were read, too.
    func verify(_ name: String) throws -> (seconds: Double, bytes: Int) {
        let start = monotonicSeconds()
        let report = try store.verify(checkpoint: name, options: VerifyOptions(parallelism: threads))
        let time = monotonicSeconds() - start
        guard report.isSound else {
            throw StoreError(
                .corrupt, report.damages.first.map(\.description) ?? "", remedy: "This is a defect of ckstore or of the machine.",
                medium: store.medium.name, checkpoint: name)
        }
        return (time, report.bytes.int)
    }

    /// Throws unless `target` is what was saved.
    func checkRestored(_ target: BenchMemory) throws {
        guard unsafe memcmp(target.base, image.memory.base, image.memory.count) == 0 else {
            throw StoreError(
                .corrupt, "what was restored is not what was saved", remedy: "This is a defect of ckstore or of the machine.",
                medium: store.medium.name)
        }
    }
}

/// Pages that are changed, scattered over the image, and put back.
struct BenchDirtying {
    let pages: [Int]
    private let image: BenchImage
    private let originals: BenchMemory
    private static let changedBytes = 64

    /// Picks `percent` of the image's pages among `candidates`.
    init(_ image: BenchImage, percent: Double, among candidates: [Int]) throws {
        var random = BenchRandom(seed: 23)
        let count = max(1, min(candidates.count, Int(Double(image.pageCount) * percent / 100)))
        pages = candidates.shuffled(using: &random).prefix(count).sorted()
        self.image = image
        originals = try BenchMemory(count: count * pageSize, isTouched: true)
        for (index, page) in pages.enumerated() {
            unsafe memcpy(originals.base + index * pageSize, image.memory.base + page * pageSize, pageSize)
        }
    }

    /// Changes 64 bytes in each page; other ones in each round.
    func change(round: Int) {
        var random = BenchRandom(seed: UInt64(100 + round))
        for page in pages {
            let place = page * pageSize + Int.random(in: 0..<pageSize / Self.changedBytes, using: &random) * Self.changedBytes
            for word in 0..<Self.changedBytes / 8 {
                unsafe (image.memory.base + place + word * 8).storeBytes(of: random.next(), as: UInt64.self)
            }
        }
    }

    func putBack() {
        for (index, page) in pages.enumerated() {
            unsafe memcpy(image.memory.base + page * pageSize, originals.base + index * pageSize, pageSize)
        }
    }
}
