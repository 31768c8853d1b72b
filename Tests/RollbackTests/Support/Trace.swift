// One trace of writes, checkpoints and rollbacks, made from a seed, and what memory has to hold after it.
//
// Invariant: a trace depends on its seed and sizes alone, so that every strategy is given the same.

import CheckpointCore
import FaultHarness
import Glibc
import MachineMemory
import PageCodec
import Rollback
import Units

/// Something is not as it has to be.
struct Mismatch: Error, CustomStringConvertible {
    var description: String
    init(_ description: String) { self.description = description }
}

func require(_ condition: Bool, _ description: @autoclosure () -> String) throws {
    if !condition { throw Mismatch(description()) }
}

/// The seed of a test's choices: printed when it fails, and taken from the environment (`CKSTORE_TEST_SEED`) to run it again.
func newSeed() -> UInt64 {
    if let text = unsafe getenv("CKSTORE_TEST_SEED"), let seed = unsafe UInt64(String(cString: text)) { return seed }
    return UInt64.random(in: .min ... .max)
}

/// One event of a trace.
enum TraceEvent: Sendable {
    /// A value is written over `count` bytes at an offset, perhaps across pages.
    case write(offset: Int, count: Int, value: UInt8)
    /// A device writes a page past the write protection.
    case deviceWrite(page: Int, value: UInt8)
    case checkpoint([UInt8])
    case rollback
}

/// A trace over so many pages.
struct Trace: Sendable {
    let seed: UInt64
    let pageCount: Int
    let events: [TraceEvent]

    init(seed: UInt64, pageCount: Int, length: Int) {
        var random = SeededGenerator(seed: seed)
        self.seed = seed
        self.pageCount = pageCount
        events = (0..<length).map { number in
            switch random.below(100) {
            case 0..<6: .checkpoint((0..<random.below(40)).map { _ in UInt8(random.below(256)) } + [UInt8(number & 255)])
            case 6..<10: .rollback
            case 10..<15: .deviceWrite(page: random.below(pageCount), value: UInt8(random.below(256)))
            default: Self.write(&random, pageCount)
            }
        }
    }

    private static func write(_ random: inout SeededGenerator, _ pageCount: Int) -> TraceEvent {
        // Half of the writes go to few pages, so that these are written again and again.
        let page = random.chance(1, in: 2) ? random.below(min(8, pageCount)) : random.below(pageCount)
        let offset = page * pageSize + random.below(pageSize)
        let count = min(1 + random.below(random.chance(1, in: 8) ? 3 * pageSize : 64), pageCount * pageSize - offset)
        return .write(offset: offset, count: count, value: UInt8(random.below(256)))
    }
}

/// What memory and its checkpoint have to be.
struct Model: Equatable {
    var memory: [UInt8]
    var checkpoint: [UInt8]
    var state: [UInt8]
    /// Pages written since the checkpoint.
    var written: Set<Int> = []

    init(pageCount: Int, state: [UInt8] = []) {
        memory = [UInt8](repeating: 0, count: pageCount * pageSize)
        checkpoint = memory
        self.state = state
    }

    private mutating func fill(_ range: Range<Int>, _ value: UInt8) {
        unsafe memory.withUnsafeMutableBytes { bytes in
            _ = unsafe UnsafeMutableRawBufferPointer(rebasing: bytes[range]).initializeMemory(as: UInt8.self, repeating: value)
        }
    }

    mutating func apply(_ event: TraceEvent) {
        switch event {
        case .write(let offset, let count, let value):
            fill(offset..<offset + count, value)
            written.formUnion(offset / pageSize...(offset + count - 1) / pageSize)
        case .deviceWrite(let page, let value):
            fill(page * pageSize..<(page + 1) * pageSize, value)
            written.insert(page)
        case .checkpoint(let state):
            checkpoint = memory
            self.state = state
            written = []
        case .rollback:
            memory = checkpoint
            written = []
        }
    }
}

extension GuestMemory {
    /// Does what a machine does at this event; checkpoints and rollbacks are not its own.
    func write(_ event: TraceEvent, announcingTo rollback: MemoryRollback) throws {
        switch event {
        case .write(let offset, let count, let value):
            unsafe UnsafeMutableRawBufferPointer(rebasing: bytes[offset..<offset + count]).initializeMemory(as: UInt8.self, repeating: value)
        case .deviceWrite(let page, let value):
            try rollback.announceDeviceWrite(PageIndex(page)..<PageIndex(page + 1))
            let place = page * pageSize..<(page + 1) * pageSize
            unsafe UnsafeMutableRawBufferPointer(rebasing: deviceBytes[place]).initializeMemory(as: UInt8.self, repeating: value)
        case .checkpoint, .rollback: break
        }
    }

    /// Throws where memory differs from what it has to be.
    func requireEqual(_ expected: [UInt8], _ what: @autoclosure () -> String) throws {
        let page = unsafe expected.withUnsafeBytes { expected in
            (0..<pageCount.int).first { page in
                let place = page * pageSize..<(page + 1) * pageSize
                return unsafe memcmp(expected.baseAddress! + place.lowerBound, bytes.baseAddress! + place.lowerBound, pageSize) != 0
            }
        }
        if let page { throw Mismatch("\(what()): page \(page) differs") }
    }
}

/// Runs a trace by a strategy, holding it to the model at each checkpoint and rollback. Returns a digest of memory and state at each of these.
func run(
    _ trace: Trace, _ rollback: MemoryRollback, check: (TraceEvent, Model) throws -> Void = { _, _ in }
) throws -> [UInt64] {
    var model = Model(pageCount: trace.pageCount)
    var digests: [UInt64] = []
    for (number, event) in trace.events.enumerated() {
        let before = model
        try rollback.memory.write(event, announcingTo: rollback)
        model.apply(event)
        switch event {
        case .write, .deviceWrite: continue
        case .checkpoint(let state): try rollback.checkpoint(state: state)
        case .rollback:
            let state = try rollback.rollback()
            try require(state == model.state, "seed \(trace.seed), event \(number): state \(state) instead of \(model.state)")
        }
        try rollback.memory.requireEqual(model.memory, "seed \(trace.seed), event \(number) \(event)")
        try check(event, before)
        unsafe digests.append(digest(model.state) ^ hash128(UnsafeRawBufferPointer(rollback.memory.bytes)).low)
    }
    return digests
}

/// A hash of bytes.
func digest(_ bytes: [UInt8]) -> UInt64 { unsafe bytes.withUnsafeBytes { unsafe hash128($0).low } }
