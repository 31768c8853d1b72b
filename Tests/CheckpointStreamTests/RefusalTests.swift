// Streams that are refused: each by its own error, and without a trace.

import CheckpointStore
import CheckpointStream
import FaultHarness
import Glibc
import PageCodec
import StoreFormat
import StoreTesting
import Testing
import Threading
import Units

/// A source with a line of three small checkpoints.
private func makeSource() throws -> Scene {
    let scene = try Scene()
    var random = SeededGenerator(seed: 11)
    var ram = (0..<20).flatMap { _ in makePage(&random) }
    try scene.save("a", labels: ["first": "yes"], ["ram": (.memory, ram), "cpu": (.state, [1, 2, 3])])
    for (name, parent) in [("b", "a"), ("c", "b")] {
        ram.replaceSubrange(4 * pageSize..<6 * pageSize, with: makePage(&random) + makePage(&random))
        try scene.save(name, parent: parent, ["ram": (.memory, ram), "cpu": (.state, Array(name.utf8))])
    }
    for name in ["other", "stable"] { try scene.store.setReference(name, to: "b") }
    return scene
}

/// Throws unless receiving ends with that code and leaves nothing but what was there.
private func requireRefused(
    _ target: Scene, _ bytes: [UInt8], _ code: StoreError.Code, _ options: ReceiveOptions = ReceiveOptions(parallelism: 1)
) throws {
    let (names, references) = (try target.store.snapshot().names(), try target.references())
    guard let error = try target.refusal(bytes, options) else { throw Mismatch("not refused; should be \(code)") }
    guard error.code == code, !error.remedy.isEmpty else { throw Mismatch("\(error.code) instead of \(code): \(error)") }
    guard try target.store.snapshot().names() == names else { throw Mismatch("\(code): something is left") }
    guard try target.references() == references else { throw Mismatch("\(code): names have moved") }
    try target.requireSound()
}

@Suite struct RefusalTests {
    @Test func `foreign, out of order, duplicate and taken names are told apart, and nothing is left`() async throws {
        try await onPlainThread {
            let source = try makeSource()
            let target = try Scene()
            try requireRefused(target, try source.stream([("b", "a")]), .foreign)
            try target.save("own", ["ram": (.memory, [UInt8](repeating: 1, count: pageSize))])
            try requireRefused(target, try source.stream([("b", "a")]), .foreign)
            try target.receive(try source.stream([("a", nil)]))
            try requireRefused(target, try source.stream([("a", nil)]), .duplicate)
            try requireRefused(target, try source.stream([("c", "b")]), .outOfOrder)
            try target.receive(try source.stream([("c", "a")]))
            try target.receive(try source.stream([("b", "c")]))
            for name in ["a", "b", "c"] { try target.requireSame(name, as: source) }
            try requireRefused(target, try source.stream([("c", "b")]), .duplicate)
            // Back where it came from.
            try requireRefused(source, try source.stream([("c", "b")]), .duplicate)
        }
    }

    @Test func `a base that was made again under its name is not the base`() async throws {
        try await onPlainThread {
            let source = try makeSource()
            let target = try Scene()
            try target.receive(try source.stream([("a", nil)]))
            let change = try source.stream([("b", "a")])
            try target.store.delete(["a"])
            try target.save("a", ["ram": (.memory, [UInt8](repeating: 1, count: pageSize))])
            try requireRefused(target, change, .foreign)
        }
    }

    @Test func `names that are kept for parts are nobody's`() async throws {
        try await onPlainThread {
            let source = try makeSource()
            let target = try Scene()
            let name = Names.partialPrefix + "x"
            try requireRefused(target, try source.stream([("a", nil)]), .invalidInput, ReceiveOptions(name: name, parallelism: 1))
            #expect(throws: StoreError.self) { try target.store.begin(name) }
            try requireRefused(
                target, try source.stream([("a", nil), ("b", "a")]), .invalidInput, ReceiveOptions(name: "two", parallelism: 1))
        }
    }

    @Test func `checkpoints that name each other as parents are a line that ends`() async throws {
        try await onPlainThread {
            let scene = try Scene()
            let ids = (CheckpointID(1), CheckpointID(2))
            for (id, parent) in [ids, (ids.1, ids.0)] {
                let writer = try scene.store.begin("c\(id)", over: nil, options: WriterOptions(parallelism: 1))
                try writer.commit(
                    as: CheckpointIdentity(id: id, name: "c\(id)", parent: parent, createdNanoseconds: 1, labels: [], continuesBase: false))
            }
            try scene.save("other", ["ram": (.memory, [UInt8](repeating: 1, count: pageSize))])
            let snapshot = try scene.store.snapshot()
            let (newer, other) = (try snapshot.checkpoint(ids.1), try scene.info("other"))
            #expect(try snapshot.sendItems(from: nil, to: newer).map(\.checkpoint.id) == [ids.0, ids.1])
            #expect(throws: StoreError.self) { try snapshot.sendItems(from: other, to: newer) }
        }
    }

