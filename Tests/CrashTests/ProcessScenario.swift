// Several processes on one store, and the book that is kept of what they were told.
//
// Invariants:
// - The book is written before a call is made (it may happen) and after it has returned (it has happened).
// - Names are used once, so that a name's content never changes.

import CheckpointStore
import FaultHarness
import Media
import StoreTesting
import Units

/// What processes have asked for and been told.
final class History: Sendable {
    enum Fate { case saving, saved, refused, deleting, deleted }
    struct Book {
        var contents: [String: ModelCheckpoint] = [:]
        var fates: [String: Fate] = [:]
        var namesOfGeneration: [Generation: Set<String>] = [:]

        func names(_ fates: Fate...) -> Set<String> { Set(self.fates.filter { fates.contains($0.value) }.keys) }
    }
    private let book: Guarded<Book>

    init(_ model: StoreModel) {
        book = Guarded(Book(contents: model.checkpoints, fates: model.checkpoints.mapValues { _ in .saved }))
    }

    var now: Book { book.with { $0 } }

    func will(save name: String, _ content: ModelCheckpoint) {
        book.with { book in
            book.contents[name] = content
            book.fates[name] = .saving
        }
    }
    func set(_ fate: Fate, _ name: String) {
        book.with { book in
            // A checkpoint is visible, and can be deleted, before its writer has returned.
            let isLate = fate == .saved && book.fates[name] != .saving
            if !isLate { book.fates[name] = fate }
        }
    }

    /// Holds what a view of the store shows against the book as it was before the view was taken.
    func check(_ names: Set<String>, generation: Generation, before: Book) throws {
        try book.with { book in
            let missing = before.names(.saved).subtracting(names).filter { book.fates[$0] == .saved }
            if !missing.isEmpty { throw Mismatch("\(missing.sorted()) were acknowledged and are not in generation \(generation)") }
            let ghosts = names.intersection(before.names(.deleted, .refused))
            if !ghosts.isEmpty { throw Mismatch("\(ghosts.sorted()) were deleted or refused and are in generation \(generation)") }
            if let known = book.namesOfGeneration[generation], known != names {
                throw Mismatch("generation \(generation) is \(known.sorted()) and \(names.sorted())")
            }
            book.namesOfGeneration[generation] = names
        }
    }
}

/// Writers, deleters and readers, each with handles of its own, under one seed.
struct ProcessScenario: Sendable {
    var seed: UInt64
    var defects: EngineDefects = []
    var deviceDefect: SeededDefect?
    private let history: History
    private let device: SimulatedDevice

    init(seed: UInt64, defects: EngineDefects = [], deviceDefect: SeededDefect? = nil) {
        self.seed = seed
        self.defects = defects
        self.deviceDefect = deviceDefect
        device = ProcessScenario.base.device.fork()
        history = History(ProcessScenario.base.model)
    }

    /// So small that freed segments are used again all the time.
    private static let base = BaseStore.make(seed: 3, rounds: 0, size: .kibibytes(256 + 14 * 128))

    /// Runs it, then checks what is left; throws when anything is not as the processes were told.
    func run() throws {
        var random = SeededGenerator(seed: seed)
        var options = Simulator.Options()
        options.yieldsAtReads = random.chance(1, in: 3)
        options.switchPercent = [5, 20, 50][random.below(3)]
        options.killsPerThousandSteps = random.chance(1, in: 2) ? 4 : 0
        let cutsPower = random.chance(1, in: 3)
        if cutsPower { options.faults = [.powerCut(step: 40 + random.below(400))] }
        deviceDefect?.install(on: device)
        let simulator = Simulator(seed: seed, options: options)
        for number in 0..<2 {
            simulator.spawn("writer-\(number)", restarts: 2) { try write($0) }
        }
        simulator.spawn("deleter", restarts: 2) { try delete($0) }
        simulator.spawn("compactor", restarts: 2) { try compact($0) }
        for number in 0..<2 { simulator.spawn("reader-\(number)", restarts: 1) { try read($0) } }
        let report = simulator.run()
        try report.requireSuccess()
        device.faults.clear()
        if cutsPower {
            for (mode, count) in [(CrashMode.none, 1), (.all, 1), (.randomSubset, 2), (.tornSectors, 2)] {
                for ordinal in 0..<count { try checkTheEnd(on: device.powerCut(mode, ordinal: ordinal, seed: seed).device) }
            }
        }
        try checkTheEnd(on: device)
    }

    private func checkTheEnd(on device: SimulatedDevice) throws {
        let store = try CheckpointStore.open(FaultMedium(device), environment: testEnvironment(seed: seed))
        defer { store.close() }
        let names = Set(try store.snapshot().names())
        let book = history.now
        let missing = book.names(.saved).subtracting(names)
        let ghosts = names.intersection(book.names(.deleted, .refused))
        guard missing.isEmpty, ghosts.isEmpty else {
            throw Mismatch("at the end \(missing.sorted()) are missing and \(ghosts.sorted()) should not be there")
        }
        try store.requireEqual(book.contents.filter { names.contains($0.key) })
        try store.delete(Array(names.sorted().prefix(1)))
        try store.requireEqual(book.contents.filter { names.sorted().dropFirst().contains($0.key) })
    }

