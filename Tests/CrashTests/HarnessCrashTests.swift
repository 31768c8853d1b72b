// The crash explorer finds what is wrong with a store, and nothing wrong with one that is right.

import FaultHarness
import Media
import Testing
import Units

/// Explores the toy with a defect; nil when no image fails.
private func failure(of defect: ToyStore.Defect?, seed: UInt64, _ change: (inout CrashExplorer.Plan) -> Void = { _ in })
    throws -> CrashFailure?
{
    var plan = CrashExplorer.Plan()
    plan.randomImageCount = 1_000
    change(&plan)
    let explorer = CrashExplorer("toy", seed: seed, plan: plan)
    do {
        try explorer.explore(
            SimulatedDevice(size: ToyStore.deviceSize), workload: ToyProgramme.commit(4, defect),
            check: ToyProgramme.check(defect))
        return nil
    } catch let failure as CrashFailure {
        return failure
    }
}

@Test func `a right store survives every crash, in every way`() async throws {
    let report = try await onPlainThread {
        var plan = CrashExplorer.Plan()
        plan.randomModes = CrashMode.allCases.filter(\.isRandom)
        plan.randomImageCount = 20_000
        plan.workerCount = 2
        return try CrashExplorer("toy", seed: 7, plan: plan).explore(
            SimulatedDevice(size: ToyStore.deviceSize), workload: ToyProgramme.commit(10), check: ToyProgramme.check())
    }
    // Ten commits of two writes and two flushes, two marks each, and the start.
    #expect(report.isReplay || report.pointCount == 61)
    #expect(report.isReplay || report.imageCount > 10_000)
}

@Test(arguments: [
    ToyStore.Defect.skipsDataFlush, .skipsSlotFlush, .writesSlotBeforeData, .hasNoSlotChecksum, .overwritesItsOnlySlot,
])
func `a store with a defect does not survive`(_ defect: ToyStore.Defect) throws {
    let found = try #require(try failure(of: defect, seed: 3))
    #expect(found.replayLine.hasPrefix("CKSTORE_CRASH_REPLAY='toy \(found.point) "))
}

@Test func `a slot without a checksum is caught by tearing alone`() throws {
    #expect(try failure(of: .hasNoSlotChecksum, seed: 3) { $0.randomModes = [] } == nil)
    for mode in [CrashMode.tornWords, .tornSectors, .persistentMemory] {
        let found = try failure(of: .hasNoSlotChecksum, seed: 3) { plan in
            plan.exhaustiveModes = []
            plan.randomModes = [mode]
        }
        #expect(found != nil, "\(mode)")
    }
}

@Test(arguments: [
    FaultRule(.flush, .every(period: 2, first: 1), .ignoreFlush),
    FaultRule(.flush, .every(period: 2, first: 2), .ignoreFlush),
    FaultRule(.flush, .nth(3), .ignoreFlush),
    FaultRule(.write, .nth(3), .delay(flushes: 1)),
    FaultRule(.write, .nth(5), .lose),
    FaultRule(.write, .nth(6), .loseAtPowerCut),
    FaultRule(.write, .nth(3), .misdirect(to: .zero)),
])
func `a medium that breaks its promises makes a right store fail`(_ rule: FaultRule) throws {
    let device = SimulatedDevice(size: ToyStore.deviceSize)
    device.faults.add(rule)
    #expect(throws: CrashFailure.self) {
        try CrashExplorer("toy", seed: 11).explore(
            device, workload: ToyProgramme.commit(4), check: ToyProgramme.check())
    }
    #expect(device.faults.firedCount > 0)
}

@Test(arguments: [
    SeededDefect.skipsFlushes(.every(period: 2, first: 1)),
    .skipsFlushes(afterWritesIn: .zero..<MediumOffset(UInt64(65536))),
    .skipsFlushes(afterWritesIn: MediumOffset(UInt64(65536))..<MediumOffset(UInt64(1 << 20))),
    .swapsAcrossFlush(writesIn: .zero..<MediumOffset(UInt64(65536))),
    .swapsAcrossFlush(writesIn: MediumOffset(UInt64(65536))..<MediumOffset(UInt64(1 << 20)), .nth(2)),
    .forgets(writesIn: .zero..<MediumOffset(UInt64(65536)), .nth(3)),
])
func `a defect seeded from below makes a right store fail`(_ defect: SeededDefect) throws {
    let device = SimulatedDevice(size: ToyStore.deviceSize)
    defect.install(on: device)
    #expect(throws: CrashFailure.self) {
        try CrashExplorer("toy", seed: 12).explore(
            device, workload: ToyProgramme.commit(4), check: ToyProgramme.check())
    }
    #expect(device.faults.firedCount > 0)
}

