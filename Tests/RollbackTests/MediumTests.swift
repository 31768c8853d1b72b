// Checkpoints on a medium: what a power cut, a failing call and damage leave of them.

import CheckpointCore
import FaultHarness
import Foundation
import MachineMemory
import Media
import PageCodec
import Rollback
import Testing
import Threading
import Units

/// The strategies that take a medium themselves.
let localKinds = RollbackStrategyKind.allCases.filter { $0 != .postImageRemote }

/// Device state that says what memory has to be with it: a number and a hash.
func describe(_ number: Int, _ memory: GuestMemory) -> [UInt8] {
    let hash = unsafe hash128(UnsafeRawBufferPointer(memory.bytes))
    return [UInt8(number & 255), UInt8(number >> 8)] + Array("\(hash)".utf8)
}

/// Opens what a medium holds and throws unless memory and state belong together. Returns the state's number.
func verifiedNumber(_ medium: any Medium) throws -> Int {
    let image = try RollbackImage.open(medium)
    let memory = try GuestMemory("ram", byteLength: image.byteLength)
    try image.restore(into: memory)
    try image.close()
    let number = Int(image.state[0]) | Int(image.state[1]) << 8
    try require(image.state == describe(number, memory), "memory is not that of checkpoint \(number)")
    return number
}

@Suite(.serialized) struct MediumTests {
    private static let pageCount = 20

    private static func options(_ medium: any Medium) -> RollbackOptions {
        var options = RollbackOptions()
        options.medium = medium
        options.stateCapacity = ByteCount(pageSize)
        return options
    }

    /// Writes a few pages, a whole page of zeros now and then.
    private static func scribble(_ random: inout SeededGenerator, _ memory: GuestMemory, _ count: Int) {
        for _ in 0..<count {
            let page = PageIndex(random.below(pageCount))
            let bytes = unsafe memory.bytes(of: page..<page + PageCount(UInt64(1)))
            if random.chance(1, in: 6) {
                unsafe bytes.initializeMemory(as: UInt8.self, repeating: 0)
            } else {
                unsafe bytes.storeBytes(of: random.next(), toByteOffset: random.below(500) * 8, as: UInt64.self)
            }
        }
    }

    @Test(arguments: localKinds)
    func `a power cut at any point leaves the last durable checkpoint or the one in flight`(_ kind: RollbackStrategyKind) async throws {
        let report = try await onPlainThread {
            let seed = newSeed()
            let device = SimulatedDevice(size: .zero)
            var explorer = CrashExplorer("rollback-\(kind)", seed: seed)
            explorer.plan.randomImageCount = 1000
            print("power cuts of \(kind): CKSTORE_TEST_SEED=\(seed)")
            return try explorer.explore(device) { device in
                let medium = FaultMedium(device)
                let memory = try GuestMemory("ram", byteLength: ByteCount(Self.pageCount * pageSize))
                var random = SeededGenerator(seed: seed)
                Self.scribble(&random, memory, 8)
                try withRollback(kind, memory, state: describe(0, memory), options: Self.options(medium)) { rollback in
                    device.mark("durable 0")
                    for number in 1..<5 {
                        Self.scribble(&random, memory, 4)
                        device.mark("begun \(number)")
                        try rollback.checkpoint(state: describe(number, memory))
                        try rollback.settle()
                        device.mark("durable \(number)")
                        if number == 2 { _ = try rollback.rollback() }
                    }
                }
                medium.close()
            } check: { image in
                let durable = image.marks.last { $0.hasPrefix("durable") }.map { Int($0.dropFirst(8))! }
                let begun = image.marks.last { $0.hasPrefix("begun") }.map { Int($0.dropFirst(6))! } ?? 0
                let medium = FaultMedium(image.device)
                defer { medium.close() }
                guard let durable else {
                    do {
                        try require(try verifiedNumber(medium) == 0, "too new")
                    } catch let error as EngineError
                        where [.notFound, .corrupt, .mismatch].contains(error.code) {}
                    return
                }
                let number = try verifiedNumber(medium)
                try require(number == durable || number == begun, "checkpoint \(number), durable \(durable), begun \(begun)")
            }
        }
        #expect(report.isReplay || report.imageCount > 200, "\(report)")
    }

    @Test func `property 3: a medium that fails at any call leaves the old checkpoint or the new one, here and there`() async throws {
        let fired = try await onPlainThread {
            let seed = newSeed()
            var fired = 0
            for kind in localKinds {
                for (operation, effect) in [
                    (OperationKind.write, FaultEffect.fail(.ioFailed, errno: EIO)), (.write, .shorten(to: ByteCount(700), .noSpace)),
                    (.flush, .failFlush(.mixed(seed: seed))), (.read, .fail(.ioFailed, errno: EIO)),
                ] {
                    for n in 1... {
                        do { guard try Self.runWithFault(kind, FaultRule(operation, .nth(n), effect), seed) else { break } } catch {
                            throw Mismatch("seed \(seed), \(kind), \(operation) \(n): \(error)")
                        }
                        fired += 1
                    }
                }
            }
            return fired
        }
        #expect(fired > 60)
    }

