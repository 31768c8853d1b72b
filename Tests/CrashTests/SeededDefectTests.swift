// Bugs that the programme must notice. One that it overlooks is a hole in the programme.

import CheckpointStore
import FaultHarness
import Media
import StoreTesting
import Testing
import Units

/// A bug and the part of the programme that should notice it by throwing.
private struct Trap: Sendable {
    var name: String
    var notice: @Sendable () throws -> Void

    init(_ name: String, _ notice: @escaping @Sendable () throws -> Void) {
        self.name = name
        self.notice = notice
    }
}

private let slotsA = MediumOffset.zero..<MediumOffset(UInt64(65536))
private let slotsB = MediumOffset(UInt64(128 << 10))..<MediumOffset(UInt64(192 << 10))
private let blocks = MediumOffset(UInt64(256 << 10))..<MediumOffset(UInt64(1 << 30))
private let commitLock: Range<UInt64> = 0..<1
private let registrations: Range<UInt64> = 1 << 40..<1 << 41
private let claims: Range<UInt64> = 1 << 41..<1 << 42

/// Cuts power in some workloads.
private func cutPower(
    _ medium: SeededDefect? = nil, _ engine: EngineDefects = [],
    in workloads: [[StoreOperation]] = sequences(of: 2).filter { $0[0] == .delete || $0[0] == .saveFull }
) throws {
    var plan = CrashExplorer.Plan()
    plan.randomImageCount = 60
    var programme = CrashProgramme(name: "defect", plan: plan)
    programme.defect = medium
    programme.environment = { seed in
        var environment = testEnvironment(seed: seed)
        environment.defects = engine
        return environment
    }
    if engine.contains(.leavesRemains) { programme.recoveryPeriod = 1 }
    _ = try programme.explore(workloads)
}

private func simulate(_ medium: SeededDefect? = nil, _ engine: EngineDefects = []) throws {
    try Simulator.explore("defect", seeds: 1_000..<1_600) { seed in
        try ProcessScenario(seed: seed, defects: engine, deviceDefect: medium).run()
    }
}

private func failCalls(_ engine: EngineDefects, _ kind: OperationKind) throws {
    for operation in [StoreOperation.saveFull, .delete] {
        _ = try FaultProgramme(defects: engine).run([operation], kinds: [kind])
    }
}

/// Flips bits in the payloads of runs alone: an engine that does not look could not survive others.
private func flipPayloads(_ engine: EngineDefects) throws {
    let base = BaseStore.young
    let runs = try runRanges(of: base.device)
    var random = SeededGenerator(seed: 2)
    for number in 0..<100 {
        let range = runs[random.below(runs.count)]
        let device = base.device.fork()
        device.flipBit(random.below(8), at: MediumOffset(range.upperBound - 1 - random.next() % UInt64(range.count - 100)))
        try DamageCheck(model: base.model, defects: engine).run(on: device, isHit: true, changes: false, seed: UInt64(number))
    }
}

/// Damages runs of which only some pages live, and compacts: nobody may be given wrong bytes afterwards.
private func moveDamage(_ engine: EngineDefects) throws {
    let device = SimulatedDevice(size: .mebibytes(4))
    var random = SeededGenerator(seed: 6)
    let store = try CheckpointStore.create(
        on: FaultMedium(device), options: CreateOptions(segmentSize: .kibibytes(128)), environment: testEnvironment(seed: 5))
    var expected = (0..<300).flatMap { _ in makePage(&random) }
    // Runs are to lose pages and stay where they are.
    var options = WriterOptions(parallelism: 1)
    options.repacking = NoRepacking()
    for name in ["old", "new"] {
        let writer = try store.begin(name, parent: name == "new" ? "old" : nil, options: options)
        let ram = try writer.addRegion("ram", kind: .memory, byteLength: ByteCount(expected.count))
        if name == "old" { try ram.write(expected) }
        // So many that the leaf is written whole, and does not keep alive what was before.
        for page in stride(from: 0, to: 300, by: 3) where name == "new" {
            let bytes = makePage(&random)
            expected.replaceSubrange(page * pageSize..<(page + 1) * pageSize, with: bytes)
            try ram.put(page: PageIndex(page), bytes)
        }
        try writer.commit()
    }
    try store.delete(["old"])
    store.close()
    let ranges = try runRanges(of: device)
    for _ in 0..<60 {
        let image = device.fork()
        let range = ranges[random.below(ranges.count)]
        image.flipBit(random.below(8), at: MediumOffset(range.upperBound - 1 - random.next() % UInt64(range.count - 100)))
        var environment = testEnvironment(seed: random.next())
        environment.defects = engine
        let store = try CheckpointStore.open(FaultMedium(image), environment: environment)
        defer { store.close() }
        _ = try store.compact(CompactionOptions(targetAmplification: 1, minimumDeadShare: 0.01, parallelism: 1))
        // Page by page: one that is damaged must not hide another that is wrong.
        let region = try store.snapshot().reader(named: "new").region("ram")
        var found = [UInt8](repeating: 0, count: pageSize)
        for page in 0..<300 {
            do {
                try unsafe found.withUnsafeMutableBytes { try unsafe region.read(page: PageIndex(page), into: $0) }
                guard found[...] == expected[page * pageSize..<(page + 1) * pageSize] else {
                    throw Mismatch("page \(page) reads back wrong after damage was moved")
                }
            } catch let error as StoreError where error.code == .corrupt {}
        }
    }
}

