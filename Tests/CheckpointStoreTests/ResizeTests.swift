// Stores that change their size, begin where another one was, or say of themselves what can't be.

@testable import CheckpointStore
import FaultHarness
import Media
import StoreFormat
import StoreTesting
import Synchronization
import Testing
import Units

/// A store on a simulated device of its own.
private func createOn(
    _ device: SimulatedDevice, segment: ByteCount = .kibibytes(128), force: Bool = false, seed: UInt64 = 1
) throws -> CheckpointStore {
    try CheckpointStore.create(
        on: FaultMedium(device), options: CreateOptions(segmentSize: segment, force: force),
        environment: testEnvironment(seed: seed))
}

private func openOn(_ device: SimulatedDevice, seed: UInt64 = 2) throws -> CheckpointStore {
    try CheckpointStore.open(FaultMedium(device), environment: testEnvironment(seed: seed))
}

/// `count` pages that take their full size in the store: copies of a few that don't compress.
private func noisePages(_ count: Int, seed: UInt64) -> [UInt8] {
    var random = SeededGenerator(seed: seed)
    let block = (0..<64 * pageSize / 8).flatMap { _ in random.next().littleEndianBytes }
    var bytes: [UInt8] = []
    while bytes.count < count * pageSize { bytes += block }
    return Array(bytes[..<(count * pageSize)])
}

extension CheckpointStore {
    fileprivate var segmentCount: UInt32 { geometry.segmentCount }

    /// The bytes that a store with `segments` needs.
    fileprivate func size(segments: UInt64) -> ByteCount {
        ByteCount(geometry.dataOffset.rawValue + segments * UInt64(geometry.segmentSize))
    }

    fileprivate func requireSound() throws {
        let report = try verify()
        if !report.isSound { throw Mismatch("\(report.damages)") }
    }
}

@Suite struct ResizeTests {
    @Test func `a store can shrink after the search for free segments has gone behind the new end`() throws {
        let device = SimulatedDevice(size: .mebibytes(16))
        let store = try createOn(device)
        let small = makePages(20, seed: 1)
        try save("small", small, in: store)
        try save("large", noisePages(1500, seed: 2), in: store)
        let hint = try store.newestSlot().allocationHint
        #expect(hint.rawValue > 20)
        try store.delete(["large"])
        try store.resize(to: store.size(segments: 20))
        #expect(store.segmentCount == 20 && device.size == store.size(segments: 20))
        #expect(try store.newestSlot().allocationHint.rawValue < 20)
        // What the handle knew of the segments behind the end must be gone too.
        let later = makePages(200, seed: 3)
        try save("later", later, in: store)
        try store.requireSound()
        store.close()
        let again = try openOn(device)
        try again.requireEqual(["small": ["ram": small], "later": ["ram": later]])
    }