@Test func `a crash during recovery is explored within the check of a crash`() async throws {
    let recoveries = try await onPlainThread {
        let device = SimulatedDevice(size: ToyStore.deviceSize)
        var plan = CrashExplorer.Plan()
        plan.randomImageCount = 20
        let explorer = CrashExplorer("recovery", seed: 21, plan: plan)
        let outer = CrashExplorer("outer", seed: 21, plan: plan)
        return try outer.explore(device, workload: ToyProgramme.commit(2)) { image in
            let before = try ToyStore(medium: FaultMedium(image.device)).load()
            try explorer.explore(image.device) { device in
                try ToyStore(medium: FaultMedium(device)).commit(9, generation: before.generation + 1)
            } check: { inner in
                let after = try ToyStore(medium: FaultMedium(inner.device)).load()
                try require(after.generation - before.generation <= 1, "\(before) became \(after)")
            }
        }
    }
    #expect(recoveries.isReplay || recoveries.imageCount > 20)
}

@Test func `the same failure is found again whatever the number of workers`() throws {
    let one = try #require(try failure(of: .skipsDataFlush, seed: 5))
    let two = try #require(try failure(of: .skipsDataFlush, seed: 5) { $0.workerCount = 3 })
    #expect(one.replayLine == two.replayLine)
}

@Test func `an image is made again from its point, mode, ordinal and seed`() throws {
    let device = SimulatedDevice(size: ToyStore.deviceSize)
    try ToyProgramme.commit(5)(device)
    var cursor = device.crashCursor()
    while cursor.point.index < device.logCount {
        cursor.advance(to: cursor.point.index + 1)
        for mode in CrashMode.allCases {
            for image in cursor.point.images(mode, seed: 99, randomCount: 3) {
                var fresh = device.crashCursor()
                fresh.advance(to: image.point)
                let again = fresh.point.image(mode, ordinal: image.ordinal, seed: 99)
                #expect(again.fingerprint == image.fingerprint)
                #expect(again.device.bytes(at: .zero, count: 262_144) == image.device.bytes(at: .zero, count: 262_144))
            }
        }
    }
}

@Test func `a hundred thousand images are made of a hundred writes`() async throws {
    let report = try await onPlainThread {
        let device = SimulatedDevice(size: .mebibytes(16))
        let medium = FaultMedium(device)
        var plan = CrashExplorer.Plan()
        plan.randomImageCount = 100_000
        return try CrashExplorer("many", seed: 1, plan: plan).explore(device) { _ in
            for number in 0..<100 {
                try medium.fill(0xA5, at: MediumOffset(number * 20480), count: 16384)
                if number % 10 == 9 { try medium.flush() }
            }
        } check: { image in
            // Flushed bytes are there, whatever became of the others.
            let flushed = image.point / 11 * 10
            if flushed == 0 { return }
            let byte = image.device.bytes(at: MediumOffset((flushed - 1) * 20480), count: 1)
            try require(byte == [0xA5], "flushed write \(flushed - 1) is gone")
        }
    }
    #expect(report.isReplay || report.imageCount > 90_000)
}

/// A device with one flushed write of ones over its first 8 KiB and one unflushed write of twos over it.
private func overwrittenDevice() throws -> SimulatedDevice {
    let device = SimulatedDevice(size: .mebibytes(1))
    let medium = FaultMedium(device)
    try medium.fill(1, at: .zero, count: 8192)
    try medium.flush()
    try medium.fill(2, at: MediumOffset(UInt64(2048)), count: 4096)
    return device
}

@Test func `torn writes mix old and new in whole units and leave the rest alone`() throws {
    let device = try overwrittenDevice()
    for (mode, unit) in [(CrashMode.tornSectors, 512), (.tornWords, 8), (.persistentMemory, 8)] {
        var mixed = 0
        for seed in 0..<200 as Range<UInt64> {
            let bytes = device.powerCut(mode, seed: seed).device.bytes(at: .zero, count: 8192)
            #expect(bytes[..<2048].allSatisfy { $0 == 1 } && bytes[6144...].allSatisfy { $0 == 1 })
            let units = stride(from: 2048, to: 6144, by: unit).map { Set(bytes[$0..<$0 + unit]) }
            #expect(units.allSatisfy { $0.count == 1 }, "\(mode) seed \(seed) tears within a unit")
            if Set(units).count == 2 { mixed += 1 }
        }
        #expect(mixed > 50, "\(mode) hardly tears")
    }
}

@Test func `a line of persistent memory holds a first part of the stores made to it`() throws {
    let device = SimulatedDevice(size: .mebibytes(1))
    let medium = FaultMedium(device)
    // Four stores to each word of four lines, in order.
    for value in 1...4 as ClosedRange<UInt8> {
        try medium.fill(value, at: .zero, count: 256)
    }
    var newest: Set<[UInt8]> = []
    for seed in 0..<500 as Range<UInt64> {
        let bytes = device.powerCut(.persistentMemory, seed: seed).device.bytes(at: .zero, count: 256)
        for line in 0..<4 {
            let words = (0..<8).map { bytes[line * 64 + $0 * 8] }
            // One pass over the line may be under way: a first part one store ahead of the rest.
            #expect(words == words.sorted(by: >) && words[0] - words[7] <= 1, "seed \(seed): \(words)")
        }
        newest.insert((0..<4).map { bytes[$0 * 64] })
    }
    #expect(newest.count > 20)
}
