// Streams that are cut, and gone on from.

import CheckpointStore
import CheckpointStream
import FaultHarness
import StoreFormat
import StoreTesting
import Synchronization
import Testing
import Units

/// The items of a stream, from where the target says.
private func remaining(_ items: [SendItem], _ target: Scene) throws -> [SendItem] {
    var rest = items[...]
    while let first = rest.first, (try? target.store.snapshot().checkpoint(first.checkpoint.id)) != nil { rest.removeFirst() }
    if let first = rest.first, let part = try target.parts().first {
        #expect(part.checkpoint == first.checkpoint.id && part.base == first.base?.id)
        let token = try #require(ResumeToken(part.token.description))
        rest[rest.startIndex].start = token.position
    }
    return Array(rest)
}

@Suite struct ResumeTests {
    @Test func `a stream that is cut at any byte is gone on from, and ends as one that was not`() async throws {
        try await onPlainThread {
            let source = try Scene()
            var random = SeededGenerator(seed: 21)
            // Few pages in several spans and regions, so that every kind of frame is there and every byte is soon tried.
            var ram = [UInt8](repeating: 0, count: 1600 * pageSize)
            for page in [3, 600, 1100, 1599] {
                let content = random.next().littleEndianBytes + [UInt8](repeating: 5, count: pageSize - 8)
                ram.replaceSubrange(page * pageSize..<(page + 1) * pageSize, with: content)
            }
            try source.save("a", ["disk": (.disk, [UInt8](repeating: 3, count: 5000)), "ram": (.memory, ram)])
            for page in [3, 700] { ram.replaceSubrange(page * pageSize..<page * pageSize + 1, with: [9]) }
            ram.replaceSubrange(1100 * pageSize..<1101 * pageSize, with: [UInt8](repeating: 0, count: pageSize))
            ram.replaceSubrange(600 * pageSize..<601 * pageSize, with: [UInt8](repeating: 0, count: pageSize))
            try source.save("b", parent: "a", labels: ["k": "v"], ["cpu": (.state, [1, 2, 3]), "ram": (.memory, ram)])
            for (name, checkpoint) in [("first", "a"), ("stable", "b"), ("weekly", "b")] { try source.store.setReference(name, to: checkpoint) }
            let items = [SendItem(try source.info("a"), base: nil), SendItem(try source.info("b"), base: try source.info("a"))]
            let stream = try source.stream(items)
            let whole = try Scene()
            try whole.receive(stream)
            var kept = Set<StreamPosition>()
            let target = try Scene()
            for cut in 0..<stream.count {
                guard let error = try target.refusal(stream[..<cut]) else { throw Mismatch("cut at \(cut): taken") }
                guard error.code == .cutStream else { throw Mismatch("cut at \(cut): \(error)") }
                let names = try target.store.snapshot().names().filter { !Names.isPartial($0) }
                guard names == [] || names == ["a"] else { throw Mismatch("cut at \(cut): \(names)") }
                // Names come with their checkpoint, not before and not later.
                let references = try target.references()
                guard references == (names == [] ? [:] : ["first": "a"]) else { throw Mismatch("cut at \(cut): \(references)") }
                for part in try target.parts() { kept.insert(part.position) }
                try target.receive(try source.stream(try remaining(items, target)))
                guard try target.store.snapshot().names() == ["a", "b"] else { throw Mismatch("cut at \(cut): a part is left") }
                guard try target.references() == source.references() else { throw Mismatch("cut at \(cut): other names that move") }
                for name in ["a", "b"] {
                    try target.requireSame(name, as: source)
                    guard try target.info(name).newPages == whole.info(name).newPages else { throw Mismatch("cut at \(cut): other counts") }
                    guard try target.info(name).storedBytes == whole.info(name).storedBytes else { throw Mismatch("cut at \(cut): other sizes") }
                }
                if cut % 200 == 0 { try target.requireSound() }
                try target.delete(["a", "b"])
            }
            // Parts ended behind every frame with pages.
            #expect(kept.count >= 6, "\(kept.count)")
        }
    }

