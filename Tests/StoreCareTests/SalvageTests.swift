// Salvage: what comes back is what was there, and what does not is named.

import CheckpointStore
import FaultHarness
import Foundation
import Media
import PageCodec
import StoreFormat
import StoreTesting
import Testing
import Units

/// Salvages a history into a new store and compares all of it with the model. Returns the report.
@discardableResult
private func salvage(_ history: History, _ context: String, expected: Set<SalvageState>? = nil) throws -> SalvageReport {
    let path = history.folder + "/new-\(UUID().uuidString).ck"
    defer { try? FileManager.default.removeItem(atPath: path) }
    let before = try history.bytes()
    let dry = try Salvage(try history.medium()).run(into: nil)
    let store = try CheckpointStore.create(on: try createMedium(try Locator(path), size: .mebibytes(32)), options: CreateOptions(segmentSize: .kibibytes(128)))
    defer { store.close() }
    let report = try Salvage(try history.medium(), options: SalvageOptions(parallelism: 2)).run(into: store)
    guard try history.bytes() == before else { throw Mismatch("\(context): the source was written to") }
    guard try store.verify(options: VerifyOptions(checksPages: true)).isSound else { throw Mismatch("\(context): the new store is damaged") }
    guard dry.checkpoints.map(\.state) == report.checkpoints.map(\.state), dry.checkpoints.map(\.lostPages) == report.checkpoints.map(\.lostPages)
    else { throw Mismatch("\(context): a dry run says something else") }
    let snapshot = try store.snapshot()
    guard try Set(snapshot.names()) == Set(report.checkpoints.compactMap(\.name)) else { throw Mismatch("\(context): other checkpoints than the report's") }
    for one in report.checkpoints {
        if let expected, !expected.contains(one.state) { throw Mismatch("\(context): \(one.oldName ?? "?") is \(one.state)") }
        guard let name = one.name else { continue }
        let reader = try snapshot.reader(named: name)
        let label = reader.info.labels.first { $0.key == "ckstore.salvaged" }?.value
        guard label == (one.state == .whole ? nil : one.state.rawValue) else { throw Mismatch("\(context): \(name) has the label \(label ?? "none")") }
        guard let model = one.oldName.flatMap({ history.model[$0] }) else { continue }
        if one.state == .whole || one.state == .partial, Set(one.regions.map(\.name)) != Set(model.keys) {
            throw Mismatch("\(context): \(name) has regions \(one.regions.map(\.name))")
        }
        for region in one.regions { try compare(try reader.region(region.name).bytes(), region, model, "\(context), \(name) (\(one.state))") }
    }
    return report
}

/// Every page is the model's, or lost and zero, or, where runs alone were left, zero and unknown.
private func compare(_ bytes: [UInt8], _ region: SalvagedRegion, _ model: ModelCheckpoint, _ context: String) throws {
    let expected: [UInt8]
    if let known = model[region.name] { expected = known } else {
        guard let other = model.first(where: { region.name == "region-\(regionKey($0.key))" })?.value else {
            throw Mismatch("\(context): there was no region \(region.name)")
        }
        expected = other
    }
    if region.isNameKnown, bytes.count != expected.count { throw Mismatch("\(context)/\(region.name): \(bytes.count) bytes, not \(expected.count)") }
    for page in 0..<(bytes.count + pageSize - 1) / pageSize {
        let found = bytes[page * pageSize..<min((page + 1) * pageSize, bytes.count)]
        if found.allSatisfy({ $0 == 0 }), region.lost.contains(PageIndex(page)) || region.hasUnknownPages { continue }
        guard !region.lost.contains(PageIndex(page)) else { throw Mismatch("\(context)/\(region.name): page \(page) is lost and there") }
        let wanted = expected[min(page * pageSize, expected.count)..<min((page + 1) * pageSize, expected.count)]
        guard found.starts(with: wanted), found.dropFirst(wanted.count).allSatisfy({ $0 == 0 }) else {
            throw Mismatch("\(context)/\(region.name): page \(page) is not what it was")
        }
    }
}

