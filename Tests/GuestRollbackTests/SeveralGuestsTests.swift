// Several guests at once, on threads of their own, rolled back alone.

import CheckpointCore
import FaultHarness
import Foundation
import GuestRollback
import MachineMemory
import Testing
import Threading
import Units

/// A guest of threads, with devices that answer when they like.
final class RunningGuest {
    let test: TestGuest<ThreadProcessor>
    private let servers: [MoodyServer]

    init(_ name: String, seed: UInt64, length: Int, processors: Int, options: GuestOptions = GuestOptions()) throws {
        let machines = (0..<processors).map { index in
            let layout = ToyLayout(index: ProcessorIndex(index), firstPage: index * 12, workPages: 8, devices: 2, firstSector: index * 32)
            return ToyMachine(layout: layout, seed: seed, length: length)
        }
        test = try TestGuest(machines, name: name, diskSectors: 32 * processors, mirrored: true, options: options) { ThreadProcessor($0) }
        servers = (test.devices + test.alternates).enumerated().map { MoodyServer($1, seed: seed &+ UInt64($0), mostMicroseconds: 200) }
    }

    func isHalted() throws -> Bool { try test.processors.allSatisfy { try $0.waitUntilHalted(milliseconds: 0) } }

    /// Checkpoints and rollbacks by chance until the guest has run its program; then everything has to be as if there had been none.
    func disturb(seed: UInt64, rollBacks: Int, isBreaking: Bool) throws {
        var random = SeededGenerator(seed: seed)
        try test.guest.checkpoint()
        var left = rollBacks
        let start = Date()
        while try !isHalted() || left > 0 {
            usleep(UInt32(random.below(1500)))
            if left > 0, random.chance(2, in: 5) {
                left -= 1
                try test.guest.rollBack()
            } else {
                try test.guest.checkpoint()
            }
            if isBreaking, left == rollBacks / 2, test.guest.failedDevices.isEmpty { test.devices[0].breakDown() }
            guard Date().timeIntervalSince(start) < 60 else { throw TestFailure("no end: \(test.guest.queueReport)") }
        }
        try test.guest.checkpoint()
        let devices = test.devices + test.alternates
        while devices.contains(where: { $0.waitingCount > 0 }) || !test.guest.queueReport.unfinished.isEmpty { usleep(100) }
        try test.settle()
        try test.check()
    }

    func close() {
        test.guest.close()
        for server in servers { server.end() }
        for processor in test.processors { processor.end() }
        test.close()
    }
}

@Suite(.serialized) struct SeveralGuestsTests {
    @Test func `properties 1 to 3, with threads: guests that are rolled back at the same time end like undisturbed ones`() async throws {
        let seed = Programme.seed()
        try await onPlainThread {
            let guests = try (0..<4).map { try RunningGuest("g\($0)", seed: seed &+ UInt64($0), length: 1500, processors: 1 + $0 % 2) }
            defer { for guest in guests { guest.close() } }
            let failures = Lock<[String]>([])
            let handed = Handed(guests)
            PlainThreads.run(4) { number in
                do { try handed.value[number].disturb(seed: seed ^ UInt64(number), rollBacks: 25, isBreaking: number == 3) } catch {
                    failures.withLock { $0.append("guest \(number): \(error)") }
                }
            }
            guard failures.withLock({ $0.isEmpty }) else { throw TestFailure("seed \(seed): \(failures.withLock { $0 })") }
            guard guests[3].test.guest.failedDevices.count == 1 else { throw TestFailure("no device has failed") }
        }
    }