    @Test func `what is refused while threads put its pages is refused as any`() async throws {
        let seed = testSeed()
        try await onPlainThread {
            let source = try Scene(size: .mebibytes(128))
            var random = SeededGenerator(seed: seed)
            try source.save("a", ["ram": (.memory, (0..<6000).flatMap { _ in makePage(&random) })])
            let stream = try source.stream([("a", nil)])
            let target = try Scene(size: .mebibytes(128))
            for _ in 0..<30 {
                var damaged = stream
                damaged[stream.count / 2 + random.below(stream.count / 2)] ^= 1
                let error = try target.refusal(damaged, ReceiveOptions(stepBytes: .mebibytes(64), parallelism: 4))
                guard error?.code == .damagedStream else { throw Mismatch("seed \(seed): \(String(describing: error))") }
            }
            #expect(try target.store.snapshot().names() == [])
            // A writer that is given up under the hands of those who put pages.
            for _ in 0..<200 {
                let writer = try target.store.begin("b", options: WriterOptions(parallelism: 2))
                let region = try writer.addRegion("ram", kind: .memory, byteLength: .mebibytes(4))
                let putting = PlainThread {
                    let page = [UInt8](repeating: 1, count: pageSize)
                    do {
                        while true { try unsafe page.withUnsafeBytes { unsafe try region.put(page: PageIndex(UInt64(3)), $0) } }
                    } catch { precondition((error as? StoreError)?.code == .cancelled, "\(error)") }
                }
                usleep(UInt32(random.below(200)))
                writer.abort()
                putting?.join()
            }
            try target.requireSound()
        }
    }

    @Test func `other versions and other things are told apart`() async throws {
        try await onPlainThread {
            let source = try makeSource()
            let target = try Scene()
            let stream = try source.stream([("a", nil)])
            var newer = stream
            newer[8] = 2
            let checksum = unsafe newer[..<16].withUnsafeBytes { unsafe hash128($0) }
            newer.replaceSubrange(16..<32, with: checksum.low.littleEndianBytes + checksum.high.littleEndianBytes)
            try requireRefused(target, newer, .unsupported)
            try requireRefused(target, Array("<html>what is this, a very long text".utf8), .notAStream)
            try requireRefused(target, [], .cutStream)
            try requireRefused(target, stream + [0], .damagedStream)
            try requireRefused(target, stream + stream, .damagedStream)
        }
    }

    @Test func `frames that are dropped, doubled or swapped are noticed`() async throws {
        try await onPlainThread {
            let source = try Scene()
            var random = SeededGenerator(seed: 12)
            try source.save("a", ["ram": (.memory, (0..<2100).flatMap { _ in makePage(&random) })])
            let stream = try source.stream([("a", nil)])
            let frames = Self.frames(stream)
            #expect(frames.count >= 8)
            let target = try Scene()
            for index in frames.indices {
                var dropped = frames
                dropped.remove(at: index)
                // Without its last frame the stream is cut.
                if index < frames.count - 1 { try requireRefused(target, Self.joined(stream, dropped), .damagedStream) }
                var doubled = frames
                doubled.insert(frames[index], at: index)
                try requireRefused(target, Self.joined(stream, doubled), .damagedStream)
                guard index + 1 < frames.count else { continue }
                var swapped = frames
                swapped.swapAt(index, index + 1)
                try requireRefused(target, Self.joined(stream, swapped), .damagedStream)
            }
            // A frame of another stream in the place of one: each is sound by itself.
            let other = Self.frames(try source.stream([("a", nil)]))
            for index in frames.indices {
                var mixed = frames
                mixed[index] = other[index]
                try requireRefused(target, Self.joined(stream, mixed), .damagedStream)
            }
        }
    }

    private static func frames(_ stream: [UInt8]) -> [[UInt8]] {
        var frames: [[UInt8]] = []
        var position = 32
        while position < stream.count {
            let length = (0..<4).reduce(0) { $0 | Int(stream[position + 16 + $1]) << (8 * $1) } + 48
            frames.append(Array(stream[position..<position + length]))
            position += length
        }
        return frames
    }

