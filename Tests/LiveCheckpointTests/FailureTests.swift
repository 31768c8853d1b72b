// Checkpoints that fail, at every step where something can: the machine goes on, its disk is as if nothing had been, the store has no trace,
// and the next checkpoint is right.

import CheckpointCore
import FaultHarness
import Foundation
@testable import LiveCheckpoint
import MachineMemory
import Testing
import Threading
import Units
@testable import VirtualDisks

@Suite(.serialized) struct FailureTests {
    private static func seed() -> UInt64 {
        let seed = UInt64.random(in: 0...UInt64(UInt32.max))
        print("seed \(seed)")
        return seed
    }

    @Test func `a store that fails at any of its calls`() async throws {
        try await onPlainThread {
            let scene = try FailureScene(seed: Self.seed())
            var number = 0
            while true {
                number += 1
                let (count, failing) = (Lock(0), number)
                scene.storeFault.withLock {
                    $0 = { call in
                        let isDue = count.withLock { count in
                            count += 1
                            return count == failing
                        }
                        return isDue ? EngineError(.noSpace, "the test's store is full at \(call)") : nil
                    }
                }
                // One more call than there are: it has succeeded.
                let name = "fails at call \(number)"
                do { try scene.fail(name, .noSpace) } catch let error as TestFailure {
                    guard count.withLock({ $0 }) < number else { throw error }
                    break
                }
                scene.storeFault.withLock { $0 = nil }
                try scene.succeed("after call \(number)")
            }
            print("\(number - 1) calls")
            guard number > 8 else { throw TestFailure("\(number) calls") }
            try scene.finish()
        }
    }

    @Test func `a machine that does not stop, and one that does not tell its state`() async throws {
        try await onPlainThread {
            let scene = try FailureScene(seed: Self.seed())
            for round in 0..<4 {
                scene.machine.refusal.withLock { $0.pause = EngineError(.timeout, "the processor does not stop") }
                try scene.fail("does not stop \(round)", .timeout)
                scene.machine.refusal.withLock { $0 = (nil, EngineError(.refused, "the device does not tell its state")) }
                try scene.fail("no state \(round)", .refused)
                scene.machine.refusal.withLock { $0.state = nil }
                try scene.succeed("\(round)")
            }
            try scene.finish()
        }
    }

    @Test(.enabled(if: Mount.isAvailable, "needs root"))
    func `a file system without room for the overlay`() async throws {
        try await onPlainThread {
            let mount = try Mount("tmpfs", ["-t", "tmpfs", "-o", "size=256k"])
            let scene = try FailureScene(seed: Self.seed(), overlayFolder: mount.path)
            try scene.succeed("before")
            let filler = URL(fileURLWithPath: mount.path + "/filler")
            try Data().write(to: filler)
            let handle = try FileHandle(forWritingTo: filler)
            for size in [65536, 4096] { while (try? handle.write(contentsOf: Data(count: size))) != nil {} }
            try scene.fail("no room", .noSpace)
            try FileManager.default.removeItem(at: filler)
            try handle.close()
            try scene.succeed("after")
            try scene.finish()
        }
    }

