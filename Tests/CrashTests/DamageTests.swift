// Bits flip, blocks are misdirected, lost, stale or doubled: what is read is right, or an error says that it is not.

import CheckpointStore
import FaultHarness
import Media
import StoreTesting
import Testing
import Units

/// Where the blocks lie that the newest generation reaches: what verifying reads. Slots are left out.
func reachableRanges(of device: SimulatedDevice) throws -> [Range<UInt64>] {
    var options = device.options
    options.logsReads = true
    let copy = SimulatedDevice(size: device.size, options: options)
    var offset: UInt64 = 0
    while offset < device.size.rawValue {
        let count = Int(min(1 << 20, device.size.rawValue - offset))
        copy.overwrite(at: MediumOffset(offset), with: device.bytes(at: MediumOffset(offset), count: count))
        offset += UInt64(count)
    }
    let store = try CheckpointStore.open(FaultMedium(copy), environment: testEnvironment(seed: 1))
    defer { store.close() }
    copy.forgetLog()
    let report = try store.verify(options: VerifyOptions(checksPages: true, parallelism: 1))
    if let damage = report.damages.first { throw Mismatch("damaged from the start: \(damage)") }
    let dataOffset = store.geometry.dataOffset.rawValue
    let ranges = copy.log.compactMap { event -> Range<UInt64>? in
        guard case .read(let offset, let length) = event.kind, offset.rawValue >= dataOffset else { return nil }
        return offset.rawValue..<offset.rawValue + length.rawValue
    }
    return Set(ranges).sorted { $0.lowerBound < $1.lowerBound }
}

/// Those of them that are page runs.
func runRanges(of device: SimulatedDevice) throws -> [Range<UInt64>] {
    try reachableRanges(of: device).filter {
        device.bytes(at: MediumOffset($0.lowerBound + 16), count: 4) == Array("CKRN".utf8)
    }
}

/// What damage does to a store, checked against the model.
struct DamageCheck: Sendable {
    var model: StoreModel
    var defects: EngineDefects = []
    /// Whether the next read may bring something else.
    var isTransient = false

    func open(_ device: SimulatedDevice, seed: UInt64) throws -> CheckpointStore {
        var environment = testEnvironment(seed: seed)
        environment.defects = defects
        return try CheckpointStore.open(FaultMedium(device), environment: environment)
    }

    /// Reads all that `expected` names. Returns what could not be read; throws on wrong bytes and wrong errors.
    func unreadable(_ store: CheckpointStore, _ expected: [String: ModelCheckpoint]) throws -> Set<String> {
        var unreadable = Set<String>()
        for (name, regions) in expected {
            for (region, bytes) in regions {
                do {
                    let reader = try store.snapshot().reader(named: name).region(region)
                    guard try read(reader, bytes) else { unreadable.insert(name); continue }
                } catch let error as StoreError where error.code == .corrupt { unreadable.insert(name) }
            }
            if try fails(with: .corrupt, { _ = try store.snapshot().checkpoint(named: name) }) { unreadable.insert(name) }
        }
        return unreadable
    }

    /// Reads a region whole, and where that fails page by page. False when a page can't be read.
    private func read(_ region: RegionReader, _ expected: [UInt8]) throws -> Bool {
        do {
            guard try region.bytes() == expected else { throw Mismatch("\(region.info.name) has wrong bytes") }
            return true
        } catch let error as StoreError where error.code == .corrupt {}
        var page = [UInt8](repeating: 0, count: pageSize)
        var readable = 0
        for number in 0..<region.info.pageCount.int {
            do {
                try unsafe page.withUnsafeMutableBytes { try unsafe region.read(page: PageIndex(number), into: $0) }
            } catch let error as StoreError where error.code == .corrupt { continue }
            readable += 1
            let wanted = expected[(number * pageSize)..<min((number + 1) * pageSize, expected.count)]
            guard page.starts(with: wanted) else { throw Mismatch("page \(number) of \(region.info.name) has wrong bytes") }
        }
        if !isTransient, readable == region.info.pageCount.int { throw Mismatch("each page can be read but not all of them") }
        return false
    }

    /// One damaged store: reads, verifies, saves, deletes. `isHit`: whether something reachable is damaged; nil: unknown.
    func run(on device: SimulatedDevice, isHit: Bool?, changes: Bool, seed: UInt64) throws {
        let store = try open(device, seed: seed)
        defer { store.close() }
        let before = try unreadable(store, model.checkpoints)
        let report = try store.verify(options: VerifyOptions(checksPages: true, parallelism: 1))
        if let isHit, report.isSound == isHit {
            throw Mismatch("verify reports \(report.damages.count) damages (\(report.damages.first.map { "\($0)" } ?? "")), reachable blocks hit: \(isHit)")
        }
        if !before.isEmpty, report.isSound { throw Mismatch("\(before.sorted()) can't be read, and verify is content") }
        guard changes else { return }
        var expected = model.checkpoints
        let save = Step(.saveFull, on: model)
        if try !fails(with: .corrupt, { try save.perform(on: store) }) { expected = save.after.checkpoints }
        let step = Step(.delete, on: save.after)
        if try !fails(with: .corrupt, { try store.delete([model.order[0]]) }) {
            for name in Set(save.before.order).subtracting(step.after.order) { expected[name] = nil }
        }
        let after = try unreadable(store, expected)
        guard after.subtracting(before).isEmpty || isHit == nil || catalogIsHurt(report) else {
            throw Mismatch("\(after.subtracting(before).sorted()) could be read before something else was saved and deleted")
        }
    }