    @Test(arguments: [65, 64, 63, 20, 100, 128, 300] as [UInt64])
    func `a store can shrink across depths of its segment table, and grow again`(segments: UInt64) throws {
        let device = SimulatedDevice(size: .mebibytes(48))
        let store = try createOn(device)
        #expect(store.geometry.tableDepth == 1)
        let small = makePages(20, seed: 1)
        try save("small", small, in: store)
        // Entries in several leaves: used once, free again.
        try save("large", noisePages(4500, seed: 2), in: store)
        #expect(try store.newestSlot().allocationHint.rawValue > 128)
        try store.delete(["large"])
        let old = UInt64(store.segmentCount)
        try store.resize(to: store.size(segments: segments))
        #expect(store.geometry.tableDepth == (segments > 64 ? 1 : 0))
        try store.requireSound()
        try store.resize(to: store.size(segments: old))
        let slot = try store.newestSlot()
        var table = TableReader(store: store, slot: slot)
        for number in segments..<old { #expect(try table.entry(SegmentIndex(number)) == .neverUsed) }
        let later = noisePages(4500, seed: 3)
        try save("later", later, in: store)
        try store.requireSound()
        store.close()
        let again = try openOn(device)
        try again.requireEqual(["small": ["ram": small], "later": ["ram": later]], deep: false)
        try again.delete(["small", "later"])
        try again.requireSound()
    }

    @Test func `two levels of a segment table go at once`() throws {
        let device = SimulatedDevice(size: .mebibytes(600))
        let store = try createOn(device)
        #expect(store.geometry.tableDepth == 2)
        try save("small", makePages(20, seed: 1), in: store)
        try store.resize(to: store.size(segments: 12))
        #expect(store.geometry.tableDepth == 0)
        try store.requireSound()
        try store.resize(to: .mebibytes(600))
        try store.requireSound()
        store.close()
        try openOn(device).requireEqual(["small": ["ram": makePages(20, seed: 1)]])
    }

    @Test func `a store that can't shrink stays as it is`() throws {
        let device = SimulatedDevice(size: .mebibytes(16))
        let store = try createOn(device)
        let bytes = noisePages(1500, seed: 1)
        try save("large", bytes, in: store)
        let generation = try store.newestSlot().generation
        #expect(code { try store.resize(to: store.size(segments: 10)) } == .noSpace)
        #expect(device.size == .mebibytes(16))
        #expect(try store.newestSlot().generation == generation)
        let other = try openOn(device)
        #expect(code { try store.resize(to: .mebibytes(15)) } == .busy)
        other.close()
        try store.requireEqual(["large": ["ram": bytes]])
    }

    @Test func `a commit never puts its catalog behind the end of a store that it shrinks`() throws {
        // However full the catalog's segment is when the store shrinks.
        for commits in 1...24 {
            let device = SimulatedDevice(size: .mebibytes(16))
            let store = try createOn(device)
            for number in 0..<commits { try store.begin("c\(number)", options: WriterOptions(parallelism: 1)).commit() }
            try save("large", noisePages(1000, seed: 2), in: store)
            try store.delete(["large"])
            let used = try (0..<UInt64(store.segmentCount)).last { number in
                var table = TableReader(store: store, slot: try store.newestSlot())
                return try table.entry(SegmentIndex(number)).isUsed
            }
            let segments = max(10, (used ?? 0) + 3)
            try store.resize(to: store.size(segments: segments))
            store.close()
            let again = try openOn(device)
            #expect(UInt64(again.segmentCount) == segments)
            #expect(try again.snapshot().checkpointCount == commits)
            try again.requireSound()
        }
    }

    @Test func `of two handles that enlarge a store at once the larger size stays`() throws {
        for (mine, theirs) in [(20, 30), (30, 20)] as [(UInt64, UInt64)] {
            let device = SimulatedDevice(size: .mebibytes(16))
            try createOn(device).close()
            let medium = FaultMedium(device)
            let store = try CheckpointStore.open(medium, environment: testEnvironment(seed: 3))
            let other = try openOn(device)
            // The other one is faster: between this one's look at the store and its commit lock.
            let isFirst = Mutex(true)
            medium.faults.add(
                FaultRule(.lock, .from(1), .fail(.busy)) { call in
                    guard call.lockRange == LockLayout.commit, isFirst.withLock({ $0 }) else { return false }
                    isFirst.withLock { $0 = false }
                    do { try other.resize(to: .mebibytes(theirs)) } catch { return true }
                    return false
                })
            try store.resize(to: .mebibytes(mine))
            #expect(isFirst.withLock { !$0 })
            #expect(device.size == .mebibytes(30))
            for store in [store, other] {
                #expect(try store.newestSlot().geometry.segmentCount == 30 * 8 - 2, "\(mine), \(theirs)")
            }
            let bytes = noisePages(3000, seed: 4)
            try save("large", bytes, in: other)
            try store.requireSound()
            try store.requireEqual(["large": ["ram": bytes]], deep: false)
        }
    }

    @Test func `a store that another handle enlarges is not shrunk under it`() throws {
        let device = SimulatedDevice(size: .mebibytes(16))
        let store = try createOn(device)
        let other = try openOn(device)
        try other.resize(to: .mebibytes(24))
        #expect(code { try store.resize(to: .mebibytes(20)) } == .busy)
        #expect(device.size == .mebibytes(24))
        other.close()
        try store.resize(to: .mebibytes(20))
        #expect(device.size == .mebibytes(20))
        try store.requireSound()
    }
}

@Suite struct CreateOverTests {
    @Test func `a store made over another one does not take that one's commits for lost ones of its own`() throws {
        for segment in [ByteCount.kibibytes(128), .mebibytes(2)] {
            let device = SimulatedDevice(size: .mebibytes(64))
            let old = try createOn(device, segment: segment)
            for number in 0..<60 { try save("old\(number)", makePages(3, seed: UInt64(number)), in: old) }
            old.close()
            try createOn(device, segment: segment, force: true, seed: 7).close()
            for number in 0..<40 {
                let store = try openOn(device, seed: UInt64(100 + number))
                // Long names fill the catalog faster than the old store did: behind its end stand nodes of far later commits.
                try save(String(repeating: "new", count: 80) + "\(number)", makePages(3, seed: UInt64(number)), in: store)
                store.close()
            }
            let store = try openOn(device)
            #expect(try store.snapshot().checkpointCount == 40)
            try store.requireSound()
        }
    }

