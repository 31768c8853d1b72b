// Device states that are damaged, foreign or made up are refused, each with an error that says what is wrong.

import CheckpointCore
import FaultHarness
import MachineMemory
import PageCodec
import ReferenceMachine
import Testing
import Units

extension ReferenceMachineTests {
    @Suite(.serialized) struct StateTests {
        /// Where the checksum is, and what it covers: everything behind it.
        private static let checksumRange = 24..<40

        @Test func `a state that is cut, longer, or has a flipped bit is refused`() async throws {
            let seed = printedSeed()
            try await onPlainThread {
                let state = try Self.state(seed)
                var random = SeededGenerator(seed: seed)
                let lengths = Array(0..<64) + (0..<200).map { _ in random.below(state.count) }
                for length in lengths { try Self.expectRefusal(Array(state.prefix(length)), [.corrupt]) }
                try Self.expectRefusal(state + [0], [.corrupt])
                try Self.expectRefusal(Array(repeating: 0, count: 17 << 20), [.corrupt])
                let bits = Array(0..<40 * 8) + (0..<500).map { _ in random.below(state.count * 8) }
                for bit in bits {
                    var damaged = state
                    damaged[bit / 8] ^= 1 << (bit % 8)
                    try Self.expectRefusal(damaged, (8..<12).contains(bit / 8) ? [.unsupported] : [.corrupt])
                }
            }
        }

        @Test func `a state with wrong content under a right checksum is refused or harmless`() async throws {
            let seed = printedSeed()
            try await onPlainThread {
                let state = try Self.state(seed)
                var random = SeededGenerator(seed: seed)
                var refusals = 0
                for _ in 0..<500 {
                    var made = state
                    for _ in 0...random.below(3) {
                        let place = random.below(made.count - Self.checksumRange.upperBound)
                        made[Self.checksumRange.upperBound + place] = UInt8(truncatingIfNeeded: random.next())
                    }
                    Self.sign(&made)
                    do throws(EngineError) {
                        let machine = try Self.restored(made)
                        machine.close()
                    } catch {
                        refusals += 1
                        try require([.corrupt, .mismatch, .unsupported, .invalidInput].contains(error.code), "\(error)")
                    }
                }
                print("\(refusals) of 500 were refused")
                try require(refusals > 10, "only \(refusals) were refused")
            }
        }

        @Test func `counts and lengths of a state are believed only when the bytes are there`() async throws {
            let seed = printedSeed()
            try await onPlainThread {
                let state = try Self.state(seed)
                // Every aligned place may hold a count: the largest ones must neither crash nor take memory.
                let head = Self.checksumRange.upperBound..<200
                for offset in Array(head) + Array(stride(from: 3000, to: 4000, by: 4)) + Array(state.count - 400..<state.count - 4) {
                    var made = state
                    made.replaceSubrange(offset..<offset + 4, with: [0xff, 0xff, 0xff, 0xff])
                    Self.sign(&made)
                    if let machine = try? Self.restored(made) { machine.close() }
                }
            }
        }

        @Test func `a state does not fit other memory or disks`() async throws {
            let seed = printedSeed()
            try await onPlainThread {
                let state = try Self.state(seed)
                let right = try Workload.memory()
                let small = try GuestMemory("ram", byteLength: .mebibytes(2))
                let disk = TestDisk(Workload.diskContent(seed), seed: seed)
                let other = TestDisk(Array(repeating: 0, count: 512), seed: seed)
                defer {
                    disk.close()
                    other.close()
                }
                let wrong: [([GuestMemory], [TestDisk])] = [
                    ([small], [disk]), ([right, small], [disk]), ([right], []), ([right], [other]), ([right], [disk, disk]),
                ]
                for (memory, disks) in wrong {
                    do throws(EngineError) {
                        let machine = try ReferenceMachine(restoring: state, "other", memory: memory, disks: disks)
                        machine.close()
                        throw EngineError(.corrupt, "it was restored into \(memory.count) pieces of memory with \(disks.count) disks")
                    } catch { try require(error.code == .mismatch && !error.remedy.isEmpty, "\(error)") }
                }
            }
        }

        @Test func `a guest is not restored where the processors lack what it was told of`() async throws {
            let seed = printedSeed()
            try await onPlainThread {
                var state = try Self.state(seed)
                // Counts and lengths of memory and disks, then the length of the entries; EDX of leaf 1 has promised bit 10, which no
                // processor has.
                let entries = Self.checksumRange.upperBound + (4 + 8) + (4 + 8) + 4
                let leaf = stride(from: entries, to: entries + 40 * 200, by: 40).first { Array(state[$0..<$0 + 4]) == [1, 0, 0, 0] }
                state[leaf! + 24 + 1] |= 1 << 2
                Self.sign(&state)
                try Self.expectRefusal(state, [.mismatch])
            }
        }

        /// Of a machine whose disk holds some requests.
        private static func state(_ seed: UInt64) throws -> [UInt8] {
            let disk = TestDisk(Workload.diskContent(seed), seed: seed)
            disk.setHeld(true)
            defer { disk.close() }
            let machine = try ReferenceMachine("state", memory: [try Workload.memory()], disks: [disk], program: Workload.disk(20, seed))
            defer { machine.close() }
            try machine.sendSerialInput([1, 2, 3])
            machine.resume()
            while disk.waitingCount < 3 {}
            machine.pause()
            return try machine.deviceState()
        }

        private static func restored(_ state: [UInt8]) throws(EngineError) -> ReferenceMachine {
            let memory = try GuestMemory("ram", byteLength: Workload.memoryLength)
            return try ReferenceMachine(restoring: state, "restored", memory: [memory], disks: [IdleDisk()])
        }

        private static func expectRefusal(_ state: [UInt8], _ codes: [EngineError.Code]) throws {
            do throws(EngineError) {
                let machine = try restored(state)
                machine.close()
            } catch {
                return try require(codes.contains(error.code) && !error.remedy.isEmpty, "\(error)")
            }
            throw TestFailure("a state of \(state.count) bytes was taken")
        }

        private static func sign(_ state: inout [UInt8]) {
            let checksum = unsafe hash128(state.span.bytes.extracting(droppingFirst: checksumRange.upperBound))
            for byte in 0..<8 {
                state[checksumRange.lowerBound + byte] = UInt8(truncatingIfNeeded: checksum.low >> (byte * 8))
                state[checksumRange.lowerBound + 8 + byte] = UInt8(truncatingIfNeeded: checksum.high >> (byte * 8))
            }
        }
    }
}

/// A disk for machines that never run.
private struct IdleDisk: DMADisk {
    var byteLength: ByteCount { Workload.diskLength }

    func submit(
        _ operation: DMAOperation, at offset: ByteCount, _ buffer: DMABuffer?,
        completion: @escaping @Sendable (Result<Void, EngineError>) -> Void
    ) { preconditionFailure("the machine does not run") }
}
