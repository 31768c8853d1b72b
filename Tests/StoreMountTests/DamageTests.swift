// A damaged store, mounted: what is damaged can't be read, all else can, and nobody gets a wrong byte.

import CheckpointStore
import FaultHarness
import Foundation
import StoreTesting
import Testing
import Units

@Suite(.enabled(if: MountSupport.isAvailable, Comment(rawValue: MountSupport.reason)), .serialized)
struct DamageTests {
    /// Flips a bit where `bytes` first stand in the store's file.
    private func damage(_ scene: MountScene, at bytes: ArraySlice<UInt8>) throws {
        let data = try Data(contentsOf: URL(fileURLWithPath: scene.storePath), options: .alwaysMapped)
        let place = try #require(data.range(of: Data(bytes))).lowerBound
        let handle = try #require(FileHandle(forUpdatingAtPath: scene.storePath))
        try handle.seek(toOffset: UInt64(place))
        try handle.write(contentsOf: Data([bytes[bytes.startIndex] ^ 0x10]))
        try handle.close()
    }

    @Test func `pages of a damaged run are I/O errors, all others read right, and the log names the run's pages once`() async throws {
        try await onPlainThread {
            let scene = try MountScene()
            // Runs are raw then, of sixteen pages each.
            let bytes = noise(1024 * pageSize, seed: 11)
            try scene.save("one", ["ram": bytes, "other": content(100_000, seed: 4)])
            try scene.save("two", parent: "one", ["ram": bytes])
            let page = 600
            try damage(scene, at: bytes[page * pageSize..<page * pageSize + 64])
            let broken = page / 16 * 16..<page / 16 * 16 + 16
            let report = try scene.run("verify", scene.storePath)
            #expect(report.exitCode == 3 && report.errors.contains("pages \(broken.lowerBound)..<\(broken.upperBound)"), "\(report.errors)")
            try scene.mounted { _ throws in
                for checkpoint in ["one", "two"] {
                    let file = try OpenedFile(scene.path(checkpoint, "ram"))
                    // All at once first: nothing behind a failed page may have been made up, nor kept by the kernel.
                    let all = try file.read(at: 0, bytes.count)
                    guard all.count <= broken.lowerBound * pageSize, all == Array(bytes[..<all.count]) else {
                    throw Mismatch("\(all.count) bytes at once")
                }
                    for page in 0..<1024 {
                        let range = page * pageSize..<(page + 1) * pageSize
                        let found = try? file.read(at: range.lowerBound, pageSize)
                        let expected = broken.contains(page) ? nil : Array(bytes[range])
                        guard found == expected else { throw Mismatch("page \(page) of \(checkpoint)") }
                    }
                }
                #expect(try OpenedFile(scene.path("one", "other")).read(at: 0, 100_000) == content(100_000, seed: 4))
                let lines = scene.log
                for checkpoint in ["one", "two"] {
                    let place = "checkpoint \(checkpoint), region ram, pages \(broken.lowerBound)..<\(broken.upperBound)"
                    let its = lines.filter { $0.contains(place) }
                    #expect(its.count == 1, "\(lines)")
                }
                #expect(lines.count == 2, "\(lines)")
                // The tools that people use see it too.
                #expect(try scene.tool("cat", scene.path("one", "ram")).exitCode == 1)
                let mapping = "import mmap, sys; f = open(sys.argv[1], 'rb'); print(mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)[int(sys.argv[2])])"
                for page in [broken.lowerBound - 1, broken.lowerBound, broken.upperBound - 1, broken.upperBound] {
                    let outcome = try scene.tool("python3", "-c", mapping, scene.path("one", "ram"), "\(page * pageSize)")
                    #expect(broken.contains(page) ? outcome.signal == SIGBUS : outcome.text == "\(bytes[page * pageSize])\n", "\(outcome)")
                }
            }
        }
    }

    @Test func `a damaged index is an I/O error for its span only, and a damaged record hides nothing else`() async throws {
        try await onPlainThread {
            let scene = try MountScene()
            let bytes = content(1536 * pageSize, seed: 21)
            try scene.save("one", ["ram": bytes])
            try scene.save("two", ["ram": content(5000, seed: 1)])
            // Any leaf will do: found by its magic, and damaged behind its header.
            var data = try Data(contentsOf: URL(fileURLWithPath: scene.storePath), options: .alwaysMapped)
            let leaf = try #require(data.range(of: Data("CKLF".utf8))).lowerBound
            data = Data()
            let handle = try #require(FileHandle(forUpdatingAtPath: scene.storePath))
            try handle.seek(toOffset: UInt64(leaf + 60))
            try handle.write(contentsOf: Data([0xA5, 0x5A]))
            try handle.close()
            try scene.mounted { _ throws in
                let file = try OpenedFile(scene.path("one", "ram"))
                var failed: [Int] = []
                for page in 0..<1536 {
                    let range = page * pageSize..<(page + 1) * pageSize
                    guard let found = try? file.read(at: range.lowerBound, pageSize) else {
                        failed.append(page)
                        continue
                    }
                    guard found == Array(bytes[range]) else { throw Mismatch("page \(page)") }
                }
                let span = try #require(failed.first) / pagesPerSpan
                #expect(failed == Array(span * pagesPerSpan..<(span + 1) * pagesPerSpan))
                let place = "checkpoint one, region ram, pages \(span * pagesPerSpan)..<\((span + 1) * pagesPerSpan)"
                #expect(scene.log.count == 1 && scene.log[0].contains(place), "\(scene.log)")
                #expect(try OpenedFile(scene.path("two", "ram")).read(at: 0, 5000) == content(5000, seed: 1))
            }
        }
    }
}
