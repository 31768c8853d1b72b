// Requests that are under way when a machine is stopped.

import CheckpointCore
import FaultHarness
import Glibc
import MachineMemory
import ReferenceMachine
import Testing
import Threading
import Units

/// A machine that has been stopped while its disk was holding all the requests that its guest has under way.
private struct Scene {
    static let requests = 40
    /// Where the guest's status words are.
    static let statusOffset = 0x20400

    let seed: UInt64
    let memory: GuestMemory
    let disk: TestDisk
    let machine: ReferenceMachine

    /// - Parameter request: the one from which on the disk holds them, counted from 1.
    init(seed: UInt64, holdingFrom request: Int) throws {
        self.seed = seed
        memory = try Workload.memory()
        disk = TestDisk(Workload.diskContent(seed), seed: seed)
        machine = try ReferenceMachine("pending", memory: [memory], disks: [disk], program: Workload.disk(Self.requests, seed))
        disk.hold(from: request)
        machine.resume()
        while disk.submittedCount < request { usleep(100) }
        // The guest goes on until it waits for one of the requests that are held.
        usleep(10_000)
        machine.pause()
        try require(disk.waitingCount > 0, "nothing is pending")
    }

    func close() {
        machine.close()
        disk.close()
    }

    /// The guest's status words.
    var statuses: [UInt32] { (0..<4).map { memory.word(Self.statusOffset + $0 * 16) } }

    var model: (output: String, processors: [DiskModel]) { Workload.model(Self.requests, seed) }
}

extension ReferenceMachineTests {
    @Suite(.serialized) struct PendingRequestTests {
        @Test func `while a machine is paused, its guest is not told of completions; it is when it goes on`() async throws {
            let seed = printedSeed()
            try await onPlainThread {
                let scene = try Scene(seed: seed, holdingFrom: 12)
                defer { scene.close() }
                let before = scene.statuses
                scene.disk.setHeld(false)
                scene.disk.drain()
                usleep(1000)
                try require(scene.statuses == before && before.contains(0), "status words were \(before) and are \(scene.statuses)")
                try scene.machine.finish()
                try require(scene.machine.printed == scene.model.output, "printed \(scene.machine.printed), not \(scene.model.output)")
            }
        }

        @Test func `requests that were pending are completed by the restore, and never executed again`() async throws {
            let seed = printedSeed()
            try await onPlainThread {
                for round in 0..<4 {
                    let scene = try Scene(seed: seed &+ UInt64(round), holdingFrom: 4 + round * 6)
                    defer { scene.close() }
                    let submitted = scene.disk.submittedCount
                    let taken = try scene.machine.deviceState()
                    scene.disk.setHeld(false)
                    scene.disk.drain()
                    let saved = try SavedMachine(scene.machine, scene.memory, [scene.disk])
                    // What was saved while the requests were under way is as good once they have succeeded.
                    for state in [saved.state, taken] {
                        var saved = saved
                        saved.state = state
                        let (printed, disk, count) = try saved.restore(.shared, seed: seed) { machine, _, disks in
                            try machine.finish()
                            return (machine.printed, disks[0].content, disks[0].submittedCount)
                        }
                        let model = scene.model
                        try require(printed == model.output && disk == model.processors[0].disk, "printed \(printed), not \(model.output)")
                        let all = try Self.submittedWithoutDisturbance(scene.seed)
                        try require(submitted + count == all, "\(submitted) requests before, \(count) after the restore, \(all) without")
                    }
                }
            }
        }

        @Test func `a request that fails after the state was taken is restored as failed`() async throws {
            let seed = printedSeed()
            try await onPlainThread {
                let scene = try Scene(seed: seed, holdingFrom: 8)
                defer { scene.close() }
                let taken = try scene.machine.deviceState()
                scene.machine.resume()
                scene.disk.setFails(true)
                scene.disk.setHeld(false)
                var settled: [UInt8]?
                while settled == nil {
                    do throws(EngineError) { settled = try scene.machine.settledDeviceState(taken) } catch {
                        try require(error.code == .busy, "\(error)")
                        scene.disk.setHeld(true)
                        scene.disk.setHeld(false)
                    }
                }
                try require(settled != taken, "the failures were not recorded")
            }
        }