    @Test func `a segment must hold the largest block beside a unit for the commit record`() throws {
        var options = SimulatedDevice.Options()
        options.traits.directAlignment = 65536
        let device = SimulatedDevice(size: .mebibytes(32), options: options)
        #expect(code { _ = try createOn(SimulatedDevice(size: .mebibytes(32), options: options)) } == .invalidInput)
        let store = try createOn(device, segment: .kibibytes(192))
        #expect(store.geometry.commitUnit == 65536)
        let bytes = noisePages(1000, seed: 5)
        try save("noise", bytes, in: store)
        try store.requireEqual(["noise": ["ram": bytes]], deep: false)
        try store.requireSound()
    }
}

@Suite struct HostileStoreTests {
    /// Seals the newest slot of the store on `device` again after `change`.
    private func reseal(_ device: SimulatedDevice, _ change: (inout Slot) -> Void) throws {
        let store = try openOn(device)
        var slot = try store.newestSlot()
        change(&slot)
        for twin in [UInt8(0), 1] { try SlotRing.write(slot, twin: twin, to: store.medium) }
        store.close()
    }

    private func device(_ pages: Int = 20) throws -> SimulatedDevice {
        let device = SimulatedDevice(size: .mebibytes(8))
        let store = try createOn(device)
        try save("a", makePages(pages, seed: 1), in: store)
        try save("b", makePages(pages, seed: 2), in: store)
        store.close()
        return device
    }

    @Test func `counters that can't be right are an error, and no commit is built on them`() throws {
        let changes: [((inout Slot) -> Void, StoreError.Code)] = [
            ({ $0.usedSegments = 0 }, .corrupt), ({ $0.checkpointCount = 1 }, .corrupt),
            ({ $0.checkpointCount = UInt64(Int64.max) }, .corrupt), ({ $0.usedSegments = $0.geometry.segmentCount }, .noSpace),
        ]
        for (number, (change, expected)) in changes.enumerated() {
            let device = try device()
            try reseal(device, change)
            let store = try openOn(device)
            _ = try store.info()
            let outcome = code {
                if let obstacle = try store.delete(["a", "b"]).obstacle { throw obstacle }
                try save("c", noisePages(200, seed: 3), in: store)
            }
            #expect(outcome == expected, "change \(number)")
            store.close()
            // Whatever was refused, what is there can still be opened.
            try openOn(device).close()
        }
    }

    @Test func `a slot with more checkpoints than can be counted, or a generation that has no lock, is corrupt`() throws {
        let changes: [(inout Slot) -> Void] = [
            { $0.checkpointCount = .max },
            { slot in
                slot.generation = Generation(Slot.generationLimit)
                slot.baseGeneration = slot.generation
            },
        ]
        for change in changes {
            let device = try device()
            try reseal(device, change)
            #expect(code { _ = try openOn(device) } == .corrupt)
        }
    }

    @Test func `the last generation is the end of a store, not of the program`() throws {
        let device = try device()
        try reseal(device) { slot in
            slot.generation = Generation(Slot.generationLimit - 1)
            slot.baseGeneration = slot.generation
        }
        let store = try openOn(device)
        #expect(code { try save("c", makePages(3, seed: 3), in: store) } == .corrupt)
        try store.requireEqual(["a": ["ram": makePages(20, seed: 1)], "b": ["ram": makePages(20, seed: 2)]])
    }

    @Test func `a commit does not append to a segment that is not the catalog's`() throws {
        let count = try openOn(try device()).segmentCount
        for number in 0..<UInt64(count) {
            let device = try device()
            let store = try openOn(device)
            var table = TableReader(store: store, slot: try store.newestSlot())
            let isCatalog = try table.entry(SegmentIndex(number)).segmentClass == .catalog
            store.close()
            try reseal(device) { $0.catalogSegment = SegmentIndex(number) }
            let hostile = try openOn(device)
            let outcome = code { try save("c", makePages(3, seed: 3), in: hostile) }
            #expect(outcome == (isCatalog ? nil : .corrupt), "segment \(number)")
            try hostile.requireEqual(
                ["a": ["ram": makePages(20, seed: 1)], "b": ["ram": makePages(20, seed: 2)]].merging(
                    isCatalog ? ["c": ["ram": makePages(3, seed: 3)]] : [:]) { $1 })
        }
    }

    @Test func `sparse regions may add up to more bytes than can be counted`() throws {
        let store = try createOn(SimulatedDevice(size: .mebibytes(8)))
        let writer = try store.begin("sparse", options: WriterOptions(parallelism: 1))
        for name in ["a", "b", "c"] {
            _ = try writer.addRegion(name, kind: .disk, byteLength: ByteCount(UInt64(Int64.max)))
        }
        try writer.commit()
        #expect(try store.info().logicalBytes == ByteCount(UInt64.max))
    }
}