    /// One for each process, so that no two checkpoints draw the same id.
    private func environment(_ process: SimulatedProcess) -> StoreEnvironment {
        var environment = testEnvironment(seed: seed << 16 + UInt64(process.number))
        environment.defects = defects
        return environment
    }

    // MARK: what processes do

    private func write(_ process: SimulatedProcess) throws {
        var random = SeededGenerator(seed: seed, UInt64(process.number), 1)
        let environment = environment(process)
        var store = try CheckpointStore.open(process.open(device), environment: environment)
        for round in 0..<5 {
            if random.chance(1, in: 4) {
                store.close()
                store = try CheckpointStore.open(process.open(device), environment: environment)
            }
            let names = (0..<(random.chance(1, in: 4) ? 2 : 1)).map { "\(process.name)-\(process.incarnation)-\(round)-\($0)" }
            do {
                try save(names, on: store, &random)
                for name in names { history.set(.saved, name) }
            } catch let error as StoreError where [.noSpace, .notFound, .wrongBase, .busy].contains(error.code) {
                for name in names { history.set(.refused, name) }
            }
            // Somebody who was killed does not get past this.
            try process.yield()
        }
        store.close()
    }

    private func save(_ names: [String], on store: CheckpointStore, _ random: inout SeededGenerator) throws {
        var writers: [CheckpointWriter] = []
        for name in names {
            let parents = try store.snapshot().names()
            let parent = parents.isEmpty || random.chance(1, in: 3) ? nil : parents[random.below(parents.count)]
            // The parent may be one whose content is not in the book only if it should not be there at all.
            var ram = try parent.map { parent -> [UInt8] in
                guard let content = history.now.contents[parent] else { throw Mismatch("nobody has saved \(parent)") }
                return content["ram"] ?? []
            } ?? []
            if ram.isEmpty { ram = [UInt8](repeating: 0, count: 10 * pageSize) }
            let writer = try store.begin(name, parent: parent, options: WriterOptions(parallelism: 1))
            let region = try writer.addRegion("ram", kind: .memory, byteLength: ByteCount(ram.count))
            for _ in 0..<(parent == nil ? 10 : 3) {
                let page = random.below(ram.count / pageSize)
                let bytes = makePage(&random)
                ram.replaceSubrange(page * pageSize..<(page + 1) * pageSize, with: bytes)
                try region.put(page: PageIndex(page), bytes)
            }
            history.will(save: name, ["ram": ram])
            writers.append(writer)
        }
        try store.commit(writers)
    }

    private func delete(_ process: SimulatedProcess) throws {
        var random = SeededGenerator(seed: seed, UInt64(process.number), 2)
        let store = try CheckpointStore.open(process.open(device), environment: environment(process))
        defer { store.close() }
        for _ in 0..<8 {
            let names = try store.snapshot().names()
            guard names.count > 1 else {
                try process.sleep(for: .milliseconds(1))
                continue
            }
            let name = names[random.below(names.count)]
            history.set(.deleting, name)
            do {
                if let obstacle = try store.delete([name]).obstacle { throw obstacle }
                history.set(.deleted, name)
            } catch let error as StoreError where error.code == .busy {}
            try process.yield()
        }
    }

    private func compact(_ process: SimulatedProcess) throws {
        let store = try CheckpointStore.open(process.open(device), environment: environment(process))
        defer { store.close() }
        for _ in 0..<6 {
            try store.compactAll()
            try process.sleep(for: .microseconds(300))
        }
    }

    private func read(_ process: SimulatedProcess) throws {
        var random = SeededGenerator(seed: seed, UInt64(process.number), 3)
        let store = try CheckpointStore.open(process.open(device), environment: environment(process))
        defer { store.close() }
        var last = Generation(UInt64(0))
        for _ in 0..<6 {
            let before = history.now
            let snapshot = try store.snapshot()
            let names = Set(try snapshot.names())
            try history.check(names, generation: snapshot.generation, before: before)
            guard snapshot.generation >= last else { throw Mismatch("generation \(snapshot.generation) after \(last)") }
            last = snapshot.generation
            for _ in 0..<3 {
                try requireContents(of: snapshot, names)
                try process.sleep(for: .microseconds(Int64(10 * random.below(200))))
            }
        }
    }

    private func requireContents(of snapshot: Snapshot, _ names: Set<String>) throws {
        let contents = history.now.contents
        for name in names.sorted() {
            let reader = try snapshot.reader(named: name)
            guard reader.info.generation <= snapshot.generation else { throw Mismatch("\(name) is of a later generation") }
            for (region, bytes) in contents[name] ?? [:] where try reader.region(region).bytes() != bytes {
                throw Mismatch("\(name)/\(region) has wrong bytes in generation \(snapshot.generation)")
            }
        }
    }
}
