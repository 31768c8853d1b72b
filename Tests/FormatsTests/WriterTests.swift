// Stores that the engine has written, read by the reader in Python.

import CheckpointStore
import FaultHarness
import Foundation
import Media
import StoreFormat
import Testing
import Units

@Suite struct WriterTests {
    private static let page = UInt64(pageSize)

    @Test func `full and incremental checkpoints with regions of all sorts read alike in Python`() async throws {
        try await onPlainThread {
            let files = try TemporaryDirectory()
            var shop = try Workshop(fileMedium(files, "store", .mebibytes(96)), seed: 1)
            shop.parallelism = 2
            let ram = 2000 * Self.page
            try shop.save(
                "full", labels: ["größe": "∞", "empty": "", "host": "north"],
                RegionChange(name: "ram", byteLength: ram, changes: shop.pages(0..<1300, salt: 1)),
                RegionChange(name: "disk", kind: .disk, byteLength: 700 * Self.page + 123, changes: shop.pages(690..<701, salt: 2)),
                RegionChange(name: "cpu", kind: .state, byteLength: 777, changes: [.page(0, textPage(3))]),
                RegionChange(name: "nothing", kind: .state, byteLength: 0),
                RegionChange(name: "zeros", byteLength: 64 * Self.page, changes: [.zeros(0..<64)]))
            var parent = "full"
            for step in UInt64(0)..<12 {
                let name = "step \(step)"
                try shop.save(
                    name, parent: parent, inherit: ["disk"],
                    RegionChange(
                        name: "ram", byteLength: ram,
                        changes: shop.pages(step * 17..<step * 17 + 1 + step * 7, salt: 10 + step)
                            + [.zeros(600 + step * 30..<600 + step * 31), .page(1999 - step, textPage(step))]),
                    RegionChange(name: "cpu", kind: .state, byteLength: 777 + step * 1000, changes: [.page(0, textPage(step))]))
                parent = name
            }
            let report = try shop.requireAgreement(
                files.path("store"), restoring: [("full", "disk"), ("full", "zeros"), ("full", "nothing"), ("step 11", "ram"), ("step 5", "cpu")])
            #expect(report.counts["checkpoints"] == 13)
            #expect(try Self.kinds(files.path("store")).isSuperset(of: ["page run", "full leaf", "patch leaf", "inner node"]))
        }
    }

    /// The kinds of blocks that a dump shows.
    private static func kinds(_ path: String) throws -> Set<String> {
        let lines = try Python.output("reader.py", "dump", path).split(separator: "\n")
        let names = [
            "page run", "full leaf", "patch leaf", "inner node", "checkpoint record", "catalog node", "segment-table leaf",
            "segment-table inner node", "segment header", "commit record",
        ]
        return Set(names.filter { name in lines.contains { $0.contains(" \(name) birth") } })
    }

    @Test func `deletions, reuse of segments and growth of the table read alike in Python`() async throws {
        try await onPlainThread {
            let files = try TemporaryDirectory()
            let path = files.path("store")
            let size = ByteCount.mebibytes(5)
            var shop = try Workshop(fileMedium(files, "store", size), segmentSize: .kibibytes(128), seed: 2)
            #expect(shop.store.geometry.tableDepth == 0)
            for round in UInt64(0)..<30 {
                if round == 20 { try shop.store.resize(to: .mebibytes(40)) }
                let parent = shop.model.keys.sorted().last
                let low = round * 37 % 500
                try shop.save(
                    "round \(100 + round)", parent: round % 4 == 0 ? nil : parent,
                    RegionChange(name: "ram", byteLength: 600 * Self.page, changes: shop.pages(low..<low + 60, salt: round)))
                if shop.model.count > 5 { try shop.delete(Array(shop.model.keys.sorted().prefix(2))) }
            }
            #expect(shop.store.geometry.tableDepth == 1)
            try shop.requireAgreement(path, restoring: [("round 129", "ram")])
            #expect(try Self.kinds(path).contains("segment-table inner node"))
        }
    }

    @Test func `deep and changing page tables read alike in Python`() async throws {
        try await onPlainThread {
            let files = try TemporaryDirectory()
            var shop = try Workshop(fileMedium(files, "store", .mebibytes(64)), seed: 3)
            let lengths: [UInt64] = [1 << 20, 100 << 20, 300 << 20, 40 << 30, 300 << 20, 1 << 20, 257 << 20]
            var parent: String?
            for (step, length) in lengths.enumerated() {
                let name = "length \(step)"
                let last = length / Self.page - 1
                let places: [UInt64] = [0, 255, 511, 512, 65535, 65536, last / 2, last].filter { $0 <= last }
                try shop.save(
                    name, parent: parent,
                    RegionChange(
                        name: "memory", byteLength: length, changes: places.map { .page($0, textPage(UInt64(step) << 48 | $0)) }),
                    RegionChange(
                        name: "disk", kind: .disk, byteLength: length + 1, changes: [.page(last + 1, textPage(UInt64(step)))]))
                parent = name
            }
            try shop.requireAgreement(files.path("store"), restoring: [("length 1", "memory"), ("length 5", "disk")])
        }
    }

