// One run of the bench: rounds of limits and results, interleaved so that noise hits both.
//
// Invariant: the image is unchanged after each round, and every round starts with an empty store.

import CheckpointStore
import Glibc
import Histogram
import Media
import StoreFormat
import Units

/// What the rounds of a run gathered.
struct BenchSamples {
    /// Seconds, by what was measured, one for each round.
    var seconds: [BenchItem: [Double]] = [:]
    var pageReads = Histogram<UInt64>(highestTrackableValue: 10_000_000_000)
    var verifiedBytes = 0
    var saveMemoryBytes = 0
    var emptyCommit = (flushes: 0, writes: 0)
    var full = BenchSpace()
    var dirty = BenchSpace()
    /// Which number of threads wrote fastest to the medium.
    var mediumThreads = 0

    mutating func add(_ item: BenchItem, _ value: Double) { seconds[item, default: []].append(value) }
    /// The best round; nil: not measured.
    func best(_ item: BenchItem) -> Double? { seconds[item]?.min() }
    func median(_ item: BenchItem) -> Double? {
        guard let sorted = seconds[item]?.sorted(), !sorted.isEmpty else { return nil }
        return sorted[sorted.count / 2]
    }
}

/// Where the bytes of a save went.
struct BenchSpace {
    var runBytes = 0
    var indexBytes = 0
    var catalogBytes = 0

    init() {}
    init(_ info: StoreInfo) {
        runBytes = info.runBytes.int
        indexBytes = info.indexBytes.int
        catalogBytes = info.catalogBytes.int
    }
    func since(_ before: BenchSpace) -> BenchSpace {
        var result = self
        result.runBytes -= before.runBytes
        result.indexBytes -= before.indexBytes
        // The nodes that a commit writes replace older ones: what it wrote is at most what there is.
        return result
    }
    var metadataShare: Double { Double(indexBytes + catalogBytes) / Double(max(runBytes, 1)) }
}

/// Everything that is timed.
enum BenchItem: String, CaseIterable {
    case memcpyOne, memcpyAll, zeroScan, hash, compressOne, compressAll, decompressOne, decompressAll
    case compute, computeAndMediumWrite, decode, firstTouch, hashStored, mediumWrite, mediumRead
    case saveStable, saveUnstable, saveFile, saveUnchanged, saveDirty, saveDirtyPages
    case restoreResident, restoreFresh, verify, open, openSparse, commitEmpty
}

struct BenchRun {
    let scratch: BenchScratch
    let image: BenchImage
    let units: BenchUnits
    let target: BenchMemory
    let file: Int32
    let dirtying: BenchDirtying
    let threads: Int
    let say: (String) -> Void
    var samples = BenchSamples()

    private var limits: BenchLimits { BenchLimits(image: image, units: units, target: target, threads: threads) }
    private static let pageReads = 100_000
    private static let opens = 51
    private static let emptyCommits = 21

    /// Measures everything once.
    mutating func round(_ number: Int, of count: Int) throws {
        let say = { [say] (what: String) in say("round \(number + 1) of \(count): \(what)") }
        say("limits of the medium")
        try mediumLimits(number)
        let store = try scratch.makeStore()
        defer { store.close() }
        let work = BenchWork(store: store, image: image, threads: threads)
        if number == 0 {
            say("memory of a save")
            samples.saveMemoryBytes = try MemoryWatch().growth { _ = try work.save("memory", .memory(isStable: true)) }
            _ = try store.delete(["memory"])
        }
        say("full saves")
        try saves(work)
        say("incremental saves")
        try incremental(work, number)
        say("restores")
        try restores(work)
        say("page reads, verify")
        samples.pageReads.add(try work.readPages("stable", units.units.flatMap(\.pages), count: Self.pageReads))
        samples.add(.hashStored, try limits.hashStored())
        let verified = try work.verify("stable")
        samples.add(.verify, verified.seconds)
        samples.verifiedBytes = verified.bytes
        say("limits of the machine")
        try machineLimits()
        say("empty commits")
        for index in 0..<Self.emptyCommits { samples.add(.commitEmpty, try work.commitEmpty("empty-\(index)")) }
    }