    private static func joined(_ stream: [UInt8], _ frames: [[UInt8]]) -> [UInt8] { Array(stream[..<32]) + frames.joined() }

    @Test func `a flip of any byte is refused, or changes nothing`() async throws {
        try await onPlainThread {
            let source = try makeSource()
            let target = try Scene()
            try target.receive(try source.stream([("a", nil)]))
            let stream = try source.stream([("b", "a")])
            var random = SeededGenerator(seed: 13)
            for index in stream.indices {
                var flipped = stream
                flipped[index] ^= 1 << UInt8(random.below(8))
                guard let error = try target.refusal(flipped) else { throw Mismatch("byte \(index): taken") }
                guard [.damagedStream, .notAStream].contains(error.code) else { throw Mismatch("byte \(index): \(error)") }
                guard try target.store.snapshot().names() == ["a"] && target.references() == [:] else {
                    throw Mismatch("byte \(index): something is left")
                }
            }
            try target.receive(stream)
            try target.requireSame("b", as: source)
            try target.requireSound()
        }
    }

    @Test func `forged frames with right checksums are refused or taken, and harm nothing`() async throws {
        let seed = testSeed()
        try await onPlainThread {
            let source = try makeSource()
            let target = try Scene()
            try target.receive(try source.stream([("a", nil)]))
            let stream = try source.stream([("b", "a")])
            let frames = Self.frames(stream)
            var random = SeededGenerator(seed: seed)
            var taken = 0
            for round in 0..<3000 {
                var forged = frames
                for _ in 0...random.below(3) {
                    let frame = random.below(forged.count)
                    let length = forged[frame].count
                    // Fields stand in front: they are hit more often than pages.
                    let place = 48 + random.below(random.chance(3, in: 4) ? min(length - 48, 80) : length - 48)
                    forged[frame][place] = [0, 1, 0xFF, 0x7F, UInt8(truncatingIfNeeded: random.next())][random.below(5)]
                }
                do {
                    let refusal = try target.refusal(Self.sealed(stream, forged))
                    if refusal == nil { taken += 1 }
                    let names = try target.store.snapshot().names()
                    let references = try target.references()
                    guard refusal == nil || (names == ["a"] && references == [:]) else { throw Mismatch("\(names) is left: \(refusal!)") }
                    for name in names where name != "a" { try target.delete([name]) }
                    if round % 100 == 0 { try target.requireSound() }
                } catch { throw Mismatch("seed \(seed), round \(round): \(error)") }
            }
            try target.requireSame("a", as: source)
            #expect(taken > 0)
        }
    }

    /// The stream of these frames, with headers and chain made for them.
    private static func sealed(_ stream: [UInt8], _ frames: [[UInt8]]) -> [UInt8] {
        func hash(_ bytes: [UInt8]) -> [UInt8] {
            let hash = unsafe bytes.withUnsafeBytes { unsafe hash128($0) }
            return hash.low.littleEndianBytes + hash.high.littleEndianBytes
        }
        var result = Array(stream[..<32])
        var chain = Array(stream[16..<32])
        for frame in frames {
            let head = frame[..<24] + hash(Array(frame[..<24]))[..<8]
            chain = hash(chain + head + hash(Array(frame[48...])))
            result += head + chain + frame[48...]
        }
        return result
    }

    @Test func `a full store says so, keeps nothing visible, and goes on when there is room`() async throws {
        try await onPlainThread {
            let source = try Scene(size: .mebibytes(64))
            var random = SeededGenerator(seed: 14)
            let ram = (0..<3000).flatMap { _ in (0..<512).flatMap { _ in random.next().littleEndianBytes } }
            try source.save("a", ["ram": (.memory, ram)])
            let stream = try source.stream([("a", nil)])
            let target = try Scene(size: .mebibytes(20), segment: .kibibytes(512))
            try target.save("filler", ["ram": (.memory, Array(ram.prefix(8 << 20)))])
            let error = try #require(try target.refusal(stream, ReceiveOptions(stepBytes: .mebibytes(2), parallelism: 2)))
            #expect(error.code == .noSpace && error.remedy.contains("--resume") && error.remedy.contains("ckstore delete"), "\(error)")
            let part = try #require(try target.parts().first)
            #expect(part.position > .start && error.remedy.contains(part.token.description))
            #expect(try target.store.snapshot().names().count == 2)
            #expect(try target.store.discardPartialCheckpoints().count == 1)
            #expect(try target.store.snapshot().names() == ["filler"])
            try target.requireSound()
        }
    }
}
