// Differences between checkpoints, held against a comparison of their bytes.

import CheckpointStore
import FaultHarness
import StoreFormat
import StoreTesting
import Testing
import Units

/// What differs, page by page.
private func differences(
    _ store: CheckpointStore, _ older: String, _ newer: String, region: String = "ram"
) throws -> [UInt64: PageDifference] {
    let snapshot = try store.snapshot()
    let (a, b) = (try snapshot.reader(named: older).region(region), try snapshot.reader(named: newer).region(region))
    var found: [UInt64: PageDifference] = [:]
    var last: UInt64 = 0
    try b.forEachDifference(since: a) { (pages, kind) throws(StoreError) in
        #expect(pages.lowerBound.rawValue >= last && !pages.isEmpty, "out of order")
        last = pages.upperBound.rawValue
        for page in pages.lowerBound.rawValue..<pages.upperBound.rawValue { found[page] = kind }
    }
    return found
}

/// The same from the bytes.
private func expected(_ older: [UInt8], _ newer: [UInt8]) -> [UInt64: PageDifference] {
    var found: [UInt64: PageDifference] = [:]
    let zeros = [UInt8](repeating: 0, count: pageSize)
    for page in 0..<(max(older.count, newer.count) + pageSize - 1) / pageSize {
        let (a, b) = (content(older, page), content(newer, page))
        guard a != b else { continue }
        found[UInt64(page)] = a == zeros ? .onlyInNewer : b == zeros ? .onlyInOlder : .changed
    }
    return found
}

/// A page's bytes, zeros behind the end.
private func content(_ bytes: [UInt8], _ page: Int) -> [UInt8] {
    let slice = Array(bytes[min(bytes.count, page * pageSize)..<min(bytes.count, (page + 1) * pageSize)])
    return slice + [UInt8](repeating: 0, count: pageSize - slice.count)
}

@Test func `differences between any two checkpoints are those of their bytes`() throws {
    let seed = UInt64.random(in: 0...UInt64.max)
    var mix = RandomMix(seed: seed, parallelism: 2, maximumPages: 1100)
    let store = try CheckpointStore.create(
        on: FaultMedium(SimulatedDevice(size: ByteCount.mebibytes(64))),
        options: CreateOptions(segmentSize: .kibibytes(256)), environment: testEnvironment(seed: 1))
    defer { store.close() }
    for _ in 0..<25 { try mix.step(store) }
    for (older, a) in mix.model {
        for (newer, b) in mix.model {
            for region in Set(a.keys).intersection(b.keys) {
                let found = try differences(store, older, newer, region: region)
                #expect(found == expected(a[region]!, b[region]!), "seed \(seed): \(older) \(newer) \(region)")
            }
        }
    }
}

@Test func `a region that grows by levels of its index is compared with the shorter one`() throws {
    let store = try CheckpointStore.create(
        on: FaultMedium(SimulatedDevice(size: ByteCount.mebibytes(64))),
        options: CreateOptions(segmentSize: .kibibytes(256)), environment: testEnvironment(seed: 1))
    defer { store.close() }
    // One span, 128 spans, more than 128: no inner node, one level, two.
    let lengths: [UInt64] = [1, 128, 129, 70_000].map { $0 * UInt64(pagesPerSpan * pageSize) }
    for (number, length) in lengths.enumerated() {
        let writer = try store.begin("c\(number)", parent: number == 0 ? nil : "c\(number - 1)")
        let region = try writer.addRegion("ram", kind: .memory, byteLength: ByteCount(length))
        let last = PageIndex(length / UInt64(pageSize) - 1)
        unsafe try [UInt8](repeating: UInt8(number + 1), count: pageSize).withUnsafeBytes { unsafe try region.put(page: last, $0) }
        try writer.commit()
    }
    let ends = lengths.map { $0 / UInt64(pageSize) - 1 }
    for a in lengths.indices {
        for b in lengths.indices {
            let between = a < b ? ends[(a + 1)...b] : ends[(b + 1)..<(a + 1)]
            let kind = a < b ? PageDifference.onlyInNewer : .onlyInOlder
            #expect(
                try differences(store, "c\(a)", "c\(b)") == Dictionary(uniqueKeysWithValues: between.map { ($0, kind) }),
                "\(a) \(b)")
        }
    }
}
