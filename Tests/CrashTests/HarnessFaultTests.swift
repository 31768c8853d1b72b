// Each fault does what it says, and nothing else.

import FaultHarness
import Foundation
import Media
import Testing
import Units

private let block = MediumOffset(UInt64(4096))

/// A device whose first 64 KiB are durable sevens, and a handle on it.
private func makeDevice(_ change: (inout SimulatedDevice.Options) -> Void = { _ in }) throws -> (
    SimulatedDevice, FaultMedium
) {
    var options = SimulatedDevice.Options()
    change(&options)
    let device = SimulatedDevice(size: .mebibytes(1), options: options)
    let medium = FaultMedium(device)
    try write(medium, 7, at: .zero, count: 65536)
    try medium.flush()
    device.faults.clear()
    return (device, medium)
}

private func write(_ medium: FaultMedium, _ value: UInt8, at offset: MediumOffset, count: Int = 4096) throws {
    try medium.fill(value, at: offset, count: count)
}

private func read(_ medium: FaultMedium, at offset: MediumOffset, count: Int = 4096) throws -> [UInt8] {
    var bytes = [UInt8](repeating: 0xEE, count: count)
    try unsafe bytes.withUnsafeMutableBytes { unsafe try medium.read(at: offset, into: $0) }
    return bytes
}

private func filled(_ value: UInt8, _ count: Int = 4096) -> [UInt8] { [UInt8](repeating: value, count: count) }

private func code(_ body: () throws -> Void) -> MediumError.Code? {
    do { try body() } catch { return (error as? MediumError)?.code }
    return nil
}

@Test func `the n-th call fails, once or from then on`() throws {
    let (device, medium) = try makeDevice()
    device.faults.add(FaultRule(.write, .nth(2), .fail(.ioFailed, errno: EIO)))
    medium.faults.add(FaultRule(.read, .from(2), .fail(.ioFailed)))
    let writes = (0..<4).map { number in code { try write(medium, 9, at: MediumOffset(number * 4096)) } }
    #expect(writes == [nil, .ioFailed, nil, nil])
    #expect(device.bytes(at: block, count: 4096) == filled(7))
    #expect((0..<4).map { _ in code { _ = try read(medium, at: .zero) } } == [nil, .ioFailed, .ioFailed, .ioFailed])
    #expect(device.faults.callCount(of: .write) == 4 && device.faults.firedCount == 1)
    // Another handle has faults of its own.
    #expect(code { _ = try read(FaultMedium(device), at: .zero) } == nil)
}

@Test func `every operation can be made to fail without doing anything`() throws {
    for operation in OperationKind.allCases {
        let (device, medium) = try makeDevice()
        device.faults.add(FaultRule(operation, .nth(1), .fail(.ioFailed)))
        let before = device.bytes(at: .zero, count: 65536)
        let calls: [OperationKind: () throws -> Void] = [
            .read: { _ = try read(medium, at: .zero) }, .write: { try write(medium, 1, at: .zero) },
            .flush: { try medium.flush() }, .reserve: { try medium.reserve(at: .zero, .kibibytes(4)) },
            .discard: { try medium.discard(at: .zero, .kibibytes(4)) },
            .resize: { try medium.resize(to: .kibibytes(4)) },
            .refreshSize: { try medium.refreshSize() },
            .lock: { _ = try medium.locks.tryLock(LockRange(start: 0), .exclusive) },
            .unlock: { try medium.locks.unlock(LockRange(start: 0)) },
            .queryLock: { _ = try medium.locks.isFree(LockRange(start: 0), for: .shared) },
        ]
        #expect(code(try #require(calls[operation])) == .ioFailed, "\(operation)")
        #expect(device.bytes(at: .zero, count: 65536) == before && device.size == .mebibytes(1))
        #expect(device.lockSummary.isEmpty)
    }
}

@Test func `a short write lands its beginning`() throws {
    let (device, medium) = try makeDevice()
    device.faults.add(FaultRule(.write, .nth(1), .shorten(to: ByteCount(1000), .ioFailed)))
    #expect(code { try write(medium, 9, at: block) } == .ioFailed)
    #expect(device.bytes(at: block, count: 4096) == filled(9, 1000) + filled(7, 3096))
}