    @Test func `a stream that is cut again and again comes through, by steps and by parts`() async throws {
        let seed = testSeed()
        try await onPlainThread {
            let source = try Scene(size: .mebibytes(256))
            var random = SeededGenerator(seed: seed)
            var ram = (0..<4000).flatMap { _ in makePage(&random) }
            try source.save("a", ["ram": (.memory, ram)])
            for _ in 0..<800 {
                let page = random.below(4000)
                ram.replaceSubrange(page * pageSize..<(page + 1) * pageSize, with: makePage(&random))
            }
            try source.save("b", parent: "a", ["ram": (.memory, ram)])
            let items = [SendItem(try source.info("a"), base: nil), SendItem(try source.info("b"), base: try source.info("a"))]
            let target = try Scene(size: .mebibytes(256))
            var rounds = 0
            while true {
                let rest = try remaining(items, target)
                if rest.isEmpty { break }
                rounds += 1
                let stream = try source.stream(rest, parallelism: 2)
                let cut = rounds < 12 ? random.below(stream.count + 1) : stream.count
                let error = try target.refusal(stream[..<cut], ReceiveOptions(stepBytes: .kibibytes(300), parallelism: 2))
                guard error == nil || error?.code == .cutStream else { throw Mismatch("seed \(seed): \(String(describing: error))") }
                try target.requireSound()
            }
            for name in ["a", "b"] { try target.requireSame(name, as: source) }
            guard try target.store.snapshot().names() == ["a", "b"] else { throw Mismatch("seed \(seed): a part is left") }
            #expect(rounds > 1)
        }
    }

    @Test func `a part can be dropped, and the store is as it was`() async throws {
        try await onPlainThread {
            let (source, stream) = try Self.threeSpans()
            let target = try Scene()
            try target.save("own", ["ram": (.memory, [UInt8](repeating: 1, count: pageSize))])
            #expect(try target.refusal(stream[..<(stream.count - 100)])?.code == .cutStream)
            let part = try #require(try target.parts().first)
            #expect(part.name == "a" && part.base == nil && part.origin == source.store.uuid && part.info.isPartial)
            #expect(try target.store.discardPartialCheckpoints().map(\.checkpoint) == [part.checkpoint])
            #expect(try target.store.snapshot().names() == ["own"])
            try target.store.requireEqual(target.model)
            // What the token says is not there any more.
            let late = [SendItem(try source.info("a"), base: nil, start: part.position)]
            #expect(try target.refusal(try source.stream(late))?.code == .outOfOrder)
            try target.receive(stream)
            try target.requireSame("a", as: source)
        }
    }

    @Test func `a stream that starts again does not lose what has come further`() async throws {
        try await onPlainThread {
            let (source, stream) = try Self.threeSpans()
            let target = try Scene()
            #expect(try target.refusal(stream[..<(stream.count - 100)])?.code == .cutStream)
            let far = try #require(try target.parts().first?.position)
            let small = ReceiveOptions(stepBytes: .kibibytes(1), parallelism: 1)
            #expect(try target.refusal(stream[..<(stream.count / 2)], small)?.code == .cutStream)
            #expect(try target.parts().map(\.position) == [far])
            // It may also come to its end without it.
            try target.receive(stream, small)
            try target.requireSame("a", as: source)
            #expect(try target.store.snapshot().names() == ["a"])
        }
    }

    @Test func `a new name is remembered with the part, and one that is taken meanwhile is told`() async throws {
        try await onPlainThread {
            let (source, stream) = try Self.threeSpans()
            let target = try Scene()
            #expect(try target.refusal(stream[..<(stream.count - 100)], ReceiveOptions(name: "copy", parallelism: 1))?.code == .cutStream)
            let part = try #require(try target.parts().first)
            let rest = try source.stream([SendItem(try source.info("a"), base: nil, start: part.position)])
            try target.save("copy", ["ram": (.memory, [UInt8](repeating: 1, count: pageSize))])
            #expect(try target.refusal(rest)?.code == .exists)
            try target.store.delete(["copy"])
            try target.receive(rest)
            try target.requireSame("copy", as: source, named: "a")
        }
    }

    @Test func `a part that its receiver could not delete any more is no part`() async throws {
        try await onPlainThread {
            let (source, stream) = try Self.threeSpans()
            let target = try Scene()
            #expect(try target.refusal(stream[..<(stream.count - 100)])?.code == .cutStream)
            // The checkpoint comes, but the part stays: as when the receiver is killed between its last two commits.
            let info = try source.info("a")
            let writer = try target.store.begin("a", over: nil, options: WriterOptions(parallelism: 1))
            try writer.addRegion("ram", kind: .memory, byteLength: info.regions[0].byteLength).write(source.model["a"]!["ram"]!)
            try writer.commit(
                as: CheckpointIdentity(
                    id: info.id, name: "a", parent: nil, createdNanoseconds: info.createdNanoseconds, labels: [], continuesBase: false))
            #expect(try target.store.snapshot().names().count == 2 && target.parts().isEmpty)
            try source.save("b", parent: "a", ["ram": (.memory, [UInt8](repeating: 1, count: pageSize))])
            try target.receive(try source.stream([("b", "a")]))
            #expect(try target.store.snapshot().names() == ["a", "b"])
            for name in ["a", "b"] { try target.requireSame(name, as: source) }
        }
    }