    /// True when the catalog or the table is damaged: then nothing is promised about new checkpoints.
    private func catalogIsHurt(_ report: VerifyReport) -> Bool { report.damages.contains(where: \.concernsStore) }
}

@Suite(.serialized) struct DamageTests {
    /// Where something was ever written: positions worth a flip.
    private func usedBlocks(_ device: SimulatedDevice) -> [UInt64] {
        (0..<device.size.rawValue / 4096).filter { block in
            device.bytes(at: MediumOffset(block * 4096), count: 4096).contains { $0 != 0 }
        }
    }

    @Test func `a flipped bit is reported where something reachable is hit, and harmless elsewhere`() async throws {
        let hits = try await onPlainThread {
            keepFreedMemory()
            let base = BaseStore.old
            let used = usedBlocks(base.device)
            let reachable = try reachableRanges(of: base.device)
            let olderSlots = try olderSlots(of: base.device)
            var random = SeededGenerator(seed: 11)
            var hits = 0
            for number in 0..<ProgrammeSize.scaled(20_000) {
                // Half of the flips anywhere, half of them where it hurts.
                var offset = used[random.below(used.count)] * 4096 + random.next() % 4096
                if number % 2 == 0 {
                    let range = reachable[random.below(reachable.count)]
                    offset = range.lowerBound + random.next() % UInt64(range.count)
                }
                let bit = random.below(8)
                let device = base.device.fork()
                device.flipBit(bit, at: MediumOffset(offset))
                let isHit = reachable.contains { $0.contains(offset) } || olderSlots.contains(offset / 4096)
                hits += isHit ? 1 : 0
                do {
                    try DamageCheck(model: base.model).run(on: device, isHit: isHit, changes: number % 4 == 0, seed: UInt64(number))
                } catch { throw Mismatch("bit \(bit) at \(offset): \(error)") }
            }
            return hits
        }
        #expect(hits > ProgrammeSize.scaled(8_000))
    }

    /// The blocks of slots whose damage verifying reports: not those that a crash may leave torn.
    private func olderSlots(of device: SimulatedDevice) throws -> Set<UInt64> {
        let store = try CheckpointStore.open(FaultMedium(device.fork()), environment: testEnvironment(seed: 1))
        defer { store.close() }
        let newest = try store.snapshot().generation.rawValue
        let twin = store.geometry.twinOffset.rawValue / 4096
        return Set((2..<16).flatMap { ahead in [(newest + ahead) % 16, twin + (newest + ahead) % 16] })
    }

    @Test func `a damaged twin is healed by the next save`() throws { try requireTwinsAreWhole([]) }

    @Test func `slots that are gone are an error, not an older view`() throws { try requireLossIsNoticed([]) }

    @Test func `blocks that are misdirected, lost, stale or doubled are never taken for right`() async throws {
        let refused = try await onPlainThread { try damageBlocks([], count: ProgrammeSize.scaled(3_000)) }
        #expect(refused > ProgrammeSize.scaled(150))
    }

    @Test func `a read that brings something else is an error or is right the next time`() async throws {
        try await onPlainThread { try readThroughFaults([]) }
    }
}

/// Reads through a medium that flips bits in every other read of a run, or brings what is elsewhere.
func readThroughFaults(_ defects: EngineDefects) throws {
    let base = BaseStore.young
    let runs = Set(try runRanges(of: base.device).map(\.lowerBound))
    for (number, effect) in [FaultEffect.flipBits(3, seed: 9), .misdirect(to: MediumOffset(UInt64(4096)))].enumerated() {
        for first in 1...2 {
            let device = base.device.fork()
            let check = DamageCheck(model: base.model, defects: defects, isTransient: true)
            let store = try check.open(device, seed: UInt64(number))
            defer { store.close() }
            device.faults.add(
                FaultRule(.read, .every(period: 2, first: first), effect) { call in
                    call.offset.map { runs.contains($0.rawValue) } ?? false
                })
            _ = try check.unreadable(store, base.model.checkpoints)
            device.faults.clear()
            guard try check.unreadable(store, base.model.checkpoints).isEmpty else { throw Mismatch("a fault in reading stays") }
        }
    }
}