/// Deletes a checkpoint while a child of it is being written.
private func deleteTheParent(_ engine: EngineDefects) throws {
    try race(engine, expected: .wrongBase) { store in try store.delete(["c3"]) }
}

/// Takes a name while a checkpoint of that name is being written.
private func takeTheName(_ engine: EngineDefects) throws {
    try race(engine, expected: .exists) { store in
        let writer = try store.begin("late", options: WriterOptions(parallelism: 1))
        try writer.addRegion("ram", kind: .memory, byteLength: .kibibytes(8)).write([UInt8](repeating: 7, count: 8192))
        try writer.commit()
    }
}

/// Writes "late" over "c3", lets `other` happen before its commit, which must be refused with `code`.
private func race(
    _ engine: EngineDefects, expected code: StoreError.Code, _ other: (CheckpointStore) throws -> Void
) throws {
    let device = BaseStore.young.device.fork()
    let check = DamageCheck(model: BaseStore.young.model, defects: engine)
    let (one, two) = (try check.open(device, seed: 1), try check.open(device, seed: 2))
    defer {
        one.close()
        two.close()
    }
    let writer = try one.begin("late", parent: "c3", options: WriterOptions(parallelism: 1))
    try writer.addRegion("ram", kind: .memory, byteLength: .kibibytes(48)).put(
        page: PageIndex(1), [UInt8](repeating: 5, count: pageSize))
    try other(two)
    guard try fails(with: code, { try writer.commit() }) else { throw Mismatch("the commit was not refused with \(code)") }
}

/// Deletes a checkpoint; when that is about to be committed, a child of it is saved.
private func saveAChildMeanwhile(_ engine: EngineDefects) throws {
    let device = BaseStore.young.device.fork()
    var environment = testEnvironment(seed: 3)
    environment.defects = engine
    let medium = FaultMedium(device)
    let deleter = try CheckpointStore.open(medium, environment: environment)
    let saver = try CheckpointStore.open(FaultMedium(device), environment: testEnvironment(seed: 4))
    defer { for store in [deleter, saver] { store.close() } }
    let saved = Guarded((isDone: false, failure: nil as (any Error)?))
    medium.faults.add(
        FaultRule(.lock, .nth(1), .fail(.ioFailed)) { call in
            saved.with { saved in
                guard call.lockRange?.start == commitLock.lowerBound, !saved.isDone else { return }
                saved.isDone = true
                do {
                    let writer = try saver.begin("late", parent: "c3", options: WriterOptions(parallelism: 1))
                    try writer.inheritRegion("ram")
                    try writer.commit()
                } catch { saved.failure = error }
            }
            return false
        })
    if let obstacle = try deleter.delete(["c3"]).obstacle { throw obstacle }
    let (isDone, failure) = saved.with { $0 }
    if let failure { throw failure }
    guard isDone else { throw Mismatch("no child was saved") }
    var model = BaseStore.young.model.checkpoints
    model["late"] = model.removeValue(forKey: "c3")?.filter { $0.key == "ram" }
    try saver.requireEqual(model)
}

/// Goes round a small store many times while another handle looks in now and then: space must come back.
private func requireSpaceComesBack(_ medium: SeededDefect) throws {
    let device = SimulatedDevice(size: .kibibytes(256 + 14 * 128))
    let writer = try CheckpointStore.create(
        on: FaultMedium(device), options: CreateOptions(segmentSize: .kibibytes(128)), environment: testEnvironment(seed: 1))
    medium.install(on: device)
    let others = try (2..<5).map { try CheckpointStore.open(FaultMedium(device), environment: testEnvironment(seed: $0)) }
    defer { for store in others + [writer] { store.close() } }
    var model = StoreModel(seed: 9)
    for round in 0..<200 {
        let saver = round % 2 == 0 ? writer : others[round % 3]
        let save = Step(.saveFull, on: model)
        try save.perform(on: saver)
        model = save.after
        try others[round % 3].requireEqual(model.checkpoints, deep: false)
        guard model.order.count > 2 else { continue }
        let delete = Step(.delete, on: model)
        try delete.perform(on: round % 3 == 0 ? others[0] : writer)
        model = delete.after
    }
}

