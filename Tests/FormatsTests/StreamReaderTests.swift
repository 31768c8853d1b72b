// Streams, read by the reader in Python that was written from STREAM.md.

import CheckpointStore
import CheckpointStream
import FaultHarness
import Foundation
import Media
import StoreFormat
import Testing
import Units

/// A listing as `stream.py list` prints it.
private struct StreamListing: Decodable {
    struct Checkpoint: Decodable {
        var id: String
        var parent: String
        var base: String
        var name: String
        var labels: [String: String]
        var references: [String]
        var writtenPages: UInt64
        var zeroedPages: UInt64
    }
    var origin: String
    var checkpoints: [Checkpoint]
}

/// Two checkpoints: of regions that change, are cut short, come and go; and the file with their stream.
private func makeStream(in directory: TemporaryDirectory) throws -> (shop: Workshop, path: String) {
    var shop = try Workshop(try RAMMedium.anonymous(size: .mebibytes(64)), segmentSize: .kibibytes(256), seed: 7)
    let noise = (0..<4096).map { UInt8(truncatingIfNeeded: $0 &* 2_654_435_761 >> 7) }
    let page = [UInt8](repeating: 7, count: 4096)
    try shop.save(
        "first", labels: ["k": "v"],
        RegionChange(name: "gone", kind: .state, byteLength: 4096, changes: [.page(0, page)]),
        RegionChange(
            name: "ram", byteLength: 2600 * 4096,
            changes: [.page(0, noise), .page(1, page), .page(3, page), .page(513, page), .page(514, noise), .page(1100, page), .page(2500, noise)]),
        RegionChange(name: "short", kind: .disk, byteLength: 9000, changes: [.page(1, page)]))
    try shop.save(
        "second", parent: "first",
        RegionChange(name: "new", kind: .state, byteLength: 5, changes: []),
        RegionChange(
            name: "ram", byteLength: 2100 * 4096, changes: [.page(1, noise), .zeros(3..<4), .zeros(512..<1200), .page(1500, page)]),
        RegionChange(name: "short", kind: .disk, byteLength: 20000, changes: []))
    for name in ["daily", "stable"] { try shop.store.setReference(name, to: "second") }
    let snapshot = try shop.store.snapshot()
    let (first, second) = (try snapshot.checkpoint(named: "first"), try snapshot.checkpoint(named: "second"))
    let path = directory.path("stream")
    let file = try newFile(path)
    _ = try snapshot.send([SendItem(first, base: nil), SendItem(second, base: first)], to: file.fileDescriptor)
    try file.close()
    return (shop, path)
}

@Suite struct StreamReaderTests {
    @Test func `the reader in Python lists a stream and applies it to files`() async throws {
        try await onPlainThread {
            let directory = try TemporaryDirectory()
            let (shop, path) = try makeStream(in: directory)
            defer { shop.store.close() }
            #expect(try Python.output("stream.py", "verify", path).isEmpty)
            let listing = try decodeJSON(StreamListing.self, try Python.output("stream.py", "list", path))
            let infos = try shop.store.snapshot().checkpoints()
            #expect(listing.origin == shop.store.uuid.description.replacing("-", with: ""))
            #expect(listing.checkpoints.map(\.id) == infos.map(\.id.description))
            #expect(listing.checkpoints.map(\.name) == ["first", "second"])
            #expect(listing.checkpoints.map(\.base) == [String(repeating: "0", count: 16), infos[0].id.description])
            #expect(listing.checkpoints[0].labels == ["k": "v"])
            #expect(listing.checkpoints.map(\.references) == [[], ["daily", "stable"]])
            #expect(listing.checkpoints.map(\.writtenPages) == [9, 2])
            let target = directory.path("applied")
            try FileManager.default.createDirectory(atPath: target, withIntermediateDirectories: false)
            #expect(try Python.output("stream.py", "apply", path, target).isEmpty)
            for info in infos {
                let reader = try shop.store.snapshot().reader(info)
                let files = try FileManager.default.contentsOfDirectory(atPath: "\(target)/\(info.name)").filter { $0 != ".id" }.sorted()
                #expect(files == info.regions.map(\.name))
                for region in info.regions {
                    let found = try Data(contentsOf: URL(filePath: "\(target)/\(info.name)/\(region.name)"))
                    var expected = [UInt8](repeating: 0, count: region.byteLength.int)
                    let opened = try reader.region(region.name)
                    try unsafe expected.withUnsafeMutableBytes { try unsafe opened.read(at: .zero, into: $0) }
                    #expect(found == Data(expected), "\(info.name)/\(region.name)")
                }
            }
        }
    }

    @Test func `the reader in Python refuses what is cut or changed`() async throws {
        try await onPlainThread {
            let directory = try TemporaryDirectory()
            let (shop, path) = try makeStream(in: directory)
            shop.store.close()
            let stream = try [UInt8](Data(contentsOf: URL(filePath: path)))
            let changed = directory.path("changed")
            // A few of each kind: each takes a process.
            for index in stride(from: 0, to: stream.count, by: stream.count / 12) {
                var bytes = stream
                bytes[index] ^= 16
                try Data(bytes).write(to: URL(filePath: changed))
                #expect(try Python.run("stream.py", "verify", changed).exitCode == 3, "byte \(index)")
                try Data(stream[..<index]).write(to: URL(filePath: changed))
                let cut = try Python.run("stream.py", "verify", changed)
                #expect(cut.exitCode == 3 && cut.errors.contains("cut"), "cut at \(index): \(cut.errors)")
            }
            try Data(stream + [0]).write(to: URL(filePath: changed))
            #expect(try Python.run("stream.py", "verify", changed).exitCode == 3)
        }
    }
}
