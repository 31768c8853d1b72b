// Simulated locks behave as open file description locks do.

import FaultHarness
import Media
import Testing
import Units

private func makeHandles(_ count: Int) -> (SimulatedDevice, [FaultMedium]) {
    let device = SimulatedDevice(size: .mebibytes(1))
    return (device, (0..<count).map { _ in FaultMedium(device) })
}

@Test func `shared locks get along, exclusive ones with nobody but their own handle`() throws {
    let (_, handles) = makeHandles(3)
    let locks = handles.map(\.locks)
    let range = LockRange(start: 10, count: 5)
    #expect(try locks[0].tryLock(range, .shared) && locks[1].tryLock(range, .shared))
    #expect(try !locks[2].tryLock(LockRange(start: 14), .exclusive))
    #expect(try locks[2].tryLock(LockRange(start: 15), .exclusive))
    #expect(try locks[2].tryLock(LockRange(start: 15), .shared), "a handle's own locks never conflict")
    #expect(try !locks[0].isFree(range, for: .exclusive) && locks[0].isFree(range, for: .shared))
    #expect(locks[0].holders(of: range).count == 1)
}

@Test func `a lock is upgraded when it is the only one, and kept when it is not`() throws {
    let (_, handles) = makeHandles(2)
    let range = LockRange(start: 1)
    #expect(try handles[0].locks.tryLock(range, .shared) && handles[1].locks.tryLock(range, .shared))
    #expect(try !handles[0].locks.tryLock(range, .exclusive))
    #expect(try !handles[1].locks.isFree(range, for: .exclusive), "the refused upgrade kept the shared lock")
    try handles[1].locks.unlock(range)
    #expect(try handles[0].locks.tryLock(range, .exclusive))
    #expect(try !handles[1].locks.tryLock(range, .shared))
    #expect(try handles[0].locks.tryLock(range, .shared), "downgraded")
    #expect(try handles[1].locks.tryLock(range, .shared))
}

@Test func `unlocking the middle of a range leaves both its ends`() throws {
    let (_, handles) = makeHandles(2)
    #expect(try handles[0].locks.tryLock(LockRange(start: 0, count: 10), .exclusive))
    try handles[0].locks.unlock(LockRange(start: 3, count: 4))
    let free = try (0..<10).filter { try handles[1].locks.isFree(LockRange(start: UInt64($0)), for: .exclusive) }
    #expect(free == [3, 4, 5, 6])
}

@Test func `closing a handle gives up its locks and no others`() throws {
    let (device, handles) = makeHandles(2)
    #expect(try handles[0].locks.tryLock(LockRange(start: 1), .exclusive))
    #expect(try handles[1].locks.tryLock(LockRange(start: 2), .exclusive))
    handles[0].close()
    #expect(device.lockSummary.count == 1)
}

@Test func `waiting for a lock outside of a simulation ends with the lock or with busy`() async throws {
    let (_, handles) = makeHandles(2)
    let range = LockRange(start: 1)
    #expect(try handles[0].locks.tryLock(range, .exclusive))
    #expect(throws: MediumError.self) { try handles[1].locks.lock(range, .shared, timeout: .milliseconds(5)) }
    async let waiting: Void = onPlainThread { try handles[1].locks.lock(range, .shared, timeout: nil) }
    try handles[0].locks.unlock(range)
    try await waiting
    #expect(try !handles[0].locks.tryLock(range, .exclusive))
}

@Test func `a pretended lock is granted to everybody`() throws {
    let (device, handles) = makeHandles(2)
    device.faults.add(FaultRule(.lock, .from(1), .pretendLock))
    #expect(try handles[0].locks.tryLock(LockRange(start: 1), .exclusive))
    #expect(try handles[1].locks.tryLock(LockRange(start: 1), .exclusive))
    #expect(device.lockSummary.isEmpty)
}