        @Test func `the restored guest sees the failure that the running one saw`() async throws {
            let seed = printedSeed()
            try await onPlainThread {
                let scene = try Scene(seed: seed, holdingFrom: 8)
                defer { scene.close() }
                let taken = try scene.machine.deviceState()
                do throws(EngineError) {
                    _ = try scene.machine.settledDeviceState(taken)
                    throw EngineError(.invalidInput, "a state with pending requests is settled")
                } catch { try require(error.code == .busy, "\(error)") }
                scene.disk.setFails(true)
                scene.disk.setHeld(false)
                scene.disk.drain()
                scene.disk.setFails(false)
                let saved = try SavedMachine(scene.machine, scene.memory, [scene.disk])
                try scene.machine.finish()
                try require(scene.machine.printed != scene.model.output, "the failure makes no difference")
                let ending = Ending(scene.machine, scene.memory, [scene.disk])
                try saved.restore(.shared, seed: seed) { machine, memory, disks in
                    try machine.finish()
                    if let difference = Ending(machine, memory, disks).difference(from: ending) { throw TestFailure(difference) }
                }
            }
        }

        @Test func `a state is settled by the machine that it was taken of, and its last one`() async throws {
            let seed = printedSeed()
            try await onPlainThread {
                let scene = try Scene(seed: seed, holdingFrom: 8)
                defer { scene.close() }
                let old = try scene.machine.deviceState()
                scene.disk.hold(from: 20)
                scene.machine.resume()
                while scene.disk.submittedCount < 20 { usleep(100) }
                scene.machine.pause()
                _ = try scene.machine.deviceState()
                do throws(EngineError) {
                    _ = try scene.machine.settledDeviceState(old)
                    throw EngineError(.busy, "an old state was settled")
                } catch { try require(error.code == .invalidInput, "\(error)") }
            }
        }

        @Test func `a closed machine's memory gets no status words`() async throws {
            let seed = printedSeed()
            try await onPlainThread {
                let scene = try Scene(seed: seed, holdingFrom: 8)
                defer { scene.disk.close() }
                let before = scene.statuses
                scene.machine.resume()
                scene.machine.close()
                scene.machine.close()
                scene.disk.setHeld(false)
                scene.disk.drain()
                usleep(1000)
                try require(scene.statuses == before, "status words were \(before) and are \(scene.statuses)")
            }
        }

        @Test func `status words trap, data does not`() async throws {
            let seed = printedSeed()
            try await onPlainThread {
                let scene = try Scene(seed: seed, holdingFrom: 12)
                defer { scene.close() }
                let before = scene.statuses
                // The status words at the first write to each page.
                let written = Lock([PageIndex: [UInt32]]())
                let trap = try WriteTrap(scene.memory) { page, trap in
                    written.withLock { $0[page] = $0[page] ?? scene.statuses }
                    try! trap.release(page..<page + PageCount(1))
                }
                defer { trap.close() }
                try trap.protect(scene.memory.allPages)
                scene.disk.setHeld(false)
                scene.disk.drain()
                usleep(1000)
                try require(written.withLock { $0.isEmpty }, "reads trapped at \(written.withLock { $0 })")
                try scene.machine.finish()
                let seen = written.withLock { $0[PageIndex(Scene.statusOffset / pageSize)] }
                try require(seen == before, "status words were \(before), at the first write that was trapped \(seen ?? [])")
                try require(scene.machine.printed == scene.model.output, "printed \(scene.machine.printed)")
            }
        }

        @Test func `a pause waits for requests that are just being issued`() async throws {
            let seed = printedSeed()
            try await onPlainThread {
                let disks = Workload.disks(2, seed)
                defer { for disk in disks { disk.close() } }
                let machine = try ReferenceMachine(
                    "issuing", memory: [try Workload.memory()], disks: disks, virtualCPUCount: 2, program: Workload.disk(100, seed))
                defer { machine.close() }
                for disk in disks { disk.setSubmitMicroseconds(3000) }
                machine.resume()
                for _ in 0..<20 {
                    usleep(2000)
                    machine.pause()
                    try require(disks.allSatisfy { !$0.isSubmitting }, "a processor is issuing a request during the pause")
                    machine.resume()
                }
                for disk in disks { disk.setSubmitMicroseconds(0) }
                try require(try machine.waitUntilHalted(milliseconds: 60_000), "the guest does not come to its end")
                let expected = Workload.model(100, seed, disks: 2).output
                try require(machine.printed == expected, "printed \(machine.printed), not \(expected)")
            }
        }

        private static func submittedWithoutDisturbance(_ seed: UInt64) throws -> Int {
            let disk = TestDisk(Workload.diskContent(seed), seed: seed)
            defer { disk.close() }
            let program = Workload.disk(Scene.requests, seed)
            let machine = try ReferenceMachine("undisturbed", memory: [try Workload.memory()], disks: [disk], program: program)
            defer { machine.close() }
            try machine.finish()
            return disk.submittedCount
        }
    }
}
