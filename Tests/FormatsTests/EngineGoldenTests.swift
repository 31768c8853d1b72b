// Sample stores that the engine itself has written: they show when its bytes change.
//
// With CKSTORE_REGENERATE_GOLDEN=1 in the environment they are written anew, for a change of the format that is meant.

import CheckpointStore
import FaultHarness
import Foundation
import Media
import StoreFormat
import Testing
import Units

@Suite struct EngineGoldenTests {
    private static let page = UInt64(pageSize)

    private struct Sample: Sendable {
        var name: String
        var about: String
        var seed: UInt64
        var write: @Sendable (inout Workshop) throws -> Void
    }

    private static let samples = [
        Sample(name: "engine-tiny", about: "written by the engine: one checkpoint with all kinds of regions", seed: 101) { shop in
            try shop.save(
                "first", labels: ["größe": "∞", "note": "the first one"],
                RegionChange(name: "ram", byteLength: 600 * page, changes: [0, 2, 3, 511, 512].map { .page($0, textPage($0)) }),
                RegionChange(name: "disk", kind: .disk, byteLength: 3 * page + 100, changes: [.page(1, textPage(7)), .page(3, textPage(8))]),
                RegionChange(name: "cpu", kind: .state, byteLength: 777, changes: [.page(0, shop.noisePage())]),
                RegionChange(name: "nothing", kind: .state, byteLength: 0))
        },
        Sample(
            name: "engine-chain", about: "written by the engine: patch leaves, a group, regions that grow and shrink, deletions, reuse",
            seed: 102
        ) { shop in
            let ram = { (changes: [Change]) in RegionChange(name: "ram", byteLength: 700 * page, changes: changes) }
            try shop.save("base", ram((0..<40).map { .page($0 * 17, textPage($0)) }))
            for step in UInt64(0)..<6 {
                let parent = step == 0 ? "base" : "step \(step - 1)"
                try shop.save("step \(step)", parent: parent, ram([.page(step * 17, textPage(100 + step)), .zeros(step + 340..<step + 350)]))
            }
            let writers = [
                try shop.prepare("left", parent: "step 5", inherit: ["ram"], []),
                try shop.prepare(
                    "right", parent: "step 5", [RegionChange(name: "ram", byteLength: 100 * page, changes: [.page(99, textPage(200))])]),
            ]
            try shop.store.commit(writers)
            try shop.delete(["base", "step 1", "step 2"])
            try shop.save("grown", parent: "right", RegionChange(name: "ram", byteLength: 70000 * page, changes: [.page(69999, textPage(300))]))
        },
        Sample(
            name: "engine-moved", about: "written by the engine: branches, a tombstone, a name that moves, blocks moved by compaction, whole and in part",
            seed: 103
        ) { shop in
            let ram = { (changes: [Change]) in RegionChange(name: "ram", byteLength: 700 * page, changes: changes) }
            try shop.save("base", ram((0..<60).map { .page($0 * 11, textPage($0)) }))
            try shop.save("left", parent: "base", ram((0..<30).map { .page($0 * 11, textPage(100 + $0)) }))
            try shop.save("right", parent: "base", ram((0..<60).filter { $0 % 3 != 0 }.map { .page($0 * 11, textPage(200 + $0)) }))
            try shop.save("right 2", parent: "right", ram([.page(5, textPage(400))]))
            try shop.store.setReference("stable", to: "left")
            try shop.delete(["base", "right"])
            let report = try shop.store.compact(
                CompactionOptions(targetAmplification: 1, minimumDeadShare: 0.01, batchBytes: .kibibytes(256), parallelism: 1))
            guard report.movedBlocks > 0 else { throw Mismatch("nothing was moved") }
        },
    ]