@Test func `a lost write leaves the old content, a lying one until power is cut`() throws {
    let (device, medium) = try makeDevice()
    device.faults.add(FaultRule(.write, .nth(1), .lose))
    device.faults.add(FaultRule(.write, .nth(2), .loseAtPowerCut))
    try write(medium, 9, at: .zero)
    try write(medium, 9, at: block)
    try medium.flush()
    #expect(try read(medium, at: .zero) == filled(7))
    #expect(try read(medium, at: block) == filled(9))
    #expect(device.powerCut(.all).device.bytes(at: block, count: 4096) == filled(7))
}

@Test func `a misdirected write lands elsewhere and a duplicated one in both places`() throws {
    let (device, medium) = try makeDevice()
    let elsewhere = MediumOffset(UInt64(20480))
    device.faults.add(FaultRule(.write, .nth(1), .misdirect(to: elsewhere)))
    device.faults.add(FaultRule(.write, .nth(2), .duplicate(to: elsewhere + .kibibytes(4))))
    try write(medium, 9, at: .zero)
    #expect(device.bytes(at: .zero, count: 4096) == filled(7) && device.bytes(at: elsewhere, count: 4096) == filled(9))
    try write(medium, 8, at: .zero)
    #expect(device.bytes(at: .zero, count: 4096) == filled(8))
    #expect(device.bytes(at: elsewhere + .kibibytes(4), count: 4096) == filled(8))
    device.faults.add(FaultRule(.read, .nth(1), .misdirect(to: elsewhere)))
    #expect(try read(medium, at: .zero) == filled(9))
}

@Test func `bits flip on reading, on writing and at rest`() throws {
    func difference(_ bytes: [UInt8], _ value: UInt8) -> Int { bytes.reduce(0) { $0 + ($1 ^ value).nonzeroBitCount } }
    let (device, medium) = try makeDevice()
    device.faults.add(FaultRule(.read, .nth(1), .flipBits(1, seed: 4)))
    #expect(difference(try read(medium, at: .zero), 7) == 1)
    #expect(difference(try read(medium, at: .zero), 7) == 0)
    device.faults.add(FaultRule(.write, .nth(1), .flipBits(1, seed: 5)))
    try write(medium, 9, at: .zero)
    #expect(difference(device.bytes(at: .zero, count: 4096), 9) == 1)
    device.flipBit(3, at: block)
    #expect(device.durableBytes(at: block, count: 2) == [7 ^ 8, 7])
    #expect(try read(medium, at: block, count: 2) == [7 ^ 8, 7])
}

@Test func `a stale read brings the durable content, a stale block what was there earlier`() throws {
    let (device, medium) = try makeDevice()
    let point = device.logCount
    try write(medium, 9, at: .zero)
    device.faults.add(FaultRule(.read, .nth(1), .readStale))
    #expect(try read(medium, at: .zero) == filled(7))
    #expect(try read(medium, at: .zero) == filled(9))
    try medium.flush()
    device.makeStale(at: .zero, .kibibytes(4), asOf: point)
    #expect(try read(medium, at: .zero) == filled(7))
    device.overwrite(at: .zero, with: filled(5))
    device.duplicate(from: .zero, to: block, .kibibytes(4))
    #expect(device.durableBytes(at: block, count: 4096) == filled(5))
}

@Test func `a failed flush keeps, drops or reverts what was not flushed`() throws {
    // What readers see at once, what survives a later flush that succeeds and a power cut.
    let outcomes: [(FlushFailure, visible: UInt8, durable: UInt8)] = [
        (.keepWrites, 9, 9), (.dropWrites, 9, 7), (.revertWrites, 7, 7),
    ]
    for (failure, visible, durable) in outcomes {
        let (device, medium) = try makeDevice()
        device.faults.add(FaultRule(.flush, .nth(1), .failFlush(failure)))
        try write(medium, 9, at: .zero)
        #expect(code { try medium.flush() } == .flushFailed)
        #expect(try read(medium, at: .zero) == filled(visible))
        try medium.flush()
        #expect(device.powerCut(.none).device.bytes(at: .zero, count: 4096) == filled(durable))
    }
}

@Test func `a failed flush of mixed outcome treats each write by seed`() throws {
    var results: Set<[UInt8]> = []
    for seed in 0..<20 as Range<UInt64> {
        let (device, medium) = try makeDevice()
        device.faults.add(FaultRule(.flush, .nth(1), .failFlush(.mixed(seed: seed))))
        for number in 0..<3 { try write(medium, 9, at: MediumOffset(number * 4096)) }
        #expect(code { try medium.flush() } == .flushFailed)
        results.insert((0..<3).map { device.durableBytes(at: MediumOffset($0 * 4096), count: 1)[0] })
    }
    #expect(results.count > 3)
}

