// A copy-on-write file's storage in memory, fast enough for hundreds of thousands of them, that fails on demand.

import CheckpointCore
import Threading
import Units
import VirtualDisks

final class MemoryStorage: CowStorage {
    enum Operation { case read, write, flush, remove }

    struct State {
        var bytes: [UInt8] = []
        /// Called with the kind and number (from 1) of each operation; what it answers is thrown.
        var fault: (@Sendable (Operation, Int) -> EngineError?)?
        var counts: [Operation: Int] = [:]
        var isRemoved = false
    }

    let name = "overlay"
    let state: Lock<State>

    init(_ bytes: [UInt8] = []) { state = Lock(State(bytes: bytes)) }

    var bytes: [UInt8] { state.withLock { $0.bytes } }
    var isRemoved: Bool { state.withLock { $0.isRemoved } }
    func setFault(_ fault: (@Sendable (Operation, Int) -> EngineError?)?) {
        state.withLock { state in
            state.fault = fault
            state.counts = [:]
        }
    }

    private func begin(_ operation: Operation) throws(EngineError) {
        let (fault, count) = state.withLock { state in
            state.counts[operation, default: 0] += 1
            return (state.fault, state.counts[operation]!)
        }
        if let error = fault?(operation, count) { throw error }
    }

    func read(at offset: MediumOffset, into buffer: UnsafeMutableRawBufferPointer) throws(EngineError) -> Int {
        try begin(.read)
        return state.withLock { state in
            let end = min(offset.int + buffer.count, state.bytes.count)
            guard offset.int < end else { return 0 }
            unsafe state.bytes[offset.int..<end].withUnsafeBytes { unsafe buffer.copyMemory(from: $0) }
            return end - offset.int
        }
    }

    func write(at offset: MediumOffset, _ bytes: UnsafeRawBufferPointer) throws(EngineError) {
        try begin(.write)
        state.withLock { state in
            let end = offset.int + bytes.count
            if state.bytes.count < end { state.bytes.append(contentsOf: repeatElement(0, count: end - state.bytes.count)) }
            unsafe state.bytes.withUnsafeMutableBytes { target in
                unsafe UnsafeMutableRawBufferPointer(rebasing: target[offset.int..<end]).copyMemory(from: bytes)
            }
        }
    }

    func flush() throws(EngineError) { try begin(.flush) }

    func remove() throws(EngineError) {
        try begin(.remove)
        state.withLock { $0.isRemoved = true }
    }
}
