// A store small enough to be right by inspection, and to be made wrong in known ways, so that the
// harness can be shown to tell the one from the other.
//
// Invariant (when it has no defect): generation g has its data in area g % 2 and its slot in place
// g % 2; data is durable before its slot is written, and the slot before the commit returns.

import FaultHarness
import Foundation
import Media
import Units

/// Something that a test wanted and did not find. Thrown where `#expect` would not know its test: on
/// the threads of simulations and explorations.
struct Wrong: Error, CustomStringConvertible {
    var description: String
    init(_ description: String) { self.description = description }
}

/// Throws unless `condition` holds.
func require(_ condition: Bool, _ description: @autoclosure () -> String) throws {
    if !condition { throw Wrong(description()) }
}

/// Two slots, two data areas, one value.
struct ToyStore {
    /// How the store is wrong.
    enum Defect: CaseIterable {
        case skipsDataFlush, skipsSlotFlush, writesSlotBeforeData, hasNoSlotChecksum, overwritesItsOnlySlot
        case readsBeforeItLocks, neverLocks
    }

    static let deviceSize = ByteCount.mebibytes(4)
    static let lock = LockRange(start: 1)
    let medium: any Medium
    var defect: Defect?

    /// The newest generation and its value; (0, 0) in an empty store. Throws when what a valid slot names is not there.
    func load() throws -> (generation: UInt64, value: UInt64) {
        let slots = try [0, 1].compactMap { try loadSlot($0) }.sorted { $0.generation < $1.generation }
        guard let newest = slots.last else { return (0, 0) }
        let words = try readWords(at: ToyStore.dataOffset(newest.generation))
        try require(
            ToyStore.checksum(words[...]) == newest.dataChecksum,
            "the data of generation \(newest.generation) is damaged")
        return (newest.generation, words[0])
    }

    /// Makes `value` the newest; durable on return.
    func commit(_ value: UInt64, generation: UInt64) throws {
        let data = [UInt64](repeating: value, count: 512)
        var slot = [UInt64](repeating: generation, count: 512)
        slot[256] = ToyStore.checksum(data[...])
        slot[511] = ToyStore.checksum(slot[..<511])
        let slotPlace = defect == .overwritesItsOnlySlot ? 0 : generation % 2
        if defect == .writesSlotBeforeData { try write(slot, at: slotPlace * 4096) }
        try write(data, at: ToyStore.dataOffset(generation))
        if defect != .skipsDataFlush { try medium.flush() }
        if defect != .writesSlotBeforeData { try write(slot, at: slotPlace * 4096) }
        if defect != .skipsSlotFlush { try medium.flush() }
    }

    /// Adds one to the value, excluding other processes.
    func increment() throws {
        var newest = try load()
        if defect != .neverLocks { try medium.locks.lock(ToyStore.lock, .exclusive, timeout: .seconds(1)) }
        if defect != .readsBeforeItLocks { newest = try load() }
        try commit(newest.value + 1, generation: newest.generation + 1)
        if defect != .neverLocks { try medium.locks.unlock(ToyStore.lock) }
    }

    private static func dataOffset(_ generation: UInt64) -> UInt64 { 65536 * (1 + generation % 2) }

    private func loadSlot(_ place: UInt64) throws -> (generation: UInt64, dataChecksum: UInt64)? {
        let words = try readWords(at: place * 4096)
        if words[0] == 0 { return nil }
        if defect != .hasNoSlotChecksum, ToyStore.checksum(words[..<511]) != words[511] { return nil }
        return (words[0], words[256])
    }

    private func readWords(at offset: UInt64) throws -> [UInt64] {
        var words = [UInt64](repeating: 0, count: 512)
        try unsafe words.withUnsafeMutableBytes { unsafe try medium.read(at: MediumOffset(offset), into: $0) }
        return words
    }

    private func write(_ words: [UInt64], at offset: UInt64) throws {
        try unsafe words.withUnsafeBytes { unsafe try medium.write(at: MediumOffset(offset), $0) }
    }

    /// Position-dependent, so that a mix of two generations is noticed.
    private static func checksum(_ words: ArraySlice<UInt64>) -> UInt64 {
        var sum: UInt64 = 0x9E37_79B9_7F4A_7C15
        for word in words { sum = (sum ^ word) &* 0x100_0000_01B3 }
        return sum
    }
}

extension Medium {
    /// Writes `count` bytes of one value.
    func fill(_ value: UInt8, at offset: MediumOffset, count: Int) throws {
        try unsafe [UInt8](repeating: value, count: count).withUnsafeBytes { unsafe try write(at: offset, $0) }
    }
}

/// The crash programme of the toy: commits 1, 2, 3 … with marks, and the check that goes with them.
enum ToyProgramme {
    /// Commits `1...count`; commit n stores the value 1000 + n.
    static func commit(_ count: UInt64, _ defect: ToyStore.Defect? = nil) -> @Sendable (SimulatedDevice) throws -> Void
    {
        { device in
            let store = ToyStore(medium: FaultMedium(device), defect: defect)
            for generation in 1...count {
                device.mark("begin \(generation)")
                try store.commit(1000 + generation, generation: generation)
                device.mark("acknowledged \(generation)")
            }
        }
    }

    /// Exactly the last acknowledged commit or the one in flight is there, and the next commit works.
    static func check(_ defect: ToyStore.Defect? = nil) -> @Sendable (CrashImage) throws -> Void {
        { image in
            func last(_ word: String) -> UInt64 {
                image.marks.last { $0.hasPrefix(word) }.flatMap { UInt64($0.dropFirst(word.count + 1)) } ?? 0
            }
            let store = ToyStore(medium: FaultMedium(image.device), defect: defect)
            let found = try store.load()
            let allowed = last("acknowledged")...last("begin")
            try require(allowed.contains(found.generation), "generation \(found.generation), not one of \(allowed)")
            try require(
                found.value == (found.generation == 0 ? 0 : 1000 + found.generation),
                "the value \(found.value) in generation \(found.generation)")
            try store.commit(5, generation: found.generation + 1)
            try require(try store.load().value == 5, "the next commit is not there")
        }
    }
}
