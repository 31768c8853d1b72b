// Making stores whose contents are known, page by page.
//
// Invariant: the model holds what was asked for, never what was read back.

import CheckpointStore
import FaultHarness
import Foundation
import Media
import StoreFormat
import Synchronization
import Units

/// What a region should hold: its pages that are not zero.
struct ModelRegion {
    var kind: RegionKind
    var byteLength: UInt64
    var pages: [PageIndex: [UInt8]] = [:]

    var pageCount: PageCount { PageCount(covering: ByteCount(byteLength)) }
    var digest: String { pagesDigest(pages.sorted { $0.key < $1.key }.map { ($0.key, $0.value) }) }
}

/// What becomes of a page.
enum Change {
    case page(UInt64, [UInt8])
    case zeros(Range<UInt64>)
}

/// What a checkpoint does to one region.
struct RegionChange {
    var name: String
    var kind = RegionKind.memory
    var byteLength: UInt64
    var changes: [Change] = []
}

/// A store being written, and what it must hold.
struct Workshop {
    var store: CheckpointStore
    var random: SeededGenerator
    var model: [String: [String: ModelRegion]] = [:]
    var parallelism = 1

    init(_ medium: any Medium, segmentSize: ByteCount = .mebibytes(2), seed: UInt64) throws {
        store = try CheckpointStore.create(
            on: medium, options: CreateOptions(segmentSize: segmentSize), environment: repeatableEnvironment(seed: seed))
        random = SeededGenerator(seed: seed)
    }

    /// Writes a checkpoint; regions of the parent that `changes` does not name are left out.
    mutating func save(
        _ name: String, parent: String? = nil, labels: [String: String] = [:], inherit: [String] = [], _ changes: RegionChange...
    ) throws {
        let writer = try prepare(name, parent: parent, labels: labels, inherit: inherit, changes)
        try writer.commit()
    }

    /// Writes all of a checkpoint but its commit.
    mutating func prepare(
        _ name: String, parent: String? = nil, labels: [String: String] = [:], inherit: [String] = [], _ changes: [RegionChange]
    ) throws -> CheckpointWriter {
        let writer = try store.begin(name, parent: parent, options: WriterOptions(parallelism: parallelism, labels: labels))
        var regions: [String: ModelRegion] = [:]
        for change in changes {
            let handle = try writer.addRegion(change.name, kind: change.kind, byteLength: ByteCount(change.byteLength))
            var region = parent.flatMap { model[$0]?[change.name] } ?? ModelRegion(kind: change.kind, byteLength: 0)
            region.resize(to: change.byteLength)
            try region.apply(change.changes, handle)
            regions[change.name] = region
        }
        for region in inherit {
            try writer.inheritRegion(region)
            regions[region] = parent.flatMap { model[$0]?[region] }
        }
        model[name] = regions
        return writer
    }

    mutating func delete(_ names: [String]) throws {
        let result = try store.delete(names)
        if let obstacle = result.obstacle { throw obstacle }
        for name in names { model[name] = nil }
    }

    /// A page that does not compress.
    mutating func noisePage() -> [UInt8] { (0..<pageSize / 8).flatMap { _ in bytes(random.next()) } }

    /// Some pages that are easily told apart, a few of which don't compress.
    mutating func pages(_ range: Range<UInt64>, salt: UInt64) -> [Change] {
        range.map { index in
            .page(index, random.next() % 5 == 0 ? noisePage() : textPage(salt << 32 | index))
        }
    }
}

extension ModelRegion {
    mutating func resize(to length: UInt64) {
        byteLength = length
        let end = pageCount
        pages = pages.filter { $0.key.rawValue < end.rawValue }
        let used = Int(length % UInt64(pageSize))
        guard used > 0 else { return }
        let last = PageIndex(end.rawValue - 1)
        if var page = pages[last] {
            page.replaceSubrange(used..., with: repeatElement(0, count: pageSize - used))
            pages[last] = page.contains { $0 != 0 } ? page : nil
        }
    }

    /// Does to `writer` and to the model the same. The last page of an odd length is cut off where the region ends.
    mutating func apply(_ changes: [Change], _ writer: RegionWriter) throws {
        for change in changes {
            switch change {
            case .zeros(let range):
                try writer.putZeros(PageIndex(range.lowerBound)..<PageIndex(range.upperBound))
                pages = pages.filter { !range.contains($0.key.rawValue) }
            case .page(let index, let bytes):
                let room = Int(min(byteLength - index * UInt64(pageSize), UInt64(pageSize)))
                let used = Array(bytes[..<room])
                try unsafe used.withUnsafeBytes { used in
                    if room == pageSize {
                        try unsafe writer.put(page: PageIndex(index), used)
                    } else {
                        try unsafe writer.write(used, at: PageIndex(index), isStable: false)
                    }
                }
                let page = used + [UInt8](repeating: 0, count: pageSize - room)
                pages[PageIndex(index)] = page.contains { $0 != 0 } ? page : nil
            }
        }
    }
}

/// A page that compresses well and is like no other.
func textPage(_ tag: UInt64) -> [UInt8] {
    let text = Array("page \(tag) of a store that two readers agree on. ".utf8)
    return (0..<pageSize).map { $0 < 1024 ? text[$0 % text.count] : 0 }
}

private func bytes(_ word: UInt64) -> [UInt8] { (0..<8).map { UInt8(truncatingIfNeeded: word >> (8 * $0)) } }

/// Random numbers and a clock that make a run repeatable.
func repeatableEnvironment(seed: UInt64) -> StoreEnvironment {
    let source = RepeatableSource(seed: seed)
    return StoreEnvironment(
        random: { source.next() }, nowNanoseconds: { source.tick() }, commitTimeout: .seconds(10))
}

private final class RepeatableSource: Sendable {
    private let state: Mutex<(generator: SeededGenerator, time: UInt64)>
    init(seed: UInt64) { state = Mutex((SeededGenerator(seed: seed), 1_700_000_000_000_000_000)) }
    func next() -> UInt64 { state.withLock { $0.generator.next() } }
    func tick() -> UInt64 {
        state.withLock {
            $0.time += 1_000_000
            return $0.time
        }
    }
}

/// A new sparse file in `files`.
func fileMedium(_ files: TemporaryDirectory, _ name: String, _ size: ByteCount) throws -> any Medium {
    try createMedium(Locator(kind: .file, target: files.path(name)), size: size)
}

extension SimulatedDevice {
    /// Writes what readers see to a sparse file.
    func save(to path: String) throws {
        let file = try newFile(path)
        defer { try? file.close() }
        let step = 64 << 10
        for start in stride(from: 0, to: size.int, by: step) {
            let piece = bytes(at: MediumOffset(start), count: min(step, size.int - start))
            guard piece.contains(where: { $0 != 0 }) else { continue }
            try file.seek(toOffset: UInt64(start))
            try file.write(contentsOf: Data(piece))
        }
        try file.truncate(atOffset: size.rawValue)
    }
}