@Suite struct SalvageTests {
    @Test func `a sound store comes back as it was, without what had been deleted`() async throws {
        try await onPlainThread {
            let history = try History(seed: 41)
            let store = try history.open(.readWrite)
            let gone = history.order[2]
            try history.delete([gone], from: store)
            store.close()
            let report = try salvage(history, "sound", expected: [.whole])
            #expect(report.isWhole && report.checkpoints.count == 7 && report.checksPageHashes)
            #expect(!report.checkpoints.contains { $0.oldName == gone })
            // Children of what is there keep their parents, so that what they share is stored once.
            #expect(report.checkpoints.contains { $0.parent != nil })
        }
    }

    @Test func `without any slot every checkpoint comes back whole`() async throws {
        try await onPlainThread {
            for seed in UInt64(50)..<53 {
                let history = try History(seed: seed)
                try history.zeroSlots()
                let report = try salvage(history, "seed \(seed)", expected: [.whole])
                #expect(Set(report.checkpoints.compactMap(\.name)) == Set(history.order))
                #expect(report.slotGeneration == nil && !report.isWhole && !report.checksPageHashes)
            }
        }
    }

    @Test func `without catalog and segment table every checkpoint comes back whole`() async throws {
        try await onPlainThread {
            let history = try History(seed: 61)
            for segment in try history.segments(of: .catalog) { try history.zero(history.range(of: segment)) }
            let report = try salvage(history, "no catalog", expected: [.whole])
            #expect(Set(report.checkpoints.compactMap(\.name)) == Set(history.order))
            #expect(!report.isCatalogWhole && report.slotGeneration != nil)
            try history.zeroSlots()
            try salvage(history, "neither catalog nor slots", expected: [.whole])
        }
    }

    @Test func `without the index the pages come back that each checkpoint stored`() async throws {
        try await onPlainThread {
            for seed in UInt64(70)..<73 {
                let history = try History(seed: seed)
                for segment in try history.segments(of: .index) { try history.zero(history.range(of: segment)) }
                let report = try salvage(history, "seed \(seed), no index", expected: [.runs])
                #expect(Set(report.checkpoints.compactMap(\.oldName)) == Set(history.order))
                #expect(report.checkpoints.allSatisfy { $0.regions.contains { $0.readPages > .zero && !$0.isNameKnown } })
                try history.zeroSlots()
                let names = Set(try salvage(history, "seed \(seed), neither index nor slots", expected: [.runs]).checkpoints.compactMap(\.oldName))
                #expect(names == Set(history.order))
            }
        }
    }

    @Test func `without records the index of each checkpoint comes back`() async throws {
        try await onPlainThread {
            let history = try History(seed: 81)
            for block in try history.blocks() where block.header.kind == .checkpointRecord { try history.zero(block.range) }
            let report = try salvage(history, "no records", expected: [.index])
            #expect(Set(report.checkpoints.compactMap(\.oldName)) == Set(history.order))
            // The first one stored its whole region: all of it is there.
            let first = try #require(report.checkpoints.first { $0.oldName == "c0" })
            let ram = try #require(first.regions.max { $0.readPages < $1.readPages })
            #expect(ram.readPages.int == nonZeroPages(try #require(history.model["c0"]?["ram"])))
        }
    }

    @Test func `of a store with random holes all comes back that is not named as missing`() async throws {
        try await onPlainThread {
            var states: [SalvageState: Int] = [:]
            for seed in UInt64(100)..<112 {
                let history = try History(seed: seed)
                var random = SeededGenerator(seed: seed, 5)
                let size = try history.bytes().count
                for block in 0..<size / 4096 where random.chance(1, in: 20) { try history.zero(block * 4096..<(block + 1) * 4096) }
                if seed % 3 == 0 { try history.zeroSlots() }
                let report = try salvage(history, "seed \(seed), holes")
                for one in report.checkpoints { states[one.state, default: 0] += 1 }
                // Verify and salvage agree on what is missing, where there is still a store to verify.
                if seed % 3 != 0, let store = try? history.open() {
                    defer { store.close() }
                    let damaged = try store.verify()
                    for one in report.checkpoints where one.state == .whole {
                        let says = damaged.damagedRegions.filter { $0.checkpoint.name == one.name && $0.region != nil }
                        guard says.isEmpty else { throw Mismatch("seed \(seed): \(one.name ?? "") is whole, verify says \(says)") }
                    }
                }
            }
            #expect(states[.partial, default: 0] > 10 && states[.whole, default: 0] > 0, "\(states)")
        }
    }

