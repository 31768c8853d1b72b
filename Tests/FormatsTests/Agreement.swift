// Holding a store to what it must contain, by both readers.

import CheckpointStore
import Foundation
import Media
import StoreFormat
import Units

/// What `reader.py verify --json` prints.
struct PythonReport: Codable {
    var ok: Bool
    var generation: UInt64
    var counts: [String: Int]
    var notes: [String]
    var problems: [String]
}

struct RegionDigest: Codable, Equatable {
    var checkpoint: String
    var region: String
    var pagesSha256: String
}

extension Workshop {
    /// Ends the writing and throws unless both readers find exactly the model in the file. Returns Python's figures.
    @discardableResult
    func requireAgreement(_ path: String, restoring: [(checkpoint: String, region: String)] = []) throws -> PythonReport {
        store.close()
        return try FormatsTests.requireAgreement(path, model: model, restoring: restoring)
    }
}

/// Throws unless both readers find exactly `model` in the store at `path`, and nothing wrong with it.
@discardableResult
func requireAgreement(
    _ path: String, model: [String: [String: ModelRegion]], restoring: [(checkpoint: String, region: String)] = []
) throws -> PythonReport {
    let expected = model.sorted { Names.precedes($0.key, $1.key) }.flatMap { name, regions in
        regions.sorted { Names.precedes($0.key, $1.key) }.map {
            RegionDigest(checkpoint: name, region: $0.key, pagesSha256: $0.value.digest)
        }
    }
    let report = try verifiedByPython(path)
    let found = try decodeJSON([RegionDigest].self, Python.output("tools/page_digests.py", path))
    try requireEqual(found, expected, "reader in Python")
    let store = try CheckpointStore.open(openMedium(Locator(kind: .file, target: path), access: .readOnly))
    defer { store.close() }
    let snapshot = try store.snapshot()
    let listing = try Listing(snapshot)
    try requireEqual(
        try decodeJSON(Listing.self, Python.output("reader.py", "list", path, "--json")), listing, "reader.py list")
    guard listing.checkpoints.map(\.name) == model.keys.sorted(by: Names.precedes) else {
        throw Mismatch("checkpoints \(listing.checkpoints.map(\.name)), expected \(model.keys.sorted())")
    }
    try requireEqual(
        try expected.map {
            RegionDigest(
                checkpoint: $0.checkpoint, region: $0.region,
                pagesSha256: try snapshot.reader(named: $0.checkpoint).region($0.region).digest())
        }, expected, "engine")
    try requireModel(listing, model)
    for (checkpoint, region) in restoring {
        guard let wanted = model[checkpoint]?[region] else { throw Mismatch("\(checkpoint)/\(region) is not in the model") }
        try requireRestored(path, checkpoint, region, wanted)
    }
    let own = try store.verify(options: VerifyOptions(checksPages: true, parallelism: 2))
    if let damage = own.damages.first { throw Mismatch("the engine finds \(own.damages.count) damages: \(damage)") }
    return report
}

/// Throws unless the reader in Python finds nothing wrong.
func verifiedByPython(_ path: String) throws -> PythonReport {
    let result = try Python.run("reader.py", "verify", path, "--json")
    guard result.exitCode == 0 else { throw Mismatch("reader.py verify: \(result.output.suffix(3000))\(result.errors)") }
    let report = try decodeJSON(PythonReport.self, result.output)
    guard report.ok, report.notes.isEmpty, report.problems.isEmpty else { throw Mismatch("reader.py verify: \(report)") }
    guard report.counts["overcounted"] == 0 else { throw Mismatch("`live` of the segments is not exact: \(report.counts)") }
    return report
}

/// Lengths, kinds and page counts are those of the model.
private func requireModel(_ listing: Listing, _ model: [String: [String: ModelRegion]]) throws {
    for checkpoint in listing.checkpoints {
        for region in checkpoint.regions {
            guard let wanted = model[checkpoint.name]?[region.name], wanted.byteLength == region.byteLength,
                wanted.kind.name == region.kind, UInt64(wanted.pages.count) == region.storedPages
            else { throw Mismatch("\(checkpoint.name)/\(region.name) is listed as \(region)") }
        }
    }
}

/// Throws unless `reader.py restore` writes a file of exactly these bytes.
private func requireRestored(_ path: String, _ checkpoint: String, _ region: String, _ wanted: ModelRegion) throws {
    let files = try TemporaryDirectory()
    let out = files.path("out")
    _ = try Python.output("reader.py", "restore", path, checkpoint, region, out)
    let bytes = try Data(contentsOf: URL(filePath: out))
    guard UInt64(bytes.count) == wanted.byteLength else {
        throw Mismatch("\(checkpoint)/\(region): restored \(bytes.count) bytes, expected \(wanted.byteLength)")
    }
    let zeros = Data(count: pageSize)
    for start in stride(from: 0, to: bytes.count, by: pageSize) {
        let piece = bytes[start..<min(start + pageSize, bytes.count)]
        let page = wanted.pages[PageIndex(start / pageSize)].map { Data($0) } ?? zeros
        guard piece == page[..<piece.count] else { throw Mismatch("\(checkpoint)/\(region): other bytes restored in page \(start / pageSize)") }
    }
}

private func requireEqual(_ found: [RegionDigest], _ expected: [RegionDigest], _ who: String) throws {
    guard found != expected else { return }
    for (a, b) in zip(found, expected) where a != b { throw Mismatch("\(who): \(a), expected \(b)") }
    throw Mismatch("\(who): \(found.count) regions, expected \(expected.count)")
}
