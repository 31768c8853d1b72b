// What `reader.py list --json` prints, and the same of a snapshot.

import CheckpointStore
import StoreFormat
import Units

struct Listing: Codable, Equatable {
    struct Region: Codable, Equatable {
        var name: String
        var kind: String
        var byteLength: UInt64
        var storedPages: UInt64
        var newPages: UInt64
    }

    struct Checkpoint: Codable, Equatable {
        var id: String
        var name: String
        var parent: String?
        var createdNanoseconds: UInt64
        var newPages: UInt64
        var storedBytes: UInt64
        var group: String?
        var labels: [String: String]
        var regions: [Region]

        enum CodingKeys: CodingKey {
            case id, name, parent, createdNanoseconds, newPages, storedBytes, group, labels, regions
        }
    }

    var generation: UInt64
    /// Ascending by name, bytewise.
    var checkpoints: [Checkpoint]
}

extension Listing {
    init(_ snapshot: Snapshot) throws {
        generation = snapshot.generation.rawValue
        checkpoints = try snapshot.checkpoints().map(Checkpoint.init).sorted { Names.precedes($0.name, $1.name) }
    }
}

extension Listing.Checkpoint {
    init(_ info: CheckpointInfo) {
        id = info.id.description
        name = info.name
        parent = info.parent?.description
        createdNanoseconds = info.createdNanoseconds
        newPages = info.newPages.rawValue
        storedBytes = info.storedBytes.rawValue
        group = info.groupID.map { CheckpointID($0).description }
        labels = Dictionary(uniqueKeysWithValues: info.labels.map { ($0.key, $0.value) })
        regions = info.regions.map {
            Listing.Region(
                name: $0.name, kind: $0.kind.name, byteLength: $0.byteLength.rawValue, storedPages: $0.storedPages.rawValue,
                newPages: $0.newPages.rawValue)
        }
    }
}

/// Throws with the first difference.
func requireEqual(_ found: Listing, _ expected: Listing, _ what: String) throws {
    guard found != expected else { return }
    guard found.generation == expected.generation else {
        throw Mismatch("\(what): generation \(found.generation), expected \(expected.generation)")
    }
    let (names, wanted) = (found.checkpoints.map(\.name), expected.checkpoints.map(\.name))
    guard names == wanted else { throw Mismatch("\(what): checkpoints \(names), expected \(wanted)") }
    for (a, b) in zip(found.checkpoints, expected.checkpoints) where a != b {
        throw Mismatch("\(what): checkpoint \(a.name) is listed as \(a), expected \(b)")
    }
}

/// SHA-256 over the index (u64, little-endian) and the bytes of every page that is not zero, ascending.
func pagesDigest(_ pages: some Sequence<(PageIndex, [UInt8])>) -> String {
    var digest = SHA256()
    for (index, page) in pages {
        digest.update((0..<8).map { UInt8(truncatingIfNeeded: index.rawValue >> (8 * $0)) })
        digest.update(page)
    }
    return digest.finish()
}

extension RegionReader {
    /// The pages' digest, reading only what is not zero.
    func digest() throws -> String {
        var digest = SHA256()
        for range in try dataRanges() {
            var page = range.lowerBound
            while page < range.upperBound {
                var bytes = [UInt8](repeating: 0xEE, count: pageSize)
                try unsafe bytes.withUnsafeMutableBytes { try unsafe read(page: page, into: $0) }
                if bytes.contains(where: { $0 != 0 }) {
                    digest.update((0..<8).map { UInt8(truncatingIfNeeded: page.rawValue >> (8 * $0)) })
                    digest.update(bytes)
                }
                page = page + PageCount(1)
            }
        }
        return digest.finish()
    }
}