    @Test func `a damaged stream leaves the steps before it, and nothing else`() async throws {
        try await onPlainThread {
            let (source, stream) = try Self.threeSpans()
            let target = try Scene()
            var damaged = stream
            damaged[stream.count - 200] ^= 4
            #expect(try target.refusal(damaged)?.code == .damagedStream)
            #expect(try target.parts().isEmpty && target.store.snapshot().names().isEmpty)
            let error = try #require(try target.refusal(damaged, ReceiveOptions(stepBytes: .kibibytes(1), parallelism: 1)))
            let part = try #require(try target.parts().first)
            #expect(error.code == .damagedStream && error.remedy.contains(part.token.description))
            try target.receive(try source.stream([SendItem(try source.info("a"), base: nil, start: part.position)]))
            try target.requireSame("a", as: source)
        }
    }

    @Test func `where labels of a part have no room, nothing is kept on the way, and the checkpoint comes`() async throws {
        try await onPlainThread {
            let source = try Scene()
            var random = SeededGenerator(seed: 23)
            // Empty regions, as many as fill the record up to what its own name needs.
            var regions: [String: (RegionKind, [UInt8])] = ["ram": (.memory, (0..<1100).flatMap { _ in makePage(&random) })]
            while true {
                let name = String(1000 + regions.count) + String(repeating: "x", count: 240)
                let names = regions.keys + [name]
                guard CheckpointRecord.encodedLength(name: "a", labels: [], regionNames: names) <= CheckpointRecord.maximumLength else { break }
                regions[name] = (.state, [])
            }
            try source.save("a", regions)
            let stream = try source.stream([("a", nil)])
            let target = try Scene()
            let steps = ReceiveOptions(stepBytes: .kibibytes(1), parallelism: 1)
            #expect(try target.refusal(stream[..<(stream.count - 100)], steps)?.code == .cutStream)
            #expect(try target.store.snapshot().names() == [])
            try target.receive(stream, steps)
            try target.requireSame("a", as: source)
        }
    }

    @Test func `zeros cost what they make zero, however long the region is, and can be given up`() async throws {
        try await onPlainThread {
            let scene = try Scene()
            let length = ByteCount(UInt64(Int64.max))
            let page = [UInt8](repeating: 1, count: pageSize)
            let places = [UInt64(0), 5, 700, 1 << 30, 1 << 45, (1 << 51) - 1].map { PageIndex($0) }
            let base = try scene.store.begin("a", options: WriterOptions(parallelism: 1))
            let region = try base.addRegion("disk", kind: .disk, byteLength: length)
            for place in places.dropLast() { unsafe try page.withUnsafeBytes { unsafe try region.put(page: place, $0) } }
            try base.commit()
            let writer = try scene.store.begin("b", parent: "a", options: WriterOptions(parallelism: 1))
            let over = try writer.addRegion("disk", kind: .disk, byteLength: length)
            for place in [PageIndex(UInt64(6000)), PageIndex(UInt64(1 << 40))] { unsafe try page.withUnsafeBytes { unsafe try over.put(page: place, $0) } }
            let asked = Mutex(0)
            let end = try over.putZeros(PageIndex(UInt64(1))..<places[5]) {
                asked.withLock { count in
                    count += 1
                    return count > 3
                }
            }
            // The spans of pages 5, 700 and 6000.
            #expect(end == PageIndex(UInt64(12 * pagesPerSpan)))
            try over.putZeros(end..<places[5])
            try writer.commit()
            #expect(try scene.info("b").regions[0].storedPages == PageCount(1))
            #expect(try scene.reader("b", "disk").bytes(places[0]..<places[0] + PageCount(1)) == page)
            try scene.requireSound()
        }
    }

    @Test func `a token that was copied wrongly is no token`() {
        let token = ResumeToken(
            checkpoint: CheckpointID(0x1234_5678_9ABC_DEF0), base: CheckpointID(7), position: StreamPosition(region: 3, page: PageIndex(1024)))
        let text = token.description
        #expect(ResumeToken(text) == token)
        for index in text.indices {
            var wrong = text
            wrong.replaceSubrange(index...index, with: text[index] == "1" ? "2" : "1")
            #expect(ResumeToken(wrong) == nil)
        }
        for wrong in ["", "ck1", text + " ", text.uppercased(), "ck1-\(CheckpointID(7))-0-0-0-00000000"] { #expect(ResumeToken(wrong) == nil) }
    }

    private static func threeSpans() throws -> (Scene, [UInt8]) {
        let source = try Scene()
        var random = SeededGenerator(seed: 22)
        try source.save("a", ["ram": (.memory, (0..<1536).flatMap { _ in makePage(&random) })])
        return (source, try source.stream([("a", nil)]))
    }
}
