// Room for the originals of pages that were written before they were saved.
//
// Invariants:
// - A slot that was taken is its taker's until it is given back.
// - At most `limit` slots are out at any time, but for those that are taken beyond it; the memory of all that were ever out is kept for
//   the next checkpoint until `trim`.

import CLiveMemory
import CheckpointCore
import Glibc
import Threading
import Units

/// A place for one unit.
struct CopySlot: Quantity {
    var rawValue: UInt64
    init(_ rawValue: UInt64) { self.rawValue = rawValue }
}

/// A pool of slots. Thread-safe.
@safe final class CopySlots: @unchecked Sendable {
    private let base: UnsafeMutableRawPointer
    private let length: Int
    private let unitBytes: Int
    private let limit: Int
    private let state: Lock<State>

    private struct State {
        /// Given back, the last one first: its memory is in the caches.
        var free: [CopySlot] = []
        /// Slots that were ever out.
        var used = 0
        var isOut = 0
        var mostOut = 0
    }

    /// - Parameters:
    ///   - count: how many slots there are; address space is taken for them, memory when they are used.
    ///   - limit: how many of them may be out before their takers have to wait.
    ///   - provided: bytes that are there from the start, so that the first faults don't wait for memory.
    init(unit: ByteCount, count slotCount: Int, limit: Int, provided: ByteCount, place: String) throws(EngineError) {
        unitBytes = unit.int
        self.limit = max(1, limit)
        length = (slotCount * unit.int + (2 << 20) - 1) / (2 << 20) * (2 << 20)
        let memory = unsafe mmap(nil, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        guard let memory = unsafe memory, unsafe memory != MAP_FAILED else {
            throw EngineError(system: "find room for copies of \(slotCount) pages", errno, place: place)
        }
        unsafe base = memory
        state = Lock(State())
        unsafe madvise(memory, length, MADV_HUGEPAGE)
        let count = min(length, self.limit * unit.int, provided.int)
        if count > 0, unsafe ck_populate(memory, count, true) != 0 {
            unsafe munmap(memory, length)
            throw EngineError(.noMemory, "can't get \(count) bytes for copies of pages", remedy: "Free some memory.", place: place)
        }
    }

    deinit { unsafe munmap(base, length) }

    /// A free slot; nil when the limit is reached.
    /// - Parameter beyondLimit: for those who can't wait. There are as many slots as units, and each unit is copied once at most.
    func take(beyondLimit: Bool = false) -> CopySlot? {
        state.withLock { state in
            guard state.isOut < limit || beyondLimit else { return nil }
            state.isOut += 1
            state.mostOut = max(state.mostOut, state.isOut)
            if let slot = state.free.popLast() { return slot }
            state.used += 1
            return CopySlot(state.used - 1)
        }
    }

    func giveBack(_ slot: CopySlot) {
        state.withLock { state in
            state.free.append(slot)
            state.isOut -= 1
        }
    }

    /// The most slots that were out at once since this was asked last.
    func takeMostOut() -> Int {
        state.withLock { state in
            defer { state.mostOut = state.isOut }
            return state.mostOut
        }
    }

    /// The bytes of a slot that is out.
    func bytes(of slot: CopySlot) -> UnsafeMutableRawBufferPointer {
        unsafe UnsafeMutableRawBufferPointer(start: base + slot.int * unitBytes, count: unitBytes)
    }

    /// Gives memory beyond `kept` back to the system when no slot is out.
    func trim(to kept: ByteCount) {
        state.withLock { state in
            guard state.isOut == 0, state.used * unitBytes > kept.int else { return }
            let start = (kept.int + (2 << 20) - 1) / (2 << 20) * (2 << 20)
            if start < length { unsafe madvise(base + start, length - start, MADV_DONTNEED) }
            state.free.removeAll()
            state.used = 0
        }
    }
}
