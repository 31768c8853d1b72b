// Re-packing: spans that were changed in small pieces, over and over, stay cheap to read, and nothing else changes.

@testable import CheckpointStore
import FaultHarness
import Media
import StoreFormat
import StoreTesting
import Testing
import Units

/// Moves whatever can be moved, at every save.
private struct EagerRepacking: RepackingRules {
    func runsToMove(_ runs: [RunUse], newPages: Int, writesFullLeaf: Bool) -> [Int] { Array(runs.indices) }
}

/// Moves what chance says, by the content of the question, so that a run is repeatable.
private struct RandomRepacking: RepackingRules {
    let seed: UInt64
    func runsToMove(_ runs: [RunUse], newPages: Int, writesFullLeaf: Bool) -> [Int] {
        var random = SeededGenerator(seed: seed, UInt64(newPages), UInt64(runs.count))
        return runs.indices.filter { _ in random.next() % 3 == 0 }
    }
}

@Suite struct RepackingTests {
    // MARK: what stays as it was

    @Test func `random histories read back as the model says whatever is re-packed, and share from parent to child only`() async throws {
        try await onPlainThread {
            for seed in UInt64(1)...6 {
                for rules in [StandardRepacking(), EagerRepacking(), RandomRepacking(seed: seed)] as [any RepackingRules] {
                    do { try Self.history(seed: seed, rules, parallelism: seed % 2 == 0 ? 2 : 1) } catch {
                        throw Mismatch("seed \(seed), \(type(of: rules)): \(error)")
                    }
                }
            }
        }
    }

    private static func history(seed: UInt64, _ rules: any RepackingRules, parallelism: Int) throws {
        var random = SeededGenerator(seed: 5000 + seed)
        func below(_ limit: Int) -> Int { Int(random.next() % UInt64(limit)) }
        let store = try CheckpointStore.create(
            on: try RAMMedium.anonymous(size: .mebibytes(64)), options: CreateOptions(segmentSize: .kibibytes(512)),
            environment: testEnvironment(seed: seed))
        defer { store.close() }
        var options = WriterOptions(parallelism: parallelism)
        options.repacking = rules
        let pages = 1 + below(1300)
        var model: [String: ModelCheckpoint] = [:]
        for number in 0..<18 {
            let parent = model.isEmpty ? nil : model.keys.sorted()[below(model.count)]
            var bytes = parent.flatMap { model[$0]?["ram"] } ?? [UInt8](repeating: 0, count: pages * pageSize)
            let writer = try store.begin("c\(number)", parent: parent, options: options)
            let region = try writer.addRegion("ram", kind: .memory, byteLength: ByteCount(bytes.count))
            for _ in 0..<(parent == nil ? pages : 1 + below(90)) {
                let page = below(pages)
                let content = makePage(&random)
                bytes.replaceSubrange(page * pageSize..<(page + 1) * pageSize, with: content)
                if number % 3 != 1 { try region.put(page: PageIndex(page), content) }
            }
            // All of it, now and then over pages that were put before.
            if number % 3 != 0 { try region.write(bytes, isStable: number % 2 == 0) }
            try writer.commit()
            model["c\(number)"] = ["ram": bytes]
        }
        try store.requireEqual(model, parallelism: parallelism)
        try requireSharedDownward(store)
        // What remains is whole when others go.
        let doomed = model.keys.sorted().filter { _ in below(2) == 0 }
        if let obstacle = try store.delete(doomed).obstacle { throw obstacle }
        for name in doomed { model[name] = nil }
        try store.requireEqual(model, parallelism: parallelism)
    }

