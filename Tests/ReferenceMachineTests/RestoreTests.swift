// A machine that was saved, destroyed and restored goes on as if nothing had happened.

import CheckpointCore
import FaultHarness
import Glibc
import MachineMemory
import ReferenceMachine
import Testing
import Units

/// One of the programs that are stopped and brought back.
private struct Case: Sendable, CustomStringConvertible {
    var processors: Int
    /// Of each processor, with a disk of its own; nil: the counter.
    var diskRequests: Int?
    var sharing: GuestMemory.Sharing

    var description: String { "\(processors) processors, \(sharing) memory, " + (diskRequests.map { "\($0) disk requests" } ?? "counter") }

    var diskCount: Int { diskRequests == nil ? 0 : processors }

    func program(_ seed: UInt64) -> GuestProgram { diskRequests.map { Workload.disk($0, seed) } ?? Workload.counter(6, 1500, seed) }

    func expectedOutput(_ seed: UInt64) -> String {
        diskRequests.map { Workload.model($0, seed, disks: processors).output }
            ?? Workload.model(processors: processors, 6, 1500, seed).output
    }
}

extension ReferenceMachineTests {
    @Suite(.serialized) struct RestoreTests {
        @Test func `saved, destroyed and restored again and again at random moments, a machine ends as an undisturbed one`() async throws {
            let seed = printedSeed()
            try await onPlainThread {
                for sharing in GuestMemory.Sharing.allCases {
                    for work in [Case(processors: 1, sharing: sharing), Case(processors: 2, sharing: sharing),
                        Case(processors: 1, diskRequests: 150, sharing: sharing), Case(processors: 2, diskRequests: 100, sharing: sharing)]
                    {
                        let undisturbed = try Self.run(work, seed)
                        let output = String(decoding: undisturbed.output, as: UTF8.self)
                        try require(output == work.expectedOutput(seed), "\(work): undisturbed, it printed \(output)")
                        let (disturbed, lives) = try Self.runInManyLives(work, seed)
                        if let difference = disturbed.difference(from: undisturbed) {
                            throw TestFailure("\(work), \(lives) lives: \(difference)")
                        }
                        try require(lives >= 3, "\(work): only \(lives) lives, nothing was shown")
                    }
                }
            }
        }

        @Test func `a paused machine does not change, and its state is the same each time`() async throws {
            let seed = printedSeed()
            try await onPlainThread {
                let memory = try Workload.memory()
                let disks = Workload.disks(2, seed)
                defer { for disk in disks { disk.close() } }
                let machine = try ReferenceMachine(
                    "disks", memory: [memory], disks: disks, virtualCPUCount: 2, program: Workload.disk(300, seed))
                defer { machine.close() }
                machine.resume()
                for _ in 0..<20 {
                    usleep(2000)
                    machine.pause()
                    for disk in disks { disk.drain() }
                    let first = (state: try machine.deviceState(), memory: memory.content)
                    usleep(1000)
                    let second = (state: try machine.deviceState(), memory: memory.content)
                    // The time stamp counter goes on; everything else is the same.
                    try require(first.memory == second.memory && first.state.count == second.state.count, "a paused machine has changed")
                    let differing = zip(first.state.dropFirst(40), second.state.dropFirst(40)).count { $0 != $1 }
                    try require(differing <= 16, "\(differing) bytes of the state have changed")
                    machine.resume()
                }
            }
        }

        @Test func `processors are stopped and let go thousands of times, and no kick is lost`() async throws {
            let seed = printedSeed()
            try await onPlainThread {
                var random = SeededGenerator(seed: seed)
                let machine = try ReferenceMachine(
                    "counter", memory: [try Workload.memory()], virtualCPUCount: 2, program: Workload.counter(20, 3000, seed))
                defer { machine.close() }
                var pauses = 0
                var longest = Duration.zero
                var sum = Duration.zero
                machine.resume()
                while try !machine.waitUntilHalted(milliseconds: 0) {
                    let took = ContinuousClock().measure { machine.pause() }
                    longest = max(longest, took)
                    sum += took
                    pauses += 1
                    machine.resume()
                    if random.chance(1, in: 4) { usleep(UInt32(random.below(500))) }
                }
                let model = Workload.model(processors: 2, 20, 3000, seed)
                try require(machine.printed == model.output, "printed \(machine.printed), not \(model.output)")
                try require(pauses > 100, "only \(pauses) pauses")
                print("\(pauses) pauses, \(sum / pauses) each, at most \(longest)")
            }
        }

