// How fast compaction moves, beside what the medium can do.

#if !DEBUG
    import CheckpointStore
    import FaultHarness
    import Foundation
    import Glibc
    import Media
    import StoreTesting
    import Testing
    import Threading
    import Units

    /// Bytes that are moved in a measurement, by default; a run on a quiet machine takes more.
    private let movedMebibytes = UInt64(ProcessInfo.processInfo.environment["CKSTORE_COMPACT_MIB"] ?? "") ?? 128

    @Suite(.serialized) struct CompactionSpeedTests {
        @Test(arguments: ["file", "ram"]) func `moving takes little longer than copying as many bytes`(kind: String) async throws {
            let text = try await onPlainThread { try Self.measure(kind) }
            print("compaction speed, \(kind): \(text)")
        }

        private static func measure(_ kind: String) throws -> String {
            let path = NSTemporaryDirectory() + "ckstore-speed-\(UUID().uuidString)"
            defer { try? FileManager.default.removeItem(atPath: path) }
            let size = ByteCount.mebibytes(movedMebibytes * 5 + 64)
            let medium: any Medium = kind == "ram" ? try RAMMedium.anonymous(size: size) : try createMedium(try Locator("file:" + path), size: size, force: false)
            let store = try CheckpointStore.create(on: medium)
            defer { store.close() }
            try fill(store)
            let start = monotonicMicroseconds()
            let report = try store.compact(CompactionOptions(batchBytes: .mebibytes(64)))
            let moving = Double(monotonicMicroseconds() - start) / 1e6
            if let obstacle = report.obstacle { throw obstacle }
            let copying = try copy(report.movedBytes.int, of: medium, isFile: kind == "file", beside: path + ".copy")
            let random = try randomReads(store)
            let megabytes = Double(report.movedBytes.rawValue) / 1e6
            return String(
                format: "%.0f MB in %.3f s, %.0f MB/s; copied in %.3f s, %.0f MB/s: %.0f %%; amplification %.2f -> %.2f; a random page %.1f us",
                megabytes, moving, megabytes / moving, copying, megabytes / copying, copying / moving * 100, report.before.amplification,
                report.after.amplification, random)
        }

        /// A checkpoint of which every other run is dead: its child has written these anew.
        private static func fill(_ store: CheckpointStore) throws {
            let pages = Int(movedMebibytes) * 512
            var random = SeededGenerator(seed: 7)
            var block = [UInt8](repeating: 0, count: 1 << 20)
            let length = ByteCount(UInt64(pages) * UInt64(pageSize))
            let first = try store.begin("first")
            let ram = try first.addRegion("ram", kind: .memory, byteLength: length)
            for start in stride(from: 0, to: pages, by: 256) {
                unsafe block.withUnsafeMutableBytes { unsafe random.fill($0) }
                try ram.write(block, at: PageIndex(start), isStable: true)
            }
            try first.commit()
            let second = try store.begin("second", parent: "first")
            let again = try second.addRegion("ram", kind: .memory, byteLength: length)
            for start in stride(from: 0, to: pages, by: 32) {
                try again.write([UInt8](repeating: UInt8(truncatingIfNeeded: start), count: 16 * pageSize), at: PageIndex(start), isStable: true)
            }
            try second.commit()
            try store.delete(["first"])
        }

        /// Reads as many bytes from the medium and writes them to a file, or to memory, in pieces of 1 MiB; seconds.
        private static func copy(_ bytes: Int, of medium: any Medium, isFile: Bool, beside path: String) throws -> Double {
            defer { unsafe unlink(path) }
            let size = ByteCount(UInt64(bytes + (4 << 20)))
            let target: any Medium = isFile ? try createMedium(try Locator("file:" + path), size: size, force: false) : try RAMMedium.anonymous(size: size)
            defer { target.close() }
            let piece = 1 << 20
            let buffer = AlignedBuffer(count: piece)
            let start = monotonicMicroseconds()
            for position in stride(from: 0, to: bytes, by: piece) {
                unsafe try medium.read(at: MediumOffset((4 << 20) + position), into: buffer.bytes)
                unsafe try target.write(at: MediumOffset(position), UnsafeRawBufferPointer(buffer.bytes))
            }
            try target.flush()
            return Double(monotonicMicroseconds() - start) / 1e6
        }

        /// Microseconds for a page somewhere, after compaction.
        private static func randomReads(_ store: CheckpointStore) throws -> Double {
            let region = try store.snapshot().reader(named: "second").region("ram")
            let page = AlignedBuffer(count: pageSize)
            var random = SeededGenerator(seed: 9)
            let count = 20_000
            for _ in 0..<2000 { unsafe try region.read(page: PageIndex(random.next() % region.info.pageCount.rawValue), into: page.bytes) }
            let start = monotonicMicroseconds()
            for _ in 0..<count { unsafe try region.read(page: PageIndex(random.next() % region.info.pageCount.rawValue), into: page.bytes) }
            return Double(monotonicMicroseconds() - start) / Double(count)
        }
    }

    extension SeededGenerator {
        fileprivate mutating func fill(_ bytes: UnsafeMutableRawBufferPointer) {
            for offset in stride(from: 0, to: bytes.count, by: 8) { unsafe bytes.storeBytes(of: next(), toByteOffset: offset, as: UInt64.self) }
        }
    }
#endif