    /// False when the fault did not come: there were fewer calls.
    private static func runWithFault(_ kind: RollbackStrategyKind, _ rule: FaultRule, _ seed: UInt64) throws -> Bool {
        let device = SimulatedDevice(size: .zero)
        let medium = FaultMedium(device)
        let memory = try GuestMemory("ram", byteLength: ByteCount(pageCount * pageSize))
        var random = SeededGenerator(seed: seed)
        scribble(&random, memory, 8)
        var fired = false
        try withRollback(kind, memory, state: describe(0, memory), options: options(medium)) { rollback in
            scribble(&random, memory, 4)
            try rollback.checkpoint(state: describe(1, memory))
            try rollback.settle()
            scribble(&random, memory, 4)
            device.faults.add(rule)
            let isAcknowledged: Bool
            do throws(EngineError) {
                try rollback.checkpoint(state: describe(2, memory))
                // Written while the copying of strategies 1 and 4 may still be at work.
                scribble(&random, memory, 6)
                try rollback.settle()
                isAcknowledged = true
            } catch { isAcknowledged = false }
            scribble(&random, memory, 6)
            var state: [UInt8]
            do throws(EngineError) { state = try rollback.rollback() } catch { state = try rollback.rollback() }
            fired = device.faults.firedCount > 0
            device.faults.clear()
            let number = Int(state[0])
            try require(state == describe(number, memory), "memory is not that of checkpoint \(number)")
            try require(number == 2 || number == 1 && !isAcknowledged, "checkpoint \(number) stands, acknowledged: \(isAcknowledged)")
        }
        let there = try verifiedNumber(medium)
        try require(there == 1 || there == 2, "checkpoint \(there) on the medium")
        medium.close()
        return fired
    }

    @Test func `damage anywhere on a medium is an error or concerns nothing that is read`() async throws {
        try await onPlainThread {
            let seed = newSeed()
            var random = SeededGenerator(seed: seed)
            let device = SimulatedDevice(size: .zero)
            let medium = FaultMedium(device)
            let memory = try GuestMemory("ram", byteLength: ByteCount(Self.pageCount * pageSize))
            try withRollback(.postImageBitmap, memory, options: Self.options(medium)) { rollback in
                for number in 1..<4 {
                    Self.scribble(&random, memory, 12)
                    try rollback.checkpoint(state: describe(number, memory))
                }
            }
            var damaged = 0
            for offset in stride(from: random.below(97), to: device.size.int, by: 97) {
                let copy = device.fork()
                let handle = FaultMedium(copy)
                let byte = [device.bytes(at: MediumOffset(offset), count: 1)[0] ^ UInt8(1 << random.below(8))]
                try unsafe byte.withUnsafeBytes { try unsafe handle.write(at: MediumOffset(offset), $0) }
                do {
                    // One of two records of the newest checkpoint is enough.
                    try require(try verifiedNumber(handle) == 3, "seed \(seed), offset \(offset): an older checkpoint")
                } catch let error as EngineError {
                    try require(error.code == .corrupt || error.code == .mismatch, "seed \(seed), offset \(offset): \(error)")
                    damaged += 1
                }
                handle.close()
            }
            try require(damaged > 100, "seed \(seed): only \(damaged) damages were found")
        }
    }

    @Test func `a medium with other content is refused, one with an image of this memory goes on`() async throws {
        try await onPlainThread {
            let memory = try GuestMemory("ram", byteLength: ByteCount(Self.pageCount * pageSize))
            let other = try GuestMemory("ram", byteLength: ByteCount(2 * Self.pageCount * pageSize))
            let device = SimulatedDevice(size: .mebibytes(1))
            let medium = FaultMedium(device)
            let text = Array("something else".utf8)
            try unsafe text.withUnsafeBytes { try unsafe medium.write(at: .zero, $0) }
            try requireRefusal(.mismatch) { try withRollback(.preImageLog, memory, options: Self.options(medium)) { _ in } }
            try requireRefusal(.mismatch) { _ = try RollbackImage.open(medium) }
            var options = Self.options(medium)
            options.replacesContent = true
            try withRollback(.preImageLog, memory, state: describe(1, memory), options: options) { _ in
                let second = FaultMedium(device)
                try requireRefusal(.busy) { _ = try RollbackImage.open(second) }
            }
            try requireRefusal(.mismatch) { try withRollback(.postImageBitmap, other, options: Self.options(medium)) { _ in } }
            try require(try verifiedNumber(medium) == 1, "it was changed")
            unsafe memory.bytes[5] = 5
            try withRollback(.postImageBitmap, memory, state: describe(2, memory), options: Self.options(medium)) { _ in }
            try require(try verifiedNumber(medium) == 2, "it does not go on")
            let epoch = try RollbackImage.open(medium).epoch
            try require(epoch == RollbackEpoch(UInt64(2)), "epoch \(epoch)")
        }
    }
}

func requireRefusal(_ code: EngineError.Code, _ body: () throws -> Void) throws {
    do { try body() } catch let error as EngineError {
        return try require(error.code == code && (!error.remedy.isEmpty || error.code == .cancelled), "\(error.code) instead of \(code): \(error)")
    }
    throw Mismatch("nothing was thrown where \(code) was expected")
}
