// Change sets, held against plain bytes: what they lead to, and what they cost.

import CheckpointStore
import FaultHarness
import StoreFormat
import StoreTesting
import Testing
import Units

/// One checkpoint's view with the changes to another applied.
private func applied(_ older: ModelCheckpoint, _ changes: ChangeSet) throws -> ModelCheckpoint {
    var result: ModelCheckpoint = [:]
    for change in changes.regions {
        guard let newer = change.newer else { continue }
        var bytes = change.older.map { older[$0.name] ?? [] } ?? []
        let padded = newer.pageCount.bytes.int
        bytes = Array(bytes.prefix(newer.byteLength.int))
        bytes += [UInt8](repeating: 0, count: padded - bytes.count)
        var last = 0
        try changes.forEachSpan(of: change) { (span) throws(StoreError) in
            #expect(span.firstPage.int >= last, "out of order")
            last = span.firstPage.int + pagesPerSpan
            var content = [UInt8](repeating: 0xEE, count: pagesPerSpan * pageSize)
            let failure: StoreError? = unsafe content.withUnsafeMutableBytes { buffer in
                do throws(StoreError) {
                    unsafe try span.read(into: buffer)
                    return nil
                } catch { return error }
            }
            if let failure { throw failure }
            let start = span.firstPage.int * pageSize
            for range in span.written {
                let (low, high) = (range.lowerBound * pageSize, range.upperBound * pageSize)
                bytes.replaceSubrange(start + low..<start + high, with: content[low..<high])
            }
            for range in span.zeroed {
                let (low, high) = (range.lowerBound * pageSize, range.upperBound * pageSize)
                bytes.replaceSubrange(start + low..<start + high, with: repeatElement(0, count: high - low))
            }
        }
        result[newer.name] = Array(bytes.prefix(newer.byteLength.int))
    }
    return result
}

@Suite struct ChangeSetTests {
    @Test func `a view with the changes to any other checkpoint is that one's view`() async throws {
        let seed = testSeed()
        try await onPlainThread {
            for number in UInt64(0)..<4 {
                let scene = try Scene(size: .mebibytes(256))
                var history = History(seed: seed &+ number)
                for _ in 0..<9 { try history.step(scene) }
                let snapshot = try scene.store.snapshot()
                for (older, a) in scene.model {
                    for (newer, b) in scene.model {
                        let changes = ChangeSet(from: try snapshot.reader(named: older), to: try snapshot.reader(named: newer))
                        guard try applied(a, changes) == b else { throw Mismatch("seed \(seed): history \(number), \(older) to \(newer)") }
                    }
                    let everything = ChangeSet(from: nil, to: try snapshot.reader(named: older))
                    guard try applied([:], everything) == a else { throw Mismatch("seed \(seed): history \(number), \(older) from nothing") }
                }
            }
        }
    }

    @Test func `where nothing was written nothing is in the set, and only roots are compared`() async throws {
        try await onPlainThread {
            let scene = try Scene()
            var random = SeededGenerator(seed: 3)
            let bytes = (0..<700).flatMap { _ in makePage(&random) }
            try scene.save("a", ["ram": (.memory, bytes)])
            // Saved again as a whole: found equal page by page.
            try scene.save("b", parent: "a", ["ram": (.memory, bytes)])
            let snapshot = try scene.store.snapshot()
            let changes = ChangeSet(from: try snapshot.reader(named: "a"), to: try snapshot.reader(named: "b"))
            var spans = 0
            let counts = try changes.forEachSpan(of: changes.regions[0]) { (_) throws(StoreError) in spans += 1 }
            #expect(spans == 0 && counts.nodes == 0)
            #expect(!changes.regions[0].isReshaped && changes.regions.count == 1)
        }
    }

    @Test func `one changed page of a million costs the nodes on its way, in both trees`() async throws {
        try await onPlainThread {
            let scene = try Scene(size: .mebibytes(128), segment: .mebibytes(2))
            let pages = 1 << 20
            // A page in each of 2048 spans: a full tree of two levels of inner nodes.
            let writer = try scene.store.begin("a", options: WriterOptions(parallelism: 1))
            let region = try writer.addRegion("ram", kind: .memory, byteLength: PageCount(pages).bytes)
            for span in 0..<pages / pagesPerSpan {
                try region.put(page: PageIndex(span * pagesPerSpan + span % 512), [UInt8](repeating: UInt8(span % 255 + 1), count: pageSize))
            }
            try writer.commit()
            let next = try scene.store.begin("b", parent: "a", options: WriterOptions(parallelism: 1))
            try next.addRegion("ram", kind: .memory, byteLength: PageCount(pages).bytes)
                .put(page: PageIndex(777_777), [UInt8](repeating: 9, count: pageSize))
            try next.commit()
            let depth = Int(PageTree.depth(pageCount: PageCount(pages)))
            #expect(depth == 2)
            let snapshot = try scene.store.snapshot()
            let (a, b) = (try snapshot.reader(named: "a"), try snapshot.reader(named: "b"))
            for (older, newer) in [(a, b), (b, a)] {
                let changes = ChangeSet(from: older, to: newer)
                var (written, zeroed) = (0, 0)
                let counts = try changes.forEachSpan(of: changes.regions[0]) { (span) throws(StoreError) in
                    written += span.writtenPages.int
                    zeroed += span.zeroedPages.int
                }
                // A patch leaf is read with the leaf that it is over: two more.
                #expect(counts.nodes <= 2 * (depth + 1) + 2, "\(counts)")
                #expect(older === a ? (written, zeroed) == (1, 0) : (written, zeroed) == (0, 1))
            }
            // The whole tree, for comparison: what a walk that does not share would read.
            let everything = ChangeSet(from: nil, to: a)
            #expect(try everything.forEachSpan(of: everything.regions[0]) { _ in }.nodes > 2048)
        }
    }

    @Test func `regions that come, go and change their length are told`() async throws {
        try await onPlainThread {
            let scene = try Scene()
            try scene.save("a", ["disk": (.disk, [UInt8](repeating: 1, count: 9000)), "gone": (.state, [1, 2])])
            try scene.save("b", parent: "a", ["disk": (.disk, [UInt8](repeating: 1, count: 5000)), "new": (.state, [3])])
            let snapshot = try scene.store.snapshot()
            let changes = ChangeSet(from: try snapshot.reader(named: "a"), to: try snapshot.reader(named: "b"))
            #expect(changes.regions.map(\.name) == ["disk", "gone", "new"])
            #expect(changes.regions.map(\.isReshaped) == [true, false, false])
            #expect(changes.regions.map { $0.older == nil } == [false, false, true])
            #expect(changes.regions.map { $0.newer == nil } == [false, true, false])
            var pages: [Int] = []
            try changes.forEachSpan(of: changes.regions[0]) { (span) throws(StoreError) in pages += span.written.flatMap { Array($0) } }
            // Page 1 ends earlier and is padded; page 2 is behind the end and no change of its own.
            #expect(pages == [1])
        }
    }
}