    @Test func `a catalog with inner nodes and checkpoints of one group read alike in Python`() async throws {
        try await onPlainThread {
            let files = try TemporaryDirectory()
            let path = files.path("store")
            var shop = try Workshop(fileMedium(files, "store", .mebibytes(64)), segmentSize: .kibibytes(128), seed: 4)
            let long = String(repeating: "long-name-", count: 18)
            for group in UInt64(0)..<16 {
                let writers = try (UInt64(0)..<20).map { member in
                    try shop.prepare(
                        "\(long)\(group)-\(member)",
                        [RegionChange(name: "state", kind: .state, byteLength: 100, changes: [.page(0, textPage(group << 8 | member))])])
                }
                try shop.store.commit(writers)
            }
            try shop.delete(shop.model.keys.sorted().enumerated().filter { $0.offset % 7 == 3 }.map(\.element))
            let report = try shop.requireAgreement(path)
            #expect(report.counts["checkpoints"] == shop.model.count && shop.model.count > 250)
            let dump = try Python.output("reader.py", "dump", path)
            #expect(dump.contains("tree 1 level 1") && dump.contains("tree 2 level 1"))
        }
    }

    @Test func `commit units of 64 KiB read alike in Python`() async throws {
        try await onPlainThread {
            let files = try TemporaryDirectory()
            var options = SimulatedDevice.Options()
            options.traits.directAlignment = 65536
            options.traits.eraseUnit = .mebibytes(1)
            let device = SimulatedDevice(size: .mebibytes(40), options: options)
            var shop = try Workshop(FaultMedium(device), segmentSize: .kibibytes(256), seed: 5)
            #expect(shop.store.geometry.commitUnit == 65536)
            var parent: String?
            for step in UInt64(0)..<10 {
                try shop.save(
                    "c\(step)", parent: parent,
                    RegionChange(name: "ram", byteLength: 300 * Self.page, changes: shop.pages(step * 20..<step * 20 + 40, salt: step)))
                parent = "c\(step)"
                if step == 6 { try shop.delete(["c0", "c3"]) }
            }
            shop.store.close()
            try device.save(to: files.path("store"))
            try shop.requireAgreement(files.path("store"), restoring: [("c9", "ram")])
        }
    }

    @Test func `a poisoned slot counts in Python, and what is committed over it`() async throws {
        try await onPlainThread {
            let files = try TemporaryDirectory()
            let device = SimulatedDevice(size: .mebibytes(8))
            var shop = try Workshop(FaultMedium(device), segmentSize: .kibibytes(128), seed: 6)
            try shop.save("before", RegionChange(name: "ram", byteLength: 40 * Self.page, changes: shop.pages(0..<40, salt: 1)))
            let model = shop.model
            let writer = try shop.prepare(
                "lost", parent: "before", [RegionChange(name: "ram", byteLength: 40 * Self.page, changes: [.page(3, textPage(9))])])
            // The flush behind the slots, which are in front of everything else.
            device.faults.add(FaultRule(.flush, .nth(1), .failFlush(.keepWrites)) { ($0.previousWrite?.rawValue ?? .max) < 1 << 18 })
            #expect(throws: StoreError.self) { try writer.commit() }
            #expect(device.faults.firedCount == 1)
            device.faults.clear()
            shop.store.close()
            try device.save(to: files.path("poisoned"))
            try requireAgreement(files.path("poisoned"), model: model)
            #expect(try Python.output("reader.py", "info", files.path("poisoned")).contains("poisoned, repeats"))

            shop.model = model
            shop.store = try CheckpointStore.open(FaultMedium(device), environment: repeatableEnvironment(seed: 7))
            try shop.save("after", parent: "before", RegionChange(name: "ram", byteLength: 40 * Self.page, changes: [.page(5, textPage(10))]))
            shop.store.close()
            try device.save(to: files.path("after"))
            try shop.requireAgreement(files.path("after"))
            #expect(!(try Python.output("reader.py", "info", files.path("after")).contains("poisoned")))
        }
    }
}