    @Test func `property 1: a rollback of one guest neither stops nor changes another`() async throws {
        try await onPlainThread {
            let tests = try (0..<2).map { number in
                try TestGuest([ToyMachine(layout: ToyLayout(), seed: UInt64(number), length: 60)], name: "g\(number)") {
                    SteppedProcessor($0)
                }
            }
            defer { for test in tests { test.close() } }
            for test in tests { try test.guest.checkpoint() }
            for test in tests { for _ in 0..<20 where try test.processors[0].step() == .blocked {} }
            while tests[1].devices[0].waitingCount > 0 { tests[1].devices[0].complete(0) }
            try tests[1].settle()
            let (memory, machine) = (tests[1].memoryBytes, tests[1].processors[0].machine.encoded())
            let (pauses, queues) = (tests[1].processors[0].pauses.withLock { $0 }, tests[1].guest.queueReport)
            for _ in 0..<5 {
                try tests[0].guest.rollBack()
                for _ in 0..<20 where try tests[0].processors[0].step() == .blocked {}
            }
            guard tests[1].memoryBytes == memory, tests[1].processors[0].machine.encoded() == machine, tests[1].guest.queueReport == queues,
                tests[1].processors[0].pauses.withLock({ $0 }) == pauses
            else { throw TestFailure("the other guest has changed") }
        }
    }

    @Test func `a guest that waits for its own writes goes on by checkpoints at intervals`() async throws {
        try await onPlainThread {
            let guest = try RunningGuest("g", seed: 4, length: 500, processors: 2, options: GuestOptions(intervalMilliseconds: 1))
            defer { guest.close() }
            try guest.test.guest.checkpoint()
            for processor in guest.test.processors {
                guard try processor.waitUntilHalted(milliseconds: 30_000) else { throw TestFailure("no end: \(guest.test.guest.queueReport)") }
            }
            try guest.disturb(seed: 2, rollBacks: 0, isBreaking: false)
        }
    }

    @Test func `guests have names and devices of their own, and what comes from them is checked`() async throws {
        try await onPlainThread {
            let controller = GuestController()
            defer { controller.close() }
            func make(_ name: String, _ device: String) throws -> RollbackGuest {
                try controller.add(
                    name, memory: try GuestMemory(name, byteLength: .kibibytes(64)), processors: [IdleProcessor()],
                    devices: [try MirroredDevice(ManualDevice(device, [UInt8](repeating: 0, count: 4096)))],
                    options: GuestOptions(queueDepth: 3))
            }
            let guest = try make("a", "disk")
            guard failure({ _ = try make("a", "other") })?.code == .busy, failure({ _ = try make("b", "disk") })?.code == .busy else {
                throw TestFailure("taken twice")
            }
            guard failure({ try controller.rollBack("c") })?.code == .notFound else { throw TestFailure("a guest that is not there") }
            try controller.checkpoint("a")
            func code(
                _ operation: GuestRequest.Operation = .read, id: UInt64 = 1, device: UInt64 = 0, offset: UInt64 = 0, length: UInt64 = 512,
                address: UInt64 = 0, processor: UInt64 = 0
            ) -> EngineError.Code? {
                failure {
                    try guest.submit(
                        GuestRequest(
                            id: RequestID(id), operation, device: DeviceIndex(device), offset: DeviceOffset(offset),
                            byteLength: ByteCount(length),
                            address: GuestAddress(address), processor: ProcessorIndex(processor)))
                }?.code
            }
            let refused = [
                code(device: 1), code(processor: 1), code(offset: 4096), code(offset: UInt64.max - 511), code(length: 0), code(length: 100),
                code(offset: 1),
                code(length: 1 << 40), code(address: 64 << 10), code(address: UInt64.max), code(.write, address: (64 << 10) - 511),
                code(.flush),
            ]
            guard refused.allSatisfy({ $0 == .invalidInput }) else { throw TestFailure("\(refused)") }
            guard code(id: 1) == nil, code(id: 1) == .invalidInput, code(id: 2) == nil, code(.flush, id: 3, length: 0) == nil,
                code(id: 4) == .busy
            else {
                throw TestFailure("ids and depth")
            }
            guard failure({ try guest.put(1, at: 64 << 10) })?.code == .invalidInput else { throw TestFailure("a store beyond the end") }
            guard failure({ _ = try MirroredDevice(ManualDevice("x", [1, 2]), alternate: ManualDevice("y", [1])) })?.code == .mismatch
            else {
                throw TestFailure("a short alternate")
            }
            try controller.remove("a")
            _ = try make("b", "disk")
            guard controller.guests.map(\.name) == ["b"] else { throw TestFailure("names") }
        }
    }
}