    @Test(.enabled(if: Mount.isAvailable, "needs root"))
    func `an overlay that becomes full gives the checkpoint up, and no write of the machine fails`() async throws {
        try await onPlainThread {
            let scratch = try LiveScratch()
            let mount = try Mount("tmpfs", ["-t", "tmpfs", "-o", "size=512k"])
            let count = 2 << 20
            let image = HeldImage([UInt8](repeating: 1, count: count))
            image.state.withLock { $0.holds = false }
            let disk = try VirtualDisk("vda", parent: image, workers: HeldJobs())
            let ram = try GuestMemory("ram", byteLength: .kibibytes(16), sharing: .shared)
            unsafe memset(ram.bytes.baseAddress!, 2, ram.bytes.count)
            let outcomes = Lock<[EngineError.Code?]>([])
            let write: @Sendable (Int) -> Void = { group in
                disk.submit(
                    DiskRequest(.write, at: DiskOffset(group * 65536), GuestBuffer(ram, offset: .zero, byteCount: .kibibytes(4))) { result in
                        let code: EngineError.Code? = if case .failure(let error) = result { error.code } else { nil }
                        outcomes.withLock { $0.append(code) }
                    })
            }
            var options = LiveCheckpointer.Options()
            let isFirst = Lock(true)
            options.step = { step in
                guard step == .saveDeviceState, isFirst.withLock({ $0 }) else { return }
                isFirst.withLock { $0 = false }
                for group in 0..<32 { write(group) }
            }
            let checkpointer = try LiveCheckpointer(QuietMachine([ram], [disk]), store: scratch.data, overlayFolder: mount.path, options: options)
            do throws(EngineError) {
                try checkpointer.checkpoint("one")
                throw EngineError(.invalidInput, "32 groups went into half a MiB")
            } catch {
                guard error.code == .noSpace else { throw error }
            }
            guard outcomes.withLock({ $0.count == 32 && $0.allSatisfy { $0 == nil } }) else {
                throw TestFailure("the machine's writes: \(outcomes.withLock { $0 })")
            }
            var expected = [UInt8](repeating: 1, count: count)
            for group in 0..<32 { expected.replaceSubrange(group * 65536..<group * 65536 + 4096, with: repeatElement(2, count: 4096)) }
            if let difference = WorkloadModel.difference(image.content, expected) { throw TestFailure(difference) }
            guard try scratch.data.latest() == nil else { throw TestFailure("the store has a trace") }
            try checkpointer.checkpoint("two")
            guard try scratch.data.source("two").content()["disk:vda"] == expected else { throw TestFailure("the next checkpoint's disk") }
            if let error = checkpointer.close() { throw error }
        }
    }

    @Test func `an image that can't be read`() async throws {
        try await onPlainThread {
            let scene = try FailureScene(seed: Self.seed())
            try scene.succeed("before")
            // Its reads for the store and those of the machine are the same to an image: the machine waits meanwhile.
            scene.onStep.withLock { hook in
                hook = { [image = scene.image, machine = scene.machine] step in
                    guard step == .copyDisks else { return }
                    machine.processor.withLock { $0.isRunning = false }
                    machine.disk.drain()
                    image.state.withLock { $0.fault = { operation, _ in operation == .read ? EngineError(.ioFailed, "the image can't be read") : nil } }
                }
            }
            // What was written since the checkpoint before has to be read.
            guard scene.runner.makesProgress(100) else { throw TestFailure("no progress") }
            let error = #expect(throws: EngineError.self) { try scene.checkpointer.checkpoint("unreadable") }
            scene.image.state.withLock { $0.fault = nil }
            scene.onStep.withLock { $0 = nil }
            try scene.machine.resume()
            guard error?.code == .ioFailed else { throw TestFailure("\(error.map { "\($0)" } ?? "no error")") }
            try scene.checkUnharmed("unreadable")
            try scene.succeed("after")
            try scene.finish()
        }
    }

    @Test func `an image that can't be written when the overlay is committed: the checkpoint stays, and the next one commits it`() async throws {
        try await onPlainThread {
            let scene = try FailureScene(seed: Self.seed())
            let isFailing = Lock(false)
            scene.onStep.withLock { hook in
                hook = { [image = scene.image] step in
                    // By now what the machine writes goes to the overlay, and what is written to the image is the overlay.
                    guard step == .commitOverlays else { return }
                    isFailing.withLock { $0 = true }
                    image.state.withLock { $0.fault = { operation, _ in operation == .write ? EngineError(.ioFailed, "the image can't be written") : nil } }
                }
            }
            guard scene.runner.makesProgress(100) else { throw TestFailure("no progress") }
            scene.storeFault.withLock { hook in
                // Enough time for the machine to write something into the overlay.
                hook = { [runner = scene.runner] call in
                    if call == .commit { _ = runner.makesProgress(100) }
                    return nil
                }
            }
            let report = try scene.succeed("uncommitted")
            guard isFailing.withLock({ $0 }), report.unfinished.map(\.code) == [.ioFailed], scene.runner.makesProgress() else {
                throw TestFailure("\(report.unfinished)")
            }
            scene.onStep.withLock { $0 = nil }
            // Still failing: the next checkpoint can't begin, and takes nothing away.
            let again = #expect(throws: EngineError.self) { try scene.checkpointer.checkpoint("again") }
            guard again?.code == .ioFailed, scene.runner.makesProgress() else { throw TestFailure("no progress") }
            scene.image.state.withLock { $0.fault = nil }
            try scene.succeed("after")
            try scene.checkUnharmed("again")
            try scene.finish()
        }
    }