    /// Throws unless everything that a checkpoint has from others is its parent's too.
    private static func requireSharedDownward(_ store: CheckpointStore) throws {
        let snapshot = try store.snapshot()
        var places: [CheckpointID: Set<String>] = [:]
        for info in try snapshot.checkpoints() {
            var own = Set<String>()
            for span in try spans(of: info.name, in: snapshot) {
                for page in 0..<pagesPerSpan where !span.map.isZero(page) {
                    let run = span.map.runs[Int(span.map.runOf[page])]
                    let place = "\(span.number) \(page) \(run) \(span.map.offsetOf[page])"
                    own.insert(place)
                    let isOwn = run.birth == BlockBirth(info.id)
                    guard isOwn || info.parent.flatMap({ places[$0]?.contains(place) }) == true else {
                        throw Mismatch("\(info.name) has a page that is neither its own nor its parent's: \(place)")
                    }
                }
            }
            places[info.id] = own
        }
    }

    private struct Span {
        var number: UInt64
        var map: SpanMap
    }

    private static func spans(of name: String, in snapshot: Snapshot) throws -> [Span] {
        let region = try snapshot.reader(named: name).region("ram")
        let count = (region.info.pageCount.int + pagesPerSpan - 1) / pagesPerSpan
        return try (0..<UInt64(count)).compactMap { number in
            try region.spanMap(SpanIndex(number), keep: false).map { Span(number: number, map: $0) }
        }
    }

    // MARK: what becomes better

    /// How much reading a span decompresses, by what is alive in it, after many small changes at random.
    private static func age(_ rules: any RepackingRules, checkpoints: Int, pagesAtATime: Int) throws -> (worst: Double, runs: Int) {
        let store = try CheckpointStore.create(on: try RAMMedium.anonymous(size: .mebibytes(256)), environment: testEnvironment(seed: 7))
        defer { store.close() }
        var random = SeededGenerator(seed: 77)
        var options = WriterOptions(parallelism: 1)
        options.repacking = rules
        var (worst, runs) = (0.0, 0)
        for number in 0..<checkpoints {
            let writer = try store.begin("c\(number)", parent: number == 0 ? nil : "c\(number - 1)", options: options)
            let region = try writer.addRegion("ram", kind: .memory, byteLength: ByteCount(pagesPerSpan * pageSize))
            let pages = number == 0 ? Array(0..<pagesPerSpan) : (0..<pagesAtATime).map { _ in Int(random.next() % UInt64(pagesPerSpan)) }
            for page in pages { try region.put(page: PageIndex(page), [UInt8](repeating: UInt8(1 + random.next() % 255), count: pageSize)) }
            try writer.commit()
            guard number % 8 == 0 || number == checkpoints - 1 else { continue }
            for span in try spans(of: "c\(number)", in: try store.snapshot()) {
                var last: [UInt16: UInt8] = [:]
                for page in 0..<pagesPerSpan where !span.map.isZero(page) {
                    last[span.map.runOf[page]] = max(last[span.map.runOf[page]] ?? 0, span.map.offsetOf[page])
                }
                worst = max(worst, Double(last.values.reduce(0) { $0 + Int($1) + 1 }) / Double(span.map.storedPages))
                runs = max(runs, last.count)
            }
        }
        let report = try store.verify(options: VerifyOptions(checksPages: true, parallelism: 1))
        #expect(report.isSound, "\(report.damages.first.map(\.description) ?? "")")
        print("re-packing by \(type(of: rules)), \(pagesAtATime) pages at a time: up to \(worst) times what is alive is read, \(runs) runs")
        return (worst, runs)
    }

    /// What a few changes at a time may bring it to: half as much again, and what a patch leaf adds.
    private static let (mostDecompressed, mostRuns) = (1.75, 320)

    @Test func `a span that is changed a few pages at a time stays cheap to read, and does not name ever more runs`() async throws {
        try await onPlainThread {
            for (pagesAtATime, checkpoints) in [(1, 900), (5, 220), (40, 60)] {
                let (worst, runs) = try Self.age(StandardRepacking(), checkpoints: checkpoints, pagesAtATime: pagesAtATime)
                #expect(worst <= Self.mostDecompressed && runs <= Self.mostRuns, "\(pagesAtATime) pages at a time")
            }
        }
    }

