// The oracle: what a store must contain, kept in plain arrays.
//
// Invariant: nothing here uses the engine's own ideas (runs, leaves, hashes); a region is its bytes.

import CheckpointStore
import FaultHarness
import Glibc
import Media
import StoreFormat
import Synchronization
import Units

/// A test found what must not be.
package struct Mismatch: Error, CustomStringConvertible {
    package var description: String
    package init(_ description: String) { self.description = description }
}

/// A checkpoint as it should read back: its regions' bytes.
package typealias ModelCheckpoint = [String: [UInt8]]

/// The pages that tests write: some zero, some that compress, some that don't, repeated now and then.
package func makePage(_ random: inout SeededGenerator) -> [UInt8] {
    let word = random.next().littleEndianBytes
    switch random.next() % 8 {
    case 0, 1: return [UInt8](repeating: 0, count: pageSize)
    case 2: return noise(random.next())
    case 3: return [UInt8](repeating: word[0], count: pageSize)
    default:
        var page = [UInt8](repeating: 0, count: pageSize)
        for index in 0..<64 { page.replaceSubrange(index * 64..<index * 64 + 8, with: word) }
        return page
    }
}

/// A page that does not compress: pieces of one random block, made once, in a place that the seed chooses.
private func noise(_ seed: UInt64) -> [UInt8] {
    let start = Int(seed % UInt64(noiseBlock.count - pageSize))
    return Array(noiseBlock[start..<start + pageSize])
}

private let noiseBlock: [UInt8] = {
    var random = SeededGenerator(seed: 42)
    return (0..<32768).flatMap { _ in random.next().littleEndianBytes }
}()

extension UInt64 {
    package var littleEndianBytes: [UInt8] { (0..<8).map { UInt8(truncatingIfNeeded: self >> UInt64(8 * $0)) } }
}

/// Random numbers and a clock that make a run repeatable.
package func testEnvironment(seed: UInt64) -> StoreEnvironment {
    let source = TestRandom(seed: seed)
    return StoreEnvironment(
        random: { source.next() }, nowNanoseconds: { 1_700_000_000_000_000_000 + source.tick() }, commitTimeout: .seconds(10))
}

/// A seeded source of random numbers that threads may share, and a clock that counts how often it is looked at.
package final class TestRandom: Sendable {
    private let state: Mutex<(SeededGenerator, UInt64)>
    package init(seed: UInt64) { state = Mutex((SeededGenerator(seed: seed), 0)) }
    package func next() -> UInt64 { state.withLock { $0.0.next() } }
    package func tick() -> UInt64 {
        state.withLock {
            $0.1 += 1
            return $0.1
        }
    }
}

extension RegionReader {
    /// The whole region as an array, read in parallel.
    package func bytes(parallelism: Int = 1) throws -> [UInt8] {
        let pages = info.pageCount
        guard pages.rawValue > 0 else { return [] }
        var bytes = [UInt8](repeating: 0xEE, count: pages.bytes.int)
        try unsafe bytes.withUnsafeMutableBytes { try unsafe readAll(into: $0, parallelism: parallelism) }
        if bytes[info.byteLength.int...].contains(where: { $0 != 0 }) {
            throw Mismatch("the padding behind the end of \(info.name) is not zero")
        }
        return Array(bytes[0..<info.byteLength.int])
    }
}

extension RegionWriter {
    package func write(_ bytes: [UInt8], at page: PageIndex = PageIndex(UInt64(0)), isStable: Bool = false) throws {
        try unsafe bytes.withUnsafeBytes { try unsafe write($0, at: page, isStable: isStable) }
    }
    package func put(page: PageIndex, _ bytes: [UInt8]) throws {
        try unsafe bytes.withUnsafeBytes { try unsafe put(page: page, $0) }
    }
}

/// How many pages of `bytes` are not zero. By `memcmp`: element by element is far too slow in debug builds.
package func nonZeroPages(_ bytes: [UInt8]) -> Int {
    let zeros = [UInt8](repeating: 0, count: pageSize)
    return unsafe bytes.withUnsafeBytes { bytes in
        stride(from: 0, to: bytes.count, by: pageSize).count { start in
            unsafe memcmp(bytes.baseAddress! + start, zeros, min(pageSize, bytes.count - start)) != 0
        }
    }
}

extension CheckpointStore {
    /// Throws unless the store holds exactly `model`, by every way of reading it.
    /// - Parameter allowsLostSpace: a deletion could not read what it had to, so that `live` may be more than is reachable.
    package func requireEqual(
        _ model: [String: ModelCheckpoint], parallelism: Int = 1, deep: Bool = true, allowsLostSpace: Bool = false
    ) throws {
        let snapshot = try snapshot()
        // What has come of a checkpoint in part is no checkpoint yet.
        let names = try snapshot.names().filter { !Names.isPartial($0) }
        guard names == model.keys.sorted(by: { $0.utf8.lexicographicallyPrecedes($1.utf8) }) else {
            throw Mismatch("checkpoints \(names), expected \(model.keys.sorted())")
        }
        for (name, regions) in model.sorted(by: { $0.key < $1.key }) {
            let reader = try snapshot.reader(named: name)
            guard reader.info.regions.map(\.name) == regions.keys.sorted() else {
                throw Mismatch("\(name): regions \(reader.info.regions.map(\.name)), expected \(regions.keys.sorted())")
            }
            for (regionName, expected) in regions {
                let region = try reader.region(regionName)
                let found = try region.bytes(parallelism: parallelism)
                guard found == expected else {
                    let at = zip(found, expected).enumerated().first { $0.element.0 != $0.element.1 }?.offset
                    throw Mismatch(
                        "\(name)/\(regionName): \(found.count) bytes, expected \(expected.count), first difference at \(at ?? -1)")
                }
                let storedPages = nonZeroPages(expected)
                guard region.info.storedPages.int == storedPages else {
                    throw Mismatch("\(name)/\(regionName): counts \(region.info.storedPages) stored pages, has \(storedPages)")
                }
            }
        }
        guard deep else { return }
        let report = try verify(options: VerifyOptions(checksPages: true, parallelism: parallelism))
        if let damage = report.damages.first { throw Mismatch("verify finds \(report.damages.count) damages: \(damage)") }
        guard allowsLostSpace || (report.lostPages == .zero && report.lostBytes == .zero) else {
            throw Mismatch("the table counts \(report.lostPages) pages and \(report.lostBytes) bytes as alive that nothing reaches")
        }
    }
}