@Test func `an ignored flush and a delayed write are durable one flush later`() throws {
    let (device, medium) = try makeDevice()
    device.faults.add(FaultRule(.flush, .nth(1), .ignoreFlush))
    try write(medium, 9, at: .zero)
    try medium.flush()
    #expect(device.durableBytes(at: .zero, count: 1) == [7])
    device.faults.add(FaultRule(.write, .nth(1), .delay(flushes: 1)))
    try write(medium, 9, at: block)
    try medium.flush()
    #expect(device.durableBytes(at: .zero, count: 1) == [9] && device.durableBytes(at: block, count: 1) == [7])
    try medium.flush()
    #expect(device.durableBytes(at: block, count: 1) == [9])
}

@Test func `a flush covers the writes of every handle`() throws {
    let (device, medium) = try makeDevice()
    try write(FaultMedium(device), 9, at: .zero)
    try medium.flush()
    #expect(device.durableBytes(at: .zero, count: 4096) == filled(9) && device.unflushedCount == 0)
}

@Test func `a full device refuses to write and to reserve, and keeps what was reserved`() throws {
    let (device, medium) = try makeDevice()
    device.setCapacityLimit(.kibibytes(72))
    try medium.reserve(at: MediumOffset(UInt64(65536)), .kibibytes(8))
    #expect(code { try medium.reserve(at: MediumOffset(UInt64(131_072)), .kibibytes(4)) } == .noSpace)
    #expect(code { try write(medium, 1, at: MediumOffset(UInt64(131_072))) } == .noSpace)
    try write(medium, 1, at: MediumOffset(UInt64(65536)), count: 8192)
    try medium.discard(at: .zero, .kibibytes(16))
    try write(medium, 1, at: MediumOffset(UInt64(131_072)), count: 16384)
    #expect(device.allocated == .kibibytes(72))
}

@Test func `a discarded range reads as the device pleases`() throws {
    for (behaviour, isExpected) in [
        (SimulatedDevice.DiscardBehaviour.zeros, { $0 == filled(0) }), (.kept, { $0 == filled(7) }),
        (.garbage, { Set($0).count > 100 }),
    ] as [(SimulatedDevice.DiscardBehaviour, ([UInt8]) -> Bool)] {
        let (device, medium) = try makeDevice { $0.discardBehaviour = behaviour }
        try medium.discard(at: block, .kibibytes(4))
        #expect(isExpected(try read(medium, at: block)))
        #expect(try read(medium, at: .zero) == filled(7))
        // A discard is no more durable than a write.
        #expect(device.powerCut(.none).device.bytes(at: block, count: 4096) == filled(7))
    }
}

@Test func `a resize is seen by others when they look and survives once flushed`() throws {
    let (device, medium) = try makeDevice()
    let other = FaultMedium(device)
    try medium.resize(to: .mebibytes(2))
    #expect(other.size == .mebibytes(1))
    #expect(try other.refreshSize() == .mebibytes(2))
    #expect(device.powerCut(.none).device.size == .mebibytes(1) && device.powerCut(.all).device.size == .mebibytes(2))
    try medium.resize(to: .kibibytes(4))
    #expect(code { _ = try read(other, at: block) } == .outOfRange)
    try medium.resize(to: .mebibytes(1))
    #expect(try read(medium, at: block) == filled(0))
}

@Test func `ranges behind the end and writes through a reading handle are refused`() throws {
    let (device, medium) = try makeDevice()
    let reader = FaultMedium(device, isReadOnly: true)
    #expect(code { try write(medium, 1, at: MediumOffset(UInt64(1 << 20) - 1)) } == .outOfRange)
    #expect(code { _ = try read(medium, at: MediumOffset(UInt64.max - 10)) } == .outOfRange)
    #expect(code { try write(reader, 1, at: .zero) } == .readOnly)
    #expect(code { try reader.discard(at: .zero, .kibibytes(4)) } == .readOnly)
    #expect(code { _ = try reader.locks.tryLock(LockRange(start: 1), .exclusive) } == .readOnly)
    #expect(try reader.locks.tryLock(LockRange(start: 1), .shared))
}

@Test func `a fork changes on its own`() throws {
    let (device, medium) = try makeDevice()
    let fork = device.fork()
    try write(FaultMedium(fork), 1, at: .zero)
    try write(medium, 2, at: .zero)
    #expect(fork.bytes(at: .zero, count: 1) == [1] && device.bytes(at: .zero, count: 1) == [2])
    #expect(fork.durableBytes(at: .zero, count: 1) == [7])
}