    @Test func `without re-packing it becomes dear`() async throws {
        try await onPlainThread {
            let (worst, _) = try Self.age(NoRepacking(), checkpoints: 220, pagesAtATime: 5)
            #expect(worst > Self.mostDecompressed)
        }
    }

    // MARK: the rules

    @Test func `what was just saved whole is left as it is`() {
        let full = (0..<32).map { _ in RunUse(livePages: 16, readPages: 16, canMove: true) }
        #expect(StandardRepacking().runsToMove(full, newPages: 0, writesFullLeaf: true).isEmpty)
        #expect(StandardRepacking().runsToMove([], newPages: 64, writesFullLeaf: true).isEmpty)
    }

    @Test func `the emptiest runs are moved, no more than needed, and none that this checkpoint has written`() {
        var runs = (0..<20).map { _ in RunUse(livePages: 16, readPages: 16, canMove: true) }
        runs += (0..<20).map { _ in RunUse(livePages: 1, readPages: 16, canMove: true) }
        runs[25].canMove = false
        let moved = StandardRepacking().runsToMove(runs, newPages: 5, writesFullLeaf: true)
        #expect(!moved.isEmpty && moved.count < 20)
        #expect(moved.allSatisfy { $0 >= 20 && $0 != 25 })
    }

    @Test func `where only a patch leaf is written, more is put up with`() {
        var runs = (0..<20).map { _ in RunUse(livePages: 8, readPages: 16, canMove: true) }
        runs += (0..<6).map { _ in RunUse(livePages: 16, readPages: 16, canMove: true) }
        #expect(!StandardRepacking().runsToMove(runs, newPages: 1, writesFullLeaf: true).isEmpty)
        #expect(StandardRepacking().runsToMove(runs, newPages: 1, writesFullLeaf: false).isEmpty)
    }

    // MARK: damage

    @Test func `a damaged run is not copied, and does not keep what is sound from being saved`() async throws {
        try await onPlainThread {
            let device = SimulatedDevice(size: .mebibytes(24))
            let medium = FaultMedium(device)
            let store = try CheckpointStore.create(
                on: medium, options: CreateOptions(segmentSize: .kibibytes(512)), environment: testEnvironment(seed: 3))
            defer { store.close() }
            let content = (0..<pagesPerSpan).map { [UInt8](repeating: UInt8(1 + $0 % 255), count: pageSize) }
            let writer = try store.begin("first", options: WriterOptions(parallelism: 1))
            try writer.addRegion("ram", kind: .memory, byteLength: ByteCount(pagesPerSpan * pageSize)).write(content.flatMap { $0 })
            try writer.commit()
            let map = try #require(try Self.spans(of: "first", in: try store.snapshot()).first).map
            // One bit of it.
            let damaged = map.runs[3]
            var bytes = [UInt8](repeating: 0, count: 64)
            let place = store.geometry.position(of: damaged)
            try unsafe bytes.withUnsafeMutableBytes { try unsafe medium.read(at: place, into: $0) }
            bytes[60] ^= 1
            try unsafe bytes.withUnsafeBytes { try unsafe medium.write(at: place, $0) }

            var options = WriterOptions(parallelism: 1)
            options.repacking = EagerRepacking()
            let second = try store.begin("second", parent: "first", options: options)
            try second.addRegion("ram", kind: .memory, byteLength: ByteCount(pagesPerSpan * pageSize))
                .put(page: PageIndex(0), [UInt8](repeating: 9, count: pageSize))
            try second.commit()
            let after = try #require(try Self.spans(of: "second", in: try store.snapshot()).first).map
            for page in 0..<pagesPerSpan {
                let wasDamaged = Int(map.runOf[page]) == 3
                #expect((after.runs[Int(after.runOf[page])] == damaged) == wasDamaged, "page \(page)")
            }
            let report = try store.verify(checkpoint: "second", options: VerifyOptions())
            #expect(report.damages.count == 1, "\(report.damages)")
        }
    }
}