    @Test func `a store that is cut off comes back up to its end`() async throws {
        try await onPlainThread {
            let history = try History(seed: 91)
            let used = try history.blocks().map(\.range.upperBound).max() ?? 0
            let handle = try FileHandle(forUpdating: URL(fileURLWithPath: history.path))
            try handle.truncate(atOffset: UInt64(used * 3 / 4))
            try handle.close()
            let report = try salvage(history, "cut off")
            #expect(report.checkpoints.contains { $0.state != .whole } && report.checkpoints.contains { $0.name != nil })
        }
    }

    @Test func `of a replica all comes back that was received, and what came in part is left out`() async throws {
        try await onPlainThread {
            for seed in UInt64(120)..<123 {
                let source = try History(seed: seed)
                let replica = try History(replicaOf: source, seed: seed + 1000)
                var report = try salvage(replica, "seed \(seed), sound", expected: [.whole])
                #expect(report.isWhole && report.partialCheckpoints == 1 && report.unprovenCheckpoints == 0)
                // Births of runs are not the checkpoints' ids: they are not taken for what was never committed.
                try replica.zeroSlots()
                report = try salvage(replica, "seed \(seed), no slots", expected: [.whole])
                #expect(report.unprovenCheckpoints == 0 && report.partialCheckpoints > 0)
                #expect(Set(report.checkpoints.compactMap(\.name)) == Set(replica.order))
                for block in try replica.blocks() where block.header.kind == .checkpointRecord { try replica.zero(block.range) }
                report = try salvage(replica, "seed \(seed), no records", expected: [.index, .runs])
                #expect(Set(report.checkpoints.compactMap(\.oldName)) == Set(replica.order))
            }
        }
    }

    @Test func `a target that is full ends the work with a report of what was copied`() async throws {
        try await onPlainThread {
            let history = try History(seed: 131)
            let device = SimulatedDevice(size: .mebibytes(32))
            let target = try CheckpointStore.create(on: FaultMedium(device), options: CreateOptions(segmentSize: .kibibytes(128)))
            defer { target.close() }
            // Room for a few checkpoints: each takes some ten writes.
            device.faults.add(FaultRule(.write, .from(40), .fail(.noSpace, errno: ENOSPC)))
            let report = try Salvage(try history.medium(), options: SalvageOptions(parallelism: 1)).run(into: target)
            #expect(report.obstacle?.code == .noSpace && !report.isWhole)
            #expect(report.checkpoints.count > 0 && report.checkpoints.count < history.order.count)
            device.faults.clear()
            #expect(try Set(target.snapshot().names()) == Set(report.checkpoints.compactMap(\.name)))
            #expect(try target.verify().isSound)
        }
    }

    @Test func `a name that moves in the target is taken`() async throws {
        try await onPlainThread {
            let history = try History(seed: 132, checkpoints: 3)
            let target = try CheckpointStore.create(
                on: try RAMMedium.anonymous(size: .mebibytes(32)), options: CreateOptions(segmentSize: .kibibytes(128)))
            defer { target.close() }
            let writer = try target.begin("mine", options: WriterOptions(parallelism: 1))
            try unsafe [UInt8(1)].withUnsafeBytes { try unsafe writer.putBlob("cpu", $0) }
            try writer.commit()
            try target.setReference("c1", to: "mine")
            let report = try Salvage(try history.medium()).run(into: target)
            #expect(report.obstacle == nil)
            let renamed = try #require(report.checkpoints.first { $0.oldName == "c1" })
            #expect(renamed.state == .whole && renamed.name?.hasPrefix("c1~") == true)
        }
    }

    @Test func `what is no store is refused`() async throws {
        try await onPlainThread {
            let history = try History(seed: 1, checkpoints: 1)
            try history.zero(0..<(try history.bytes().count))
            #expect {
                _ = try Salvage(try history.medium())
            } throws: {
                ($0 as? StoreError)?.code == .notAStore
            }
        }
    }
}