/// Damages blocks at rest and while an operation writes. Returns how often that left something unreadable.
@discardableResult func damageBlocks(_ defects: EngineDefects, count: Int) throws -> Int {
    keepFreedMemory()
    var random = SeededGenerator(seed: 5)
    var refused = 0
    // What was there a few generations ago.
    let earlier = BaseStore.old.device
    let store = try CheckpointStore.open(FaultMedium(earlier.fork()), environment: testEnvironment(seed: 1))
    let reachable = try reachableRanges(of: earlier)
    store.close()
    for number in 0..<count {
        let device = earlier.fork()
        let step = Step(StoreOperation.common[number % 5], on: BaseStore.old.model)
        let somewhere = MediumOffset(reachable[random.below(reachable.count)].lowerBound / 4096 * 4096)
        if number % 2 == 0 {
            let effects: [FaultEffect] = [.lose, .misdirect(to: somewhere), .duplicate(to: somewhere), .flipBits(2, seed: UInt64(number))]
            device.faults.add(FaultRule(.write, .nth(1 + random.below(5)), effects[number / 2 % 4]))
        }
        var check = DamageCheck(model: step.before, defects: defects)
        do {
            let store = try check.open(device, seed: UInt64(number))
            defer { store.close() }
            try step.perform(on: store)
            check.model = step.after
        } catch let error as StoreError where error.code == .corrupt {
            refused += 1
            continue
        }
        device.faults.clear()
        if number % 2 == 1 {
            let target = reachable[random.below(reachable.count)]
            let source = reachable[random.below(reachable.count)]
            let length = ByteCount(min(target.count, source.count))
            switch number / 2 % 3 {
            case 0: device.duplicate(from: MediumOffset(source.lowerBound), to: MediumOffset(target.lowerBound), length)
            case 1:
                device.duplicate(
                    from: MediumOffset(source.lowerBound / 4096 * 4096), to: MediumOffset(target.lowerBound / 4096 * 4096), .kibibytes(4))
            default:
                // Something that this operation has written becomes what was there before.
                let writes = device.log.compactMap { event in if case .write(let record) = event.kind { record } else { nil } }
                let record = writes[random.below(writes.count)]
                device.overwrite(at: record.offset, with: earlier.bytes(at: record.offset, count: record.length.int))
            }
        }
        do {
            let store = try check.open(device, seed: UInt64(number) + 1)
            defer { store.close() }
            // A lost slot leaves the state before the operation; its twin, the one after.
            let names = try store.snapshot().names()
            if Set(names) == Set(step.before.order) { check.model = step.before }
            let unreadable = try check.unreadable(store, check.model.checkpoints)
            let report = try store.verify(options: VerifyOptions(checksPages: true, parallelism: 1))
            if !unreadable.isEmpty, report.isSound { throw Mismatch("\(unreadable) can't be read, and verify is content") }
            if !report.isSound { refused += 1 }
        } catch let error as StoreError where [.corrupt, .notFound].contains(error.code) { refused += 1 } catch {
            throw Mismatch("round \(number), \(step.operation): \(error)")
        }
    }
    return refused
}

/// Damages one twin, saves, and then takes away everything but the twin that must have been healed.
func requireTwinsAreWhole(_ defects: EngineDefects) throws {
    let base = BaseStore.young
    for twin in [0, 1] {
        let device = base.device.fork()
        let check = DamageCheck(model: base.model, defects: defects)
        let store = try check.open(device, seed: 1)
        let twinOffset = store.geometry.twinOffset.rawValue
        func place(_ generation: UInt64, _ twin: Int) -> MediumOffset {
            MediumOffset(generation % 16 * 4096 + (twin == 0 ? 0 : twinOffset))
        }
        let newest = try store.snapshot().generation.rawValue
        store.close()
        device.flipBit(3, at: place(newest, twin) + ByteCount(100))
        let saver = try check.open(device, seed: 2)
        let step = Step(.saveEmpty, on: base.model)
        try step.perform(on: saver)
        saver.close()
        // Either twin of the new generation is enough.
        let half = device.fork()
        half.flipBit(3, at: place(newest + 1, twin) + ByteCount(100))
        try StoreCheck(step: step, isAcknowledged: true, seed: 4).run(on: half)
        // The generation before it stands on the healed twin alone.
        for copy in [0, 1] { device.flipBit(3, at: place(newest + 1, copy) + ByteCount(100)) }
        device.flipBit(3, at: place(newest, 1 - twin) + ByteCount(100))
        try StoreCheck(step: step, isAcknowledged: false, seed: 5).run(on: device)
    }
}

/// Takes the two newest slots away, twins and all: what is left must not pass for the newest state.
func requireLossIsNoticed(_ defects: EngineDefects) throws {
    let device = BaseStore.old.device.fork()
    let check = DamageCheck(model: BaseStore.old.model, defects: defects)
    let store = try check.open(device, seed: 1)
    let generation = try store.snapshot().generation.rawValue
    let twinOffset = store.geometry.twinOffset.rawValue
    store.close()
    for lost in [generation - 1, generation] {
        for ring in [0, twinOffset] { device.flipBit(0, at: MediumOffset(ring + lost % 16 * 4096 + 200)) }
    }
    guard try fails(with: .corrupt, { try check.open(device, seed: 2).close() }) else {
        throw Mismatch("an older generation was taken for the newest")
    }
}
