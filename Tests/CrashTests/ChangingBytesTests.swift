// Somebody else changes the bytes while the engine works on them.

import CheckpointStore
import FaultHarness
import Foundation
import Media
import StoreTesting
import Synchronization
import Testing
import Units

/// Memory that another thread may write to while it is read: no Swift array may be that.
@safe private final class SharedBytes: @unchecked Sendable {
    let buffer: UnsafeMutableRawBufferPointer
    init(_ bytes: [UInt8]) {
        unsafe buffer = .allocate(byteCount: bytes.count, alignment: pageSize)
        unsafe buffer.copyBytes(from: bytes)
    }
    deinit { unsafe buffer.deallocate() }
    func set(_ page: Int, _ value: UInt8) { unsafe memset(buffer.baseAddress! + page * pageSize, Int32(value), pageSize) }
    var bytes: [UInt8] { unsafe Array(buffer) }
}

/// Saves memory that is being written to, `rounds` times, and checks that each checkpoint is consistent in itself.
func saveChangingMemory(_ defects: EngineDefects, rounds: Int) throws {
    let pages = 512
    let memory = SharedBytes((0..<pages).flatMap { [UInt8](repeating: UInt8($0 % 200 + 1), count: pageSize) })
    let isOver = Atomic(false)
    let changer = Thread {
        var random = SeededGenerator(seed: 1)
        while !isOver.load(ordering: .relaxed) { memory.set(random.below(pages), UInt8(1 + random.below(200))) }
    }
    changer.start()
    defer {
        isOver.store(true, ordering: .relaxed)
        while !changer.isFinished { usleep(100) }
    }
    var environment = testEnvironment(seed: 1)
    environment.defects = defects
    let store = try CheckpointStore.create(on: try RAMMedium.anonymous(size: .mebibytes(64)), environment: environment)
    defer { store.close() }
    for round in 0..<rounds {
        try save(memory, round, on: store)
        let report = try store.verify(checkpoint: "c\(round)", options: VerifyOptions(checksPages: true, parallelism: 1))
        if let damage = report.damages.first { throw Mismatch("round \(round): \(damage)") }
        if round > 1 { try store.delete(["c\(round - 2)"]) }
    }
    isOver.store(true, ordering: .relaxed)
    while !changer.isFinished { usleep(100) }
    try save(memory, rounds, on: store)
    let found = try store.snapshot().reader(named: "c\(rounds)").region("ram").bytes()
    guard found == memory.bytes else { throw Mismatch("the last content, that nobody changed, was not restored") }
}

private func save(_ memory: SharedBytes, _ round: Int, on store: CheckpointStore) throws {
    let writer = try store.begin(
        "c\(round)", parent: round > 0 ? "c\(round - 1)" : nil, options: WriterOptions(parallelism: 1))
    let region = try writer.addRegion("ram", kind: .memory, byteLength: ByteCount(unsafe memory.buffer.count))
    unsafe try region.write(UnsafeRawBufferPointer(memory.buffer), at: PageIndex(0), isStable: false)
    try writer.commit()
}

@Suite(.serialized) struct ChangingBytesTests {
    @Test func `memory that changes while it is saved is stored as one consistent copy`() async throws {
        try await onPlainThread { try saveChangingMemory([], rounds: 40) }
    }

    @Test func `a medium that changes while it is read brings right bytes or an error`() async throws {
        let (right, refused) = try await onPlainThread { try readChangingFile([]) }
        print("reads of a changing medium: \(right) right, \(refused) refused")
        #expect(right > 0 && refused > 0)
    }
}

/// Reads a store in a file in which another descriptor writes rubbish and takes it back, again and again.
func readChangingFile(_ defects: EngineDefects) throws -> (right: Int, refused: Int) {
    let path = FileManager.default.temporaryDirectory.appendingPathComponent("ckstore-changing-\(UUID().uuidString)").path
    defer { try? FileManager.default.removeItem(atPath: path) }
    var environment = testEnvironment(seed: 1)
    environment.defects = defects
    let medium = try createMedium(try Locator("file:" + path), size: .mebibytes(32))
    let store = try CheckpointStore.create(on: medium, environment: environment)
    defer { store.close() }
    var random = SeededGenerator(seed: 4)
    let content = (0..<256).flatMap { _ in makePage(&random) }
    let writer = try store.begin("one")
    try writer.addRegion("ram", kind: .memory, byteLength: ByteCount(content.count)).write(content)
    try writer.commit()
    let descriptor = unsafe Glibc.open(path, O_RDWR)
    guard descriptor >= 0 else { throw Mismatch("can't open the file once more") }
    defer { Glibc.close(descriptor) }
    let start = store.geometry.dataOffset.rawValue
    let isOver = Atomic(false)
    let changer = Thread { disturb(descriptor, from: start, isOver) }
    changer.start()
    defer {
        isOver.store(true, ordering: .relaxed)
        while !changer.isFinished { usleep(100) }
    }
    var counts = (right: 0, refused: 0)
    // On until both have happened; where they never do, the test fails and does not hang.
    for round in 0..<100_000 where round < ProgrammeSize.scaled(400) || counts.right == 0 || counts.refused == 0 {
        do {
            let found = try store.snapshot().reader(named: "one").region("ram").bytes()
            guard found == content else { throw Mismatch("wrong bytes were read") }
            counts.right += 1
        } catch let error as StoreError where error.code == .corrupt { counts.refused += 1 }
    }
    return counts
}

/// Puts rubbish into a place behind `start` and the old bytes back, until it is over.
private func disturb(_ descriptor: Int32, from start: UInt64, _ isOver: borrowing Atomic<Bool>) {
    var random = SeededGenerator(seed: 8)
    var old = [UInt8](repeating: 0, count: 64)
    while !isOver.load(ordering: .relaxed) {
        let place = off_t(start) + off_t(random.below(600 << 10))
        guard unsafe pread(descriptor, &old, old.count, place) == old.count else { return }
        let rubbish = old.map { $0 ^ 0x55 }
        guard unsafe pwrite(descriptor, rubbish, rubbish.count, place) == rubbish.count else { return }
        usleep(useconds_t(random.below(60)))
        guard unsafe pwrite(descriptor, old, old.count, place) == old.count else { return }
        usleep(useconds_t(random.below(200)))
    }
}
