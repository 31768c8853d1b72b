// Guests run on every kind of memory, and compute what they should.

import CheckpointCore
import FaultHarness
import Glibc
import MachineMemory
import ReferenceMachine
import Testing
import Threading
import Units
import VirtualDisks

extension ReferenceMachineTests {
    @Suite(.serialized) struct GuestTests {
        @Test(arguments: GuestMemory.Sharing.allCases, [GuestMemory.Pages.base, .transparentHuge])
        func `processors write into memory what a model does`(_ sharing: GuestMemory.Sharing, _ pages: GuestMemory.Pages) async throws {
            let seed = printedSeed()
            try await onPlainThread {
                for processors in 1...3 {
                    let memory = try Workload.memory(sharing, pages)
                    let machine = try ReferenceMachine(
                        "counter", memory: [memory], virtualCPUCount: processors, program: Workload.counter(5, 500, seed))
                    defer { machine.close() }
                    try machine.finish()
                    let model = Workload.model(processors: processors, 5, 500, seed)
                    try require(machine.printed == model.output, "\(processors): printed \(machine.printed), not \(model.output)")
                    let start = GuestProgram.workAddress.int
                    let words = unsafe UnsafeRawBufferPointer(
                            rebasing: UnsafeRawBufferPointer(memory.bytes)[start..<start + model.words.count * 8])
                    try require(unsafe Array(words.bindMemory(to: UInt64.self)) == model.words, "memory differs")
                }
            }
        }

        @Test func `a guest reads and writes its disk as a model does, whatever the order of completions`() async throws {
            let seed = printedSeed()
            try await onPlainThread {
                for round in UInt64(0)..<8 {
                    let seed = seed &+ round
                    let count = Int(round % 3) + 1
                    let memory = try Workload.memory(round % 2 == 0 ? .shared : .anonymous)
                    let disks = Workload.disks(count, seed)
                    defer { for disk in disks { disk.close() } }
                    let machine = try ReferenceMachine(
                        "disks", memory: [memory], disks: disks, virtualCPUCount: count, program: Workload.disk(100, seed))
                    defer { machine.close() }
                    try machine.finish()
                    let model = Workload.model(100, seed, disks: count)
                    try require(machine.printed == model.output, "printed \(machine.printed), not \(model.output)")
                    for (index, processor) in model.processors.enumerated() {
                        try require(disks[index].content == processor.disk, "disk \(index) differs")
                        let start = GuestProgram.workAddress.int + index * processor.memory.count
                        let buffers = memory.content(start..<start + processor.memory.count)
                        try require(buffers == processor.memory, "buffers of disk \(index) differ")
                    }
                }
            }
        }

        @Test func `memory may have several pieces, and reach further than one table of pages`() async throws {
            let seed = printedSeed()
            try await onPlainThread {
                // Parts of five processors, across the border of two pieces.
                let low = try GuestMemory("low", byteLength: .mebibytes(2))
                let pieces = [low, try GuestMemory("high", byteLength: .mebibytes(2), sharing: .shared)]
                let machine = try ReferenceMachine("pieces", memory: pieces, virtualCPUCount: 5, program: Workload.counter(2, 100, seed))
                defer { machine.close() }
                try machine.finish()
                let expected = Workload.model(processors: 5, 2, 100, seed).output
                try require(machine.printed == expected, "printed \(machine.printed), not \(expected)")
                // mov qword ptr [0x60000000], 0x55; hlt
                let code: [UInt8] = [0x48, 0xc7, 0x04, 0x25, 0, 0, 0, 0x60, 0x55, 0, 0, 0, 0xf4]
                let large = try GuestMemory("large", byteLength: .mebibytes(2047))
                let far = try ReferenceMachine("far", memory: [large], program: GuestProgram(code: code))
                defer { far.close() }
                try far.finish()
                try require(large.word(0x6000_0000) == 0x55, "the word is not where it should be")
            }
        }

        @Test func `a disk in a file does what a model does`() async throws {
            let seed = printedSeed()
            try await onPlainThread {
                try withImage(Workload.diskContent(seed)) { path, content in
                    let workers = try WorkerThreads(count: 2)
                    defer { workers.close() }
                    let disk = try VirtualDisk("disk", parent: try FileBackend(path, workers: workers), workers: workers)
                    defer { disk.drain() }
                    let memory = try Workload.memory()
                    let machine = try ReferenceMachine("disk", memory: [memory], disks: [disk], program: Workload.disk(100, seed))
                    defer { machine.close() }
                    try machine.finish()
                    let model = Workload.model(100, seed)
                    try require(machine.printed == model.output, "printed \(machine.printed), not \(model.output)")
                    try require(try content() == model.processors[0].disk, "the image differs")
                }
            }
        }