    @Test func `a pending read that can't be issued again: the checkpoint fails, the machine's read does not`() async throws {
        try await onPlainThread {
            let scene = try ClaimScene()
            defer { scene.scene.close() }
            try scene.checkpoint()
            scene.submit(.read, 0..<2, slot: 0)
            scene.submit(.write, 3..<4, slot: 3)
            let error = #expect(throws: EngineError.self) {
                try scene.checkpoint([
                    .reissueReads: {
                        scene.execute(.touch(page: 0))
                        scene.image.state.withLock { $0.fault = { operation, _ in operation == .read ? EngineError(.ioFailed, "unreadable") : nil } }
                        scene.scene.completeAll()
                        scene.image.state.withLock { $0.fault = nil }
                        // The empty overlay goes back into the image.
                        scene.scene.passesAlways = true
                    }
                ])
            }
            guard error?.code == .ioFailed, scene.machine.slot(0) == .done, scene.machine.slot(3) == .done, scene.isRunning, scene.overlays.isEmpty else {
                throw TestFailure("\(error.map { "\($0)" } ?? "no error"), slot \(scene.machine.slot(0))")
            }
            scene.scene.passesAlways = false
            scene.image.state.withLock { $0.holds = true }
            scene.consume(0, 3)
            try scene.checkpoint([.saveDeviceState: { scene.perform(.write, 3..<5, slot: 0) }])
        }
    }

    @Test func `memory that can't be protected is refused, and memory that can't be any more fails the checkpoint alone`() async throws {
        try await onPlainThread {
            let scratch = try LiveScratch()
            let file = scratch.scratch.folder + "/memory"
            try Data(count: 16384).write(to: URL(fileURLWithPath: file))
            let descriptor = unsafe open(file, O_RDWR)
            let mapped = unsafe UnsafeMutableRawBufferPointer(start: mmap(nil, 16384, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0), count: 16384)
            defer {
                unsafe munmap(mapped.baseAddress!, mapped.count)
                close(descriptor)
            }
            let image = HeldImage([UInt8](repeating: 0, count: 8192))
            image.state.withLock { $0.holds = false }
            let disk = try VirtualDisk("vda", parent: image, workers: HeldJobs(), groupSize: .kibibytes(4))
            let refused = #expect(throws: EngineError.self) {
                _ = try LiveCheckpointer(
                    QuietMachine([try unsafe GuestMemory("ram", adopting: mapped)], [disk]), store: scratch.data, overlayFolder: scratch.scratch.folder)
            }
            guard refused?.code == .unsupported, refused?.remedy.isEmpty == false else {
                throw TestFailure("\(refused.map { "\($0)" } ?? "accepted")")
            }

            let bytes = unsafe UnsafeMutableRawBufferPointer(start: mmap(nil, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), count: 65536)
            defer { unsafe munmap(bytes.baseAddress!, bytes.count) }
            let machine = QuietMachine([try unsafe GuestMemory("ram", adopting: bytes)], [disk])
            let checkpointer = try LiveCheckpointer(machine, store: scratch.data, overlayFolder: scratch.scratch.folder)
            try checkpointer.checkpoint("one")
            for page in 0..<16 { unsafe bytes.storeBytes(of: 1, toByteOffset: page * pageSize, as: UInt8.self) }
            unsafe mmap(bytes.baseAddress! + 5 * pageSize, pageSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0)
            let failed = #expect(throws: EngineError.self) { try checkpointer.checkpoint("two") }
            // Nobody waits at a page for ever, nothing is left.
            for page in 0..<16 { unsafe bytes.storeBytes(of: 2, toByteOffset: page * pageSize, as: UInt8.self) }
            guard failed != nil, machine.state.withLock({ $0.paused == $0.resumed }), disk.state.withLock({ $0.overlays.isEmpty && $0.checkpoint == nil }),
                try scratch.scratch.store.snapshot().checkpoints().map(\.name) == ["one"]
            else { throw TestFailure("\(failed.map { "\($0)" } ?? "no error")") }
            // Registered anew, it is complete again.
            if let error = checkpointer.close() { throw error }
            let anew = try LiveCheckpointer(machine, store: scratch.data, overlayFolder: scratch.scratch.folder)
            try anew.checkpoint("three", parent: "one")
            guard try unsafe scratch.data.source("three").content()["memory:ram"] == [UInt8](bytes) else { throw TestFailure("other memory") }
            if let error = anew.close() { throw error }
        }
    }
}