    private mutating func mediumLimits(_ number: Int) throws {
        let (medium, place) = try scratch.bareMedium()
        defer { medium.close() }
        let writers = 2 + number % 3
        let before = samples.best(.mediumWrite)
        samples.add(.mediumWrite, try limits.mediumWrite(medium, at: place, threads: writers))
        if samples.best(.mediumWrite) != before { samples.mediumThreads = writers }
        samples.add(
            .computeAndMediumWrite, try limits.computeAndMediumWrite(medium, at: place + ByteCount(units.packedSpan)))
        // Once to have the medium's mapping in place, as a store that is in use has.
        _ = try limits.mediumRead(medium, at: place)
        samples.add(.mediumRead, try limits.mediumRead(medium, at: place))
    }

    private mutating func saves(_ work: BenchWork) throws {
        let before = BenchSpace(try work.store.info())
        samples.add(.compute, try limits.compute())
        samples.add(.saveStable, try work.save("stable", .memory(isStable: true)))
        samples.full = BenchSpace(try work.store.info()).since(before)
        samples.add(.compute, try limits.compute())
        samples.add(.saveUnstable, try work.save("unstable", .memory(isStable: false)))
        samples.add(.saveFile, try work.save("file", .file(file)))
    }

    private mutating func incremental(_ work: BenchWork, _ number: Int) throws {
        samples.add(.hash, try limits.hash())
        samples.add(.saveUnchanged, try work.save("unchanged", parent: "stable", .memory(isStable: true)))
        samples.add(.hash, try limits.hash())
        dirtying.change(round: number)
        defer { dirtying.putBack() }
        let before = BenchSpace(try work.store.info())
        samples.add(.saveDirty, try work.save("dirty", parent: "stable", .memory(isStable: true)))
        samples.dirty = BenchSpace(try work.store.info()).since(before)
        samples.add(.saveDirtyPages, try work.save("dirty-pages", parent: "stable", .pages(dirtying.pages)))
    }

    private mutating func restores(_ work: BenchWork) throws {
        // Once to have the store's mapping in place.
        _ = try work.restore("stable", into: target, isZeroed: false)
        try work.checkRestored(target)
        samples.add(.decode, try limits.decode())
        samples.add(.restoreResident, try work.restore("stable", into: target, isZeroed: false))
        samples.add(.decode, try limits.decode())
        samples.add(.firstTouch, try limits.firstTouch())
        let fresh = try BenchMemory(count: image.memory.count, isTouched: false)
        samples.add(.restoreFresh, try work.restore("stable", into: fresh, isZeroed: true))
        samples.add(.firstTouch, try limits.firstTouch())
        try work.checkRestored(fresh)
    }

    private mutating func machineLimits() throws {
        samples.add(.memcpyOne, try limits.memcpy(threads: 1))
        samples.add(.memcpyAll, try limits.memcpy(threads: threads))
        samples.add(.zeroScan, try limits.zeroScan())
        samples.add(.compressOne, try limits.compress(threads: 1))
        samples.add(.compressAll, try limits.compress(threads: threads))
        samples.add(.decompressOne, try limits.decompress(threads: 1))
        samples.add(.decompressAll, try limits.decompress(threads: threads))
    }

    /// Opening, which needs no rounds: it is short.
    mutating func opens() throws {
        say("opening")
        for _ in 0..<Self.opens {
            samples.add(.open, try seconds { try scratch.open().close() })
        }
        let samples = try scratch.withSparseStore(ByteCount.gibibytes(1024)) { locator in
            try (0..<Self.opens).map { _ in
                try seconds { try CheckpointStore.open(try openMedium(locator, access: .readWrite)).close() }
            }
        }
        for value in samples ?? [] { self.samples.add(.openSparse, value) }
    }

    /// Counts what an empty commit does to the medium.
    mutating func countEmptyCommit() throws {
        let counting = CountingMedium(try openMedium(scratch.locator, access: .readWrite))
        let store = try CheckpointStore.open(counting)
        defer { store.close() }
        let work = BenchWork(store: store, image: image, threads: 1)
        // The first one of a handle settles what others wrote before.
        _ = try work.commitEmpty("counted-first")
        let before = counting.flushesAndWrites
        _ = try work.commitEmpty("counted")
        let after = counting.flushesAndWrites
        samples.emptyCommit = (after.flushes - before.flushes, after.writes - before.writes)
    }
}
