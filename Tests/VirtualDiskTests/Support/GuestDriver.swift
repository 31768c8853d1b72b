// Threads that use a disk as a guest would, each with sectors of its own, and know what has to be there.
//
// Invariant: while the machine stands still, no driver submits anything, and `expected` is what the disk has once everything that was
// submitted is done.

import CheckpointCore
import FaultHarness
import MachineMemory
import Threading
import Units
import VirtualDisks

/// Lets drivers go on or stand still.
final class Gate: Sendable {
    private let state = Lock((isClosed: false, inside: 0, isOver: false))

    /// False when it is over.
    func enter() -> Bool {
        state.waitFor { state in
            if state.isOver { return false }
            guard !state.isClosed else { return nil }
            state.inside += 1
            return true
        }
    }

    func leave() {
        state.withLock { $0.inside -= 1 }
        state.wake()
    }

    /// Returns when nobody is inside; nobody enters until it is opened.
    func close() {
        state.withLock { $0.isClosed = true }
        state.waitFor { $0.inside == 0 ? () : nil }
    }

    func open() {
        state.withLock { $0.isClosed = false }
        state.wake()
    }

    func end() {
        state.withLock { $0.isOver = true }
        state.wake()
    }
}

/// One driver: owns every sector whose number leaves its own when divided by the number of drivers.
final class GuestDriver: Sendable {
    struct State {
        var versions: [UInt32]
        var generator: SeededGenerator
        var freeSlots: [Int]
        var nextVersion: UInt32 = 0
        var doneCount = 0
        var failure: String?
    }

    static let slotCount = 8
    private let disk: VirtualDisk
    private let memory: GuestMemory
    private let number: Int
    private let driverCount: Int
    private let state: Lock<State>

    init(_ disk: VirtualDisk, _ memory: GuestMemory, number: Int, of driverCount: Int, seed: UInt64) {
        self.disk = disk
        self.memory = memory
        self.number = number
        self.driverCount = driverCount
        let count = disk.geometry.diskLength.int / sectorSize / driverCount
        state = Lock(
            State(
                versions: Array(repeating: 0, count: count), generator: SeededGenerator(seed: seed, UInt64(number)),
                freeSlots: Array(0..<Self.slotCount)))
    }

    var failure: String? { state.withLock { $0.failure } }
    var doneCount: Int { state.withLock { $0.doneCount } }

    /// Puts what its sectors have to hold into a whole disk's content.
    func fill(_ content: inout [UInt8]) {
        for (index, version) in state.withLock({ $0.versions }).enumerated() {
            let start = (index * driverCount + number) * sectorSize
            content.replaceSubrange(start..<start + sectorSize, with: SectorHistory.sector(version))
        }
    }

    func run(_ gate: Gate) {
        while gate.enter() {
            step()
            gate.leave()
        }
    }

    private func step() {
        // Waits for a slot inside of the gate: completions come without the machine.
        let (slot, index, chance) = state.waitFor { state -> (Int, Int, Int)? in
            guard let slot = state.freeSlots.popLast() else { return nil }
            return (slot, state.generator.below(state.versions.count), state.generator.below(20))
        }
        let address = (number * Self.slotCount + slot) * sectorSize
        let buffer = GuestBuffer(memory, offset: ByteCount(address), byteCount: ByteCount(sectorSize))
        let offset = DiskOffset((index * driverCount + number) * sectorSize)
        if chance == 0 {
            disk.submit(.flush { self.done(slot, $0, nil) })
        } else if chance < 10 {
            let expected = state.withLock { $0.versions[index] }
            disk.submit(DiskRequest(.read, at: offset, buffer) { self.done(slot, $0, (address, expected)) })
        } else {
            let version = state.withLock { state in
                state.nextVersion += 1
                state.versions[index] = state.nextVersion
                return state.nextVersion
            }
            unsafe memory.bytes[address...].withRebased { unsafe $0.copyBytes(from: SectorHistory.sector(version)) }
            disk.submit(DiskRequest(.write, at: offset, buffer) { self.done(slot, $0, nil) })
        }
    }

    private func done(_ slot: Int, _ result: Result<Void, EngineError>, _ read: (address: Int, version: UInt32)?) {
        var problem: String?
        if case .failure(let error) = result { problem = "\(error)" }
        if problem == nil, let (address, version) = read {
            let bytes = unsafe [UInt8](memory.bytes[address..<address + sectorSize])
            if bytes != SectorHistory.sector(version) { problem = "driver \(number) reads \(bytes[..<4]), not version \(version)" }
        }
        state.withLock { state in
            state.failure = state.failure ?? problem
            state.freeSlots.append(slot)
            state.doneCount += 1
        }
        state.wake()
    }
}

extension Slice where Base == UnsafeMutableRawBufferPointer {
    func withRebased(_ body: (UnsafeMutableRawBufferPointer) -> Void) { unsafe body(UnsafeMutableRawBufferPointer(rebasing: self)) }
}