        @Test func `a request that a disk's file can't serve fails with a reason`() async throws {
            try await onPlainThread {
                try withImage(Workload.diskContent(0)) { path, _ in
                    let workers = try WorkerThreads(count: 2)
                    defer { workers.close() }
                    let disk = try VirtualDisk("disk", parent: try FileBackend(path, workers: workers), workers: workers)
                    defer { disk.drain() }
                    try require(unsafe truncate(path, 512) == 0, "can't cut the image")
                    let buffer = DMABuffer(memory: try Workload.memory(), offset: .zero, byteCount: ByteCount(1024))
                    let results = Lock<[Result<Void, EngineError>]>([])
                    for (operation, offset, buffer) in [(DMAOperation.read, ByteCount.zero, buffer), (.flush, .zero, nil)] {
                        disk.submit(operation, at: offset, buffer) { result in
                            results.withLock { $0.append(result) }
                            results.wake()
                        }
                    }
                    let both = results.waitFor { $0.count == 2 ? $0 : nil }
                    guard case .failure(let error) = both[0], case .success = both[1] else { throw TestFailure("\(both)") }
                    try require(error.code == .ioFailed && error.place == path && !error.remedy.isEmpty, "\(error)")
                }
            }
        }

        @Test func `a guest reads its serial port`() async throws {
            try await onPlainThread {
                let machine = try ReferenceMachine("echo", memory: [try Workload.memory()], program: .echo())
                defer { machine.close() }
                try machine.sendSerialInput(Array("hello".utf8))
                machine.resume()
                try require(try !machine.waitUntilHalted(milliseconds: 20), "it has halted before the full stop")
                try machine.sendSerialInput(Array("world.".utf8))
                try require(try machine.waitUntilHalted(milliseconds: 10_000), "it does not halt")
                try require(machine.printed == "HELLOWORLD" && machine.serialOutputCount == ByteCount(10), "printed \(machine.printed)")
            }
        }

        @Test func `a guest that breaks down is a failure with a reason`() async throws {
            try await onPlainThread {
                // UD2, with nobody to handle the fault, nor the fault of that.
                let machine = try ReferenceMachine("broken", memory: [try Workload.memory()], program: GuestProgram(code: [0x0f, 0x0b]))
                defer { machine.close() }
                machine.resume()
                do {
                    let isHalted = try machine.waitUntilHalted(milliseconds: 10_000)
                    throw TestFailure("no failure: halted \(isHalted)")
                } catch let error as EngineError {
                    try require(error.code == .ioFailed && error.reason.contains("exit reason 8"), "\(error)")
                }
                machine.pause()
                do {
                    _ = try machine.deviceState()
                    throw TestFailure("a broken machine has a state")
                } catch let error as EngineError { try require(error.code == .ioFailed, "\(error)") }
            }
        }

        @Test func `machines that can't be are refused`() async throws {
            try await onPlainThread {
                let small = try GuestMemory("ram", byteLength: .mebibytes(1))
                let memory = try Workload.memory()
                let long = GuestProgram(code: Array(repeating: 0x90, count: 1 << 17))
                let halt = GuestProgram(code: [0xf4])
                for (memory, processors, program) in [([small], 1, halt), ([], 1, halt), ([memory], 9, halt), ([memory], 0, halt),
                    ([memory], 1, long)]
                {
                    do {
                        let machine = try ReferenceMachine("wrong", memory: memory, virtualCPUCount: processors, program: program)
                        machine.close()
                        throw TestFailure("made one of \(memory.count) pieces, \(processors) processors, \(program.code.count) bytes")
                    } catch let error as EngineError { try require(error.code == .invalidInput, "\(error)") }
                }
            }
        }
    }
}

/// Runs `body` with a file of that content, and a way to read it.
func withImage(_ content: [UInt8], _ body: (_ path: String, _ content: () throws -> [UInt8]) throws -> Void) throws {
    let path = "/tmp/ckstore-reference-\(getpid())-\(UInt64.random(in: 0...UInt64.max)).img"
    defer { unsafe unlink(path) }
    try write(content, to: path)
    try body(path) { try read(path) }
}
