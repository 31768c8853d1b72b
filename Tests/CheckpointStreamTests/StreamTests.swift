// Checkpoints sent from one store and received by another.

import CheckpointStore
import CheckpointStream
import FaultHarness
import StoreFormat
import StoreTesting
import Testing
import Units

@Suite struct StreamTests {
    @Test func `a history is received as it was sent, whatever each checkpoint is a change of`() async throws {
        let seed = testSeed()
        try await onPlainThread {
            for number in UInt64(0)..<4 {
                let source = try Scene(size: .mebibytes(256))
                var history = History(seed: seed &+ number)
                for _ in 0..<8 { try history.step(source) }
                var random = SeededGenerator(seed: seed, number)
                let target = try Scene(size: .mebibytes(256))
                var has: [String] = []
                do {
                    for name in source.model.keys.sorted().shuffled(using: &random) {
                        let base = has.isEmpty || random.chance(1, in: 4) ? nil : has[random.below(has.count)]
                        let workers = 1 + random.below(2)
                        let bytes = try source.stream([(name, base)], parallelism: workers)
                        let report = try target.receive(bytes, ReceiveOptions(stepBytes: .kibibytes(200), parallelism: workers))
                        guard report.streamBytes.int == bytes.count, report.received.map(\.name) == [name], report.obstacle == nil else {
                            throw Mismatch("\(report)")
                        }
                        has.append(name)
                        try target.requireSame(name, as: source)
                    }
                    try target.store.requireEqual(source.model)
                } catch { throw Mismatch("seed \(seed), history \(number): \(error)") }
            }
        }
    }

    @Test func `everything that a store has goes in one stream`() async throws {
        let seed = testSeed()
        try await onPlainThread {
            let source = try Scene(size: .mebibytes(256))
            var history = History(seed: seed)
            for _ in 0..<8 { try history.step(source) }
            // A parent that was deleted is no obstacle.
            let parents = Set(try source.store.snapshot().checkpoints().compactMap(\.parent))
            let doomed = try source.store.snapshot().checkpoints().first { parents.contains($0.id) }
            if let doomed {
                try source.store.delete([doomed.name])
                source.model[doomed.name] = nil
            }
            let items = try source.store.snapshot().sendItems { _ in false }
            let target = try Scene(size: .mebibytes(256))
            let bytes = try source.stream(items, parallelism: 2)
            let report = try target.receive(bytes, ReceiveOptions(parallelism: 2))
            #expect(report.received.count == source.model.count, "seed \(seed)")
            for name in source.model.keys { try target.requireSame(name, as: source) }
            try target.store.requireEqual(source.model)
            // Once more: nothing is lacking.
            #expect(try target.refusal(bytes)?.code == .duplicate)
            #expect(try target.receive(bytes, ReceiveOptions(skipsPresent: true, parallelism: 1)).skipped.count == source.model.count)
        }
    }

    @Test func `a line of checkpoints goes as changes of one another`() async throws {
        try await onPlainThread {
            let source = try Scene()
            var random = SeededGenerator(seed: 5)
            var ram = (0..<600).flatMap { _ in makePage(&random) }
            for (number, name) in ["a", "b", "c", "d"].enumerated() {
                ram.replaceSubrange(number * pageSize..<(number + 1) * pageSize, with: [UInt8](repeating: UInt8(number + 1), count: pageSize))
                try source.save(name, parent: number == 0 ? nil : ["a", "b", "c"][number - 1], ["ram": (.memory, ram)])
            }
            let snapshot = try source.store.snapshot()
            let line = try snapshot.sendItems(from: try source.info("a"), to: try source.info("d"))
            #expect(line.map(\.checkpoint.name) == ["b", "c", "d"] && line.map { $0.base?.name } == ["a", "b", "c"])
            let target = try Scene()
            try target.receive(try source.stream([("a", nil)]))
            try target.receive(try source.stream(line))
            for name in ["a", "b", "c", "d"] { try target.requireSame(name, as: source) }
            // Ten thousand bytes carry three changes of a page each: they share what did not change here too.
            #expect(try source.stream(line).count < 10_000)
            #expect(try target.info("d").newPages == PageCount(1))
            #expect(throws: StoreError.self) { try snapshot.sendItems(from: try source.info("d"), to: try source.info("a")) }
        }
    }

    /// Takeover and reversion: steps 1 to 13 of FIG. 15D, with a half-applied set that is dropped.
    @Test func `a pair of stores changes roles and changes back, equal at each step`() async throws {
        try await onPlainThread {
            let (a, b) = (try Scene(), try Scene())
            var random = SeededGenerator(seed: 7)
            var ram = (0..<1200).flatMap { _ in makePage(&random) }
            func take(_ name: String, over parent: String?, on scene: Scene) throws {
                for _ in 0..<20 {
                    let page = random.below(1200)
                    ram.replaceSubrange(page * pageSize..<(page + 1) * pageSize, with: makePage(&random))
                }
                try scene.save(name, parent: parent, ["ram": (.memory, ram)])
            }
            try take("1", over: nil, on: a)
            try b.receive(try a.stream([("1", nil)]))
            try take("2", over: "1", on: a)
            let second = try a.stream([("2", "1")])
            try b.receive(second)
            // A takes a third and fails while it sends it: B drops what has come, and goes on from the second.
            try take("lost", over: "2", on: a)
            let lost = try a.stream([("lost", "2")])
            #expect(try b.refusal(lost[..<(lost.count - 60)])?.code == .cutStream)
            #expect(try b.store.discardPartialCheckpoints().count == 1)
            try take("3", over: "2", on: b)
            // A recovers, rolls back to the second, and becomes the standby.
            try a.store.delete(["lost"])
            try a.receive(try b.stream([("3", "2")]))
            try take("4", over: "3", on: b)
            try a.receive(try b.stream([("4", "3")]))
            for name in ["1", "2", "3", "4"] { try a.requireSame(name, as: b) }
            // And back.
            try take("5", over: "4", on: a)
            #expect(try b.refusal(second)?.code == .duplicate)
            try b.receive(try a.stream([("5", "4")]))
            try b.requireSame("5", as: a)
            // A pair that has nothing in common says so.
            #expect(try Scene().refusal(try a.stream([("5", "4")]))?.code == .foreign)
        }
    }

    @Test func `the name can be another one`() async throws {
        try await onPlainThread {
            let source = try Scene()
            try source.save("a", labels: ["x": "y"], ["ram": (.memory, [UInt8](repeating: 7, count: pageSize))])
            let target = try Scene()
            try target.save("a", ["ram": (.memory, [UInt8](repeating: 8, count: pageSize))])
            let bytes = try source.stream([("a", nil)])
            #expect(try target.refusal(bytes)?.code == .exists)
            try target.receive(bytes, ReceiveOptions(name: "b", parallelism: 1))
            try target.requireSame("b", as: source, named: "a")
            #expect(try target.store.snapshot().names() == ["a", "b"])
        }
    }

    @Test func `whole runs go as they are stored`() async throws {
        try await onPlainThread {
            let source = try Scene()
            var random = SeededGenerator(seed: 6)
            let ram = (0..<512).flatMap { _ in makePage(&random) }
            try source.save("a", ["ram": (.memory, ram)])
            let file = try NamelessFile()
            let snapshot = try source.store.snapshot()
            let full = try snapshot.send([SendItem(try source.info("a"), base: nil)], to: file.descriptor)
            #expect(full.encodedRuns == 0 && full.storedRuns > 10)
        }
    }
}
