// Small forests of checkpoints, each with changes of its own, and what they must contain.
//
// Invariant: a shape and a seed decide everything: the same ones make the same store.

import CheckpointStore
import FaultHarness
import Media
import StoreFormat
import StoreTesting
import Units

/// Who descends from whom: `parents[i]` is below `i`, or nil for a root.
struct ForestShape: Sendable, CustomStringConvertible {
    var parents: [Int?]

    var description: String { parents.map { $0.map(String.init) ?? "-" }.joined(separator: " ") }

    /// Every forest of `count` checkpoints in the order in which they can be saved: count! of them.
    static func all(of count: Int) -> [ForestShape] {
        guard count > 0 else { return [ForestShape(parents: [])] }
        return all(of: count - 1).flatMap { smaller in
            ([nil] + (0..<count - 1).map { $0 as Int? }).map { ForestShape(parents: smaller.parents + [$0]) }
        }
    }

    /// Every forest of `count` checkpoints, each once, in whatever order its members were saved.
    static func different(of count: Int) -> [ForestShape] {
        var seen = Set<String>()
        return all(of: count).filter { seen.insert($0.form(below: nil)).inserted }
    }

    /// What the trees below a member (nil: all trees) look like, the same for those that differ by their numbers alone.
    private func form(below member: Int?) -> String {
        let children = parents.indices.filter { parents[$0] == member }
        return "(" + children.map { form(below: $0) }.sorted().joined() + ")"
    }
}

/// A region's pages that are not zero: what each is filled with.
struct ForestRegion: Equatable {
    var pageCount = 0
    var pages: [Int: UInt64] = [:]

    mutating func resize(to count: Int) {
        pageCount = count
        pages = pages.filter { $0.key < count }
    }
}

/// A store with a forest of checkpoints "0", "1", ... and their content.
struct Forest {
    let device = SimulatedDevice(size: .mebibytes(8))
    private(set) var contents: [[String: ForestRegion]] = []
    private var random: SeededGenerator
    private var serial: UInt64 = 0

    init(_ shape: ForestShape, seed: UInt64) throws {
        random = SeededGenerator(seed: seed)
        let store = try CheckpointStore.create(
            on: FaultMedium(device), options: CreateOptions(segmentSize: .kibibytes(128)), environment: testEnvironment(seed: seed))
        defer { store.close() }
        for (number, parent) in shape.parents.enumerated() { try save(number, over: parent, on: store) }
        device.forgetLog()
    }

    /// One checkpoint with random changes; the second region is now and then taken over, left out or made longer or shorter.
    mutating func save(_ number: Int, over parent: Int?, on store: CheckpointStore) throws {
        var content = parent.map { contents[$0] } ?? [:]
        let options = WriterOptions(parallelism: 1)
        let writer = try store.begin("\(number)", parent: parent.map(String.init), options: options)
        var ram = content["ram"] ?? ForestRegion()
        if parent == nil || random.chance(1, in: 3) { ram.resize(to: [300, 1100, 1536, 1700][random.below(4)]) }
        content["ram"] = try change(ram, "ram", writer)
        switch random.below(4) {
        case 0: content["disk"] = nil
        case 1 where content["disk"] != nil: try writer.inheritRegion("disk")
        default:
            var disk = content["disk"] ?? ForestRegion()
            if disk.pageCount == 0 { disk.resize(to: 20) }
            content["disk"] = try change(disk, "disk", writer)
        }
        try writer.commit()
        contents.append(content)
    }

    /// Changes some pages of some spans; now and then more than a patch leaf holds, and now and then some of them twice.
    private mutating func change(_ old: ForestRegion, _ name: String, _ writer: CheckpointWriter) throws -> ForestRegion {
        var new = old
        let region = try writer.addRegion(name, kind: .disk, byteLength: PageCount(new.pageCount).bytes)
        for _ in 0..<(1 + random.below(2)) {
            for span in 0..<(new.pageCount + pagesPerSpan - 1) / pagesPerSpan where random.chance(2, in: 3) {
                let first = span * pagesPerSpan
                let room = min(pagesPerSpan, new.pageCount - first)
                // Rarely more than the 64 that fit into a patch leaf; those lie together, so that few runs hold them.
                if random.chance(1, in: 6) {
                    let start = random.below(max(1, room - 70))
                    for page in start..<min(start + 70, room) { try put(first + page, &new, region) }
                } else {
                    for _ in 0..<(1 + random.below(5)) { try put(first + random.below(room), &new, region) }
                }
            }
            // Whatever has been put so far is saved by this: what comes behind it is put over it.
            let zeroed = random.below(new.pageCount)
            new.pages[zeroed] = nil
            try region.putZeros(PageIndex(zeroed)..<PageIndex(zeroed + 1))
        }
        return new
    }

    private mutating func put(_ page: Int, _ content: inout ForestRegion, _ region: RegionWriter) throws {
        serial += 1
        content.pages[page] = serial
        try region.put(page: PageIndex(page), Self.fill(serial))
    }

    private static func fill(_ tag: UInt64) -> [UInt8] {
        unsafe [UInt8](unsafeUninitializedCapacity: pageSize) { buffer, count in
            for index in 0..<pageSize / 8 {
                unsafe UnsafeMutableRawPointer(buffer.baseAddress!).storeBytes(of: tag, toByteOffset: index * 8, as: UInt64.self)
            }
            count = pageSize
        }
    }

    /// Throws unless checkpoint `number` reads as it was saved.
    func requireContent(of number: Int, in store: CheckpointStore) throws {
        let reader = try store.snapshot().reader(named: "\(number)")
        for (name, expected) in contents[number] {
            let region = try reader.region(name)
            guard region.info.pageCount.int == expected.pageCount else { throw Mismatch("\(number)/\(name) has another length") }
            let found = try Self.pages(of: region)
            guard found == expected.pages else { throw Mismatch("\(number)/\(name) reads otherwise than it was saved") }
        }
        guard reader.info.regions.count == contents[number].count else { throw Mismatch("\(number) has other regions") }
    }

    /// What the pages that are not zero are filled with.
    private static func pages(of region: RegionReader) throws -> [Int: UInt64] {
        var pages: [Int: UInt64] = [:]
        var bytes = [UInt8](repeating: 0, count: pagesPerSpan * pageSize)
        for range in try region.dataRanges() {
            let count = (range.upperBound - range.lowerBound).bytes.int
            try unsafe bytes.withUnsafeMutableBytes { buffer in
                let target = unsafe UnsafeMutableRawBufferPointer(rebasing: buffer[0..<count])
                try unsafe region.read(pages: range, into: target)
                for page in 0..<count / pageSize {
                    let words = unsafe UnsafeRawBufferPointer(rebasing: target[page * pageSize..<(page + 1) * pageSize])
                    let tag = unsafe words.load(as: UInt64.self)
                    let isWhole = stride(from: 0, to: pageSize, by: 512).allSatisfy { unsafe words.load(fromByteOffset: $0, as: UInt64.self) == tag }
                    pages[Int(range.lowerBound.rawValue) + page] = isWhole ? tag : 0
                }
            }
        }
        return pages
    }
}