    @Test func `the engine writes the very bytes of its sample stores`() async throws {
        try await onPlainThread {
            for sample in Self.samples {
                let made = try Self.make(sample)
                if ProcessInfo.processInfo.environment["CKSTORE_REGENERATE_GOLDEN"] == "1" { try made.save(sample.name) }
                let kept = try GoldenCase.load(sample.name)
                #expect(made.mediumBytes == kept.mediumBytes)
                for (new, old) in zip(made.patches, kept.patches) where new != old {
                    let at = new.offset == old.offset ? zip(new.hex, old.hex).prefix { $0 == $1 }.count / 2 : 0
                    throw Mismatch(
                        "\(sample.name): other bytes from offset \(min(new.offset, old.offset) + UInt64(at)) on. If the change is meant (or "
                            + "another liblz4 compresses otherwise), run this test with CKSTORE_REGENERATE_GOLDEN=1 and say why.")
                }
                #expect(made.patches.count == kept.patches.count)
                #expect(made.expect.contents == kept.expect.contents)
                #expect(made.expect.list?.listing == kept.expect.list?.listing)
            }
        }
    }

    private static func make(_ sample: Sample) throws -> GoldenCase {
        let device = SimulatedDevice(size: .kibibytes(256 + 24 * 128))
        var shop = try Workshop(FaultMedium(device), segmentSize: .kibibytes(128), seed: sample.seed)
        try sample.write(&shop)
        let listing = try Listing(shop.store.snapshot())
        shop.store.close()
        let contents = shop.model.sorted { Names.precedes($0.key, $1.key) }.flatMap { name, regions in
            regions.sorted { Names.precedes($0.key, $1.key) }.map {
                GoldenCase.Contents(checkpoint: name, region: $0.key, pagesSha256: $0.value.digest)
            }
        }
        return GoldenCase(
            about: sample.about, base: nil, mediumBytes: device.size.rawValue, resealed: nil,
            patches: patches(device.bytes(at: .zero, count: device.size.int)),
            expect: GoldenCase.Expectation(
                open: GoldenCase.Outcome(exit: 0), list: GoldenCase.List(exit: 0, listing: listing),
                verify: GoldenCase.Verify(exit: 0, damages: []), contents: contents))
    }

    /// The pieces that are not zero; what lies between two of them is 16 zeros or more.
    private static func patches(_ bytes: [UInt8]) -> [GoldenCase.Patch] {
        let digits = Array("0123456789abcdef".utf8)
        var patches: [GoldenCase.Patch] = []
        var at = 0
        while let start = bytes[at...].firstIndex(where: { $0 != 0 }) {
            var end = start + 1
            while let next = bytes[end...].prefix(16).lastIndex(where: { $0 != 0 }) { end = next + 1 }
            let hex = bytes[start..<end].flatMap { [digits[Int($0 >> 4)], digits[Int($0 & 15)]] }
            patches.append(GoldenCase.Patch(offset: UInt64(start), hex: String(decoding: hex, as: UTF8.self)))
            at = end
        }
        return patches
    }
}

extension GoldenCase {
    /// Writes the case to its file.
    func save(_ name: String) throws {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]
        try (encoder.encode(self) + Data("\n".utf8)).write(to: Self.directory.appending(path: "\(name).json"))
    }

    // The tools in Python want null where something is absent.
    func encode(to encoder: any Encoder) throws {
        var container = encoder.container(keyedBy: CodingKeys.self)
        try container.encode(about, forKey: .about)
        try container.encode(base, forKey: .base)
        try container.encode(mediumBytes, forKey: .mediumBytes)
        try container.encodeIfPresent(resealed, forKey: .resealed)
        try container.encode(patches, forKey: .patches)
        try container.encode(expect, forKey: .expect)
    }
}

extension Listing.Checkpoint {
    func encode(to encoder: any Encoder) throws {
        var container = encoder.container(keyedBy: CodingKeys.self)
        try container.encode(id, forKey: .id)
        try container.encode(name, forKey: .name)
        try container.encode(parent, forKey: .parent)
        try container.encode(createdNanoseconds, forKey: .createdNanoseconds)
        try container.encode(newPages, forKey: .newPages)
        try container.encode(storedBytes, forKey: .storedBytes)
        try container.encode(group, forKey: .group)
        try container.encode(labels, forKey: .labels)
        try container.encode(regions, forKey: .regions)
    }
}