        @Test func `a machine that has halted is restored as halted`() async throws {
            let seed = printedSeed()
            try await onPlainThread {
                let memory = try Workload.memory()
                let machine = try ReferenceMachine("counter", memory: [memory], virtualCPUCount: 2, program: Workload.counter(1, 10, seed))
                try machine.finish()
                machine.pause()
                let saved = try SavedMachine(machine, memory)
                let count = machine.serialOutputCount
                machine.close()
                try saved.restore(.shared, seed: seed) { machine, _, _ in
                    try machine.finish()
                    let isSilent = machine.serialOutput.isEmpty && machine.serialOutputCount == count
                    try require(isSilent, "a halted machine has printed \(machine.printed)")
                }
            }
        }

        @Test func `what was sent to the serial port and not read is restored`() async throws {
            try await onPlainThread {
                let memory = try Workload.memory()
                let machine = try ReferenceMachine("echo", memory: [memory], program: .echo())
                try machine.sendSerialInput(Array("abc.".utf8))
                let saved = try SavedMachine(machine, memory)
                machine.close()
                try saved.restore(.anonymous, seed: 0) { machine, _, _ in
                    try machine.finish()
                    try require(machine.printed == "ABC", "printed \(machine.printed)")
                }
            }
        }

        @Test func `a guest that does nothing but port accesses loses none and repeats none`() async throws {
            let seed = printedSeed()
            try await onPlainThread {
                var random = SeededGenerator(seed: seed)
                let text = (0..<12000).map { _ in UInt8(ascii: "A") + UInt8(random.below(26)) }
                let memory = try Workload.memory()
                let machine = try ReferenceMachine("ports", memory: [memory], program: .echo())
                try machine.sendSerialInput(text + [UInt8(ascii: ".")])
                var saved = try SavedMachine(machine, memory)
                machine.close()
                var printed: [UInt8] = []
                var lives = 0
                var isHalted = false
                while !isHalted {
                    try saved.restore(.anonymous, seed: 0) { machine, memory, _ in
                        machine.resume()
                        if lives > 25 { usleep(UInt32(random.below(1000))) }
                        isHalted = try machine.waitUntilHalted(milliseconds: 0)
                        machine.pause()
                        saved = try SavedMachine(machine, memory)
                        printed += machine.serialOutput
                        lives += 1
                    }
                }
                try require(printed == text.map { $0 ^ 0x20 }, "\(lives) lives: printed \(printed.count) of \(text.count) bytes, or others")
                try require(lives > 20, "only \(lives) lives, nothing was shown")
                print("\(lives) lives")
            }
        }

        private static func run(_ work: Case, _ seed: UInt64) throws -> Ending {
            let memory = try Workload.memory(work.sharing)
            let disks = Workload.disks(work.diskCount, seed)
            defer { for disk in disks { disk.close() } }
            let machine = try ReferenceMachine(
                "undisturbed", memory: [memory], disks: disks, virtualCPUCount: work.processors, program: work.program(seed))
            defer { machine.close() }
            try machine.finish()
            return Ending(machine, memory, disks)
        }

        /// Pauses the machine at random moments and goes on in a new one each time.
        private static func runInManyLives(_ work: Case, _ seed: UInt64) throws -> (Ending, lives: Int) {
            var random = SeededGenerator(seed: seed, 1)
            var printed: [UInt8] = []
            var lives = 1
            let first = try Workload.memory(work.sharing)
            let disks = Workload.disks(work.diskCount, seed)
            defer { for disk in disks { disk.close() } }
            let machine = try ReferenceMachine(
                "first", memory: [first], disks: disks, virtualCPUCount: work.processors, program: work.program(seed))
            var saved = try SavedMachine(machine, first, disks)
            machine.close()
            while true {
                let ending: Ending? = try saved.restore(work.sharing, seed: random.next()) { machine, memory, disks in
                    machine.resume()
                    // The first lives are short, so that there are some.
                    if lives > 3 { usleep(UInt32(random.below(30_000))) }
                    if try machine.waitUntilHalted(milliseconds: 0) { return Ending(machine, memory, disks, printedBefore: printed) }
                    machine.pause()
                    saved = try SavedMachine(machine, memory, disks)
                    printed += machine.serialOutput
                    lives += 1
                    return nil
                }
                if let ending { return (ending, lives) }
            }
        }
    }
}