private let traps: [Trap] = [
    // What a medium is made to do, as if the engine had forgotten it.
    Trap("blocks are not flushed before slots are written") { try cutPower(.skipsFlushes(afterWritesIn: blocks)) },
    Trap("slots are not flushed") { try cutPower(.skipsFlushes(afterWritesIn: slotsB)) },
    Trap("every second flush is left out") { try cutPower(.skipsFlushes(.every(period: 2, first: 2))) },
    Trap("slots of ring A are issued behind their flush, and those of ring B are forgotten") {
        var defect = SeededDefect.swapsAcrossFlush(writesIn: slotsA)
        defect.rules += SeededDefect.forgets(writesIn: slotsB).rules
        try cutPower(defect)
    },
    Trap("blocks are issued behind their flush") { try cutPower(.swapsAcrossFlush(writesIn: blocks)) },
    Trap("a block is forgotten") { try cutPower(.forgets(writesIn: blocks, .nth(1))) },
    Trap("the commit lock is not taken") { try simulate(.forgetsLocks(in: commitLock)) },
    Trap("moved blocks are not flushed before slots lead to them") {
        try cutPower(.skipsFlushes(afterWritesIn: blocks), in: [[.delete, .compact], [.saveIncremental, .delete, .compact]])
    },
    Trap("what is received is not flushed before its slots") {
        try cutPower(.skipsFlushes(afterWritesIn: blocks), in: [[.receiveInSteps], [.receiveResumed]])
    },
    Trap("readers don't register") { try simulate(.forgetsLocks(in: registrations)) },
    Trap("segments are not claimed") { try simulate(.forgetsLocks(in: claims)) },
    Trap("registrations of others are overlooked") { try simulate(.overlooksHolders(in: registrations)) },
    Trap("readers stay registered for ever") { try requireSpaceComesBack(.forgetsUnlocks(in: registrations)) },
    Trap("claims are never given up") { try requireSpaceComesBack(.forgetsUnlocks(in: claims)) },
    // What the engine does on request.
    Trap("skips checksums") { try flipPayloads(.skipsChecksums) },
    Trap("accepts any sound block") { try damageBlocks(.acceptsAnySoundBlock, count: 3_000) },
    Trap("reads twice") { try readThroughFaults(.readsTwice) },
    Trap("skips the flush of nodes") { try cutPower(nil, .skipsNodeFlush) },
    Trap("writes one twin") { try requireTwinsAreWhole(.writesOneTwin) },
    Trap("ignores failed flushes") { try failCalls(.ignoresFlushFailures, .flush) },
    Trap("tries a failed flush again") { try failCalls(.retriesFlushes, .flush) },
    Trap("uses freed segments at once") { try simulate(nil, .reusesFreedSegmentsAtOnce) },
    Trap("ignores readers") { try simulate(nil, .ignoresReaders) },
    Trap("skips the check of the parent") { try deleteTheParent(.skipsParentCheck) },
    Trap("skips the check of the name") { try takeTheName(.skipsNameCheck) },
    Trap("commits on a stale base") { try simulate(nil, .commitsOnStaleBase) },
    Trap("trusts lengths from before the claim") { try simulate(nil, .trustsLengthsFromBeforeTheClaim) },
    Trap("forgets the bases of patch leaves") { try simulate(nil, .forgetsPatchBases) },
    Trap("overlooks lost slots") { try requireLossIsNoticed(.overlooksLostSlots) },
    Trap("hashes the source, stores a copy") { try saveChangingMemory(.hashesTheSource, rounds: 10_000) },
    Trap("trusts poisoned stores") { try requirePoisonIsVerified(.trustsPoisonedStores) },
    Trap("leaves the remains of torn slots") { try cutPower(nil, .leavesRemains) },
    Trap("overlooks new neighbours") { try saveAChildMeanwhile(.overlooksNewNeighbours) },
    Trap("forgets siblings") { try simulate(nil, .forgetsSiblings) },
    Trap("forwards without a look at the birth") { try simulate(nil, .forwardsWithoutBirth) },
    Trap("moves pages without minding their ranks") { try simulate(nil, .movesWithoutRanks) },
    Trap("leaves chains") { try simulate(nil, .leavesChains) },
    Trap("compacts what others append to") { try simulate(nil, .compactsWithoutClaims) },
    Trap("moves what it has not verified") { try moveDamage(.movesUnverified) },
]

@Suite(.serialized) struct SeededDefectTests {
    @Test func `every seeded defect is noticed`() async throws {
        let overlooked = try await onPlainThread {
            traps.filter { trap in
                do { try trap.notice() } catch {
                    print("noticed: \(trap.name): \("\(error)".prefix(160).replacing("\n", with: " "))")
                    return false
                }
                return true
            }.map(\.name)
        }
        #expect(traps.count >= 30)
        #expect(overlooked == [])
    }

    @Test func `without a defect nothing is noticed`() async throws {
        try await onPlainThread {
            try cutPower()
            try failCalls([], .flush)
            try flipPayloads([])
            try deleteTheParent([])
            try takeTheName([])
            try saveAChildMeanwhile([])
            try requireSpaceComesBack(SeededDefect("none"))
        }
    }
}
