// The later independent claims and what depends on them: the disk kept [19 to 22], pending and new requests told apart [23 to 28].

import CheckpointCore
import FaultHarness
import Foundation
@testable import LiveCheckpoint
@testable import MachineMemory
import Testing
import Threading
import Units
import VirtualDisks

@Suite(.serialized) struct ClaimIndependentTests {
    @Test func `claim 19: disk, device state and memory of the instant are saved while the machine goes on with all three`() async throws {
        try await ClaimScene.with { scene in
            let parent = scene.image.content
            let work = {
                scene.execute(.touchAll)
                for sector in [0, 8, 19] { scene.perform(.write, sector..<sector + 1, slot: 3) }
                scene.require(scene.image.content == parent, "the disk of the instant is modified")
            }
            try scene.checkpoint([.reissueReads: work, .waitForReads: work, .saveMemory: work, .clearMarks: work, .copyDisks: work, .recordDisks: work])
            guard scene.machine.registers.counter > scene.machine.modelAtStop!.registers.counter + 30 else {
                throw TestFailure("the machine did not go on")
            }
        }
    }

    @Test func `claim 20: the machine is stopped while its memory is marked`() async throws {
        try await ClaimScene.with { scene in
            let phases = Lock<[Bool]>([])
            let note = {
                scene.require(!scene.isRunning, "the machine runs")
                let isMarked = scene.memory.state.withLock { $0.phase == .copying }
                phases.withLock { $0.append(isMarked) }
            }
            try scene.checkpoint([.stop: { scene.require(scene.isRunning, "it is stopped early") }, .markMemory: note, .captureDeviceState: note])
            guard phases.withLock({ $0 }) == [false, true] else { throw TestFailure("marked: \(phases.withLock { $0 })") }
        }
    }

    @Test func `claim 21: the disk is mapped to a new overlay that points to the parent`() async throws {
        try await ClaimScene.with { scene in
            try scene.checkpoint([
                .switchDisks: { scene.require(scene.overlays.isEmpty, "mapped to the parent at first") },
                .resume: {
                    scene.require(scene.overlays.count == 1 && scene.overlays[0].parent == nil && scene.overlays[0].groupCount == 0, "then to an empty overlay")
                },
                .saveDeviceState: {
                    // What the overlay does not have comes from the parent, what it has does not.
                    scene.perform(.read, 0..<1, slot: 0)
                    scene.require(scene.overlays[0].groupCount == 0, "reading copies nothing")
                    scene.perform(.write, 0..<1, slot: 0)
                    let issued = scene.image.state.withLock { $0.count }
                    scene.perform(.read, 0..<1, slot: 0)
                    scene.require(scene.image.state.withLock { $0.count } == issued, "the parent is asked for what the overlay has")
                },
            ])
        }
    }

    @Test func `claim 22: the device state is kept in memory while the machine stands still and stored after it has gone on`() async throws {
        try await ClaimScene.with { scene in
            let isStored = Lock(false)
            scene.scene.onCall = { (call) throws(EngineError) in
                guard call == .putBlob("state:devices") else { return }
                scene.require(scene.isRunning, "stored while the machine stands still")
                isStored.withLock { $0 = true }
            }
            scene.execute(.touch(page: 0))
            let counter = scene.machine.registers.counter
            try scene.checkpoint([
                .switchDisks: { scene.require(!scene.isRunning && !isStored.withLock { $0 }, "captured, not stored") },
                .reissueReads: { scene.execute(.touch(page: 1)) },
            ])
            guard isStored.withLock({ $0 }), try scene.checkpointed().registers.counter == counter else {
                throw TestFailure("another state is stored")
            }
        }
    }

    @Test func `claim 23: pending writes reach both disks and pending reads both memories, new ones only those of the machine`() async throws {
        try await ClaimScene.with { scene in
            let before = scene.machine.model
            scene.submit(.write, 0..<1, slot: 0)
            scene.submit(.read, 8..<9, slot: 3)
            try scene.checkpoint([
                .reissueReads: {
                    scene.submit(.write, 2..<3, slot: 1)
                    scene.submit(.read, 16..<17, slot: 4)
                    scene.scene.completeAll()
                }
            ])
            let (checkpoint, ongoing) = (try scene.checkpointed(), scene.machine.model)
            let layout = scene.machine.layout
            func buffer(_ model: WorkloadModel, _ slot: Int) -> [UInt8] { Array(model.memory[layout.buffer(slot).prefix(sectorSize)]) }
            let written = (buffer(before, 0), buffer(before, 1))
            guard checkpoint.sectors(0..<1) == written.0, ongoing.sectors(0..<1) == written.0 else { throw TestFailure("the pending write") }
            guard checkpoint.sectors(2..<3) == before.sectors(2..<3), ongoing.sectors(2..<3) == written.1 else { throw TestFailure("the new write") }
            guard buffer(checkpoint, 3) == before.sectors(8..<9), buffer(ongoing, 3) == before.sectors(8..<9) else {
                throw TestFailure("the pending read")
            }
            guard buffer(checkpoint, 4) == buffer(before, 4), buffer(ongoing, 4) == before.sectors(16..<17) else { throw TestFailure("the new read") }
        }
    }

    @Test func `claim 24: memory is marked, faults are answered with copies, and the originals are saved`() async throws {
        try await ClaimScene.with { scene in
            try scene.checkpoint()
            // Pages 3 and 0 are written before the instant; the first of them again after it, and page 4.
            scene.execute(.touch(page: 3))
            scene.execute(.touch(page: 0))
            let report = try scene.checkpoint([
                .saveDeviceState: {
                    scene.execute(.touch(page: 3))
                    scene.execute(.touch(page: 4))
                    scene.require(scene.wasCopied(3), "the original of a wanted page is kept")
                    scene.require(!scene.wasCopied(4), "a page that the parent has needs no copy")
                }
            ])
            let memory = report.memory["ram"]!
            guard memory.faults >= 1, memory.copiedPages == PageCount(1), memory.wantedPages == PageCount(2) else { throw TestFailure("\(memory)") }
        }
    }

    @Test func `claim 25: a pending read into a page that had a fault fills both contents of the page`() async throws {
        try await ClaimScene.with { scene in
            let before = scene.machine.model
            scene.submit(.read, 0..<1, slot: 0)
            try scene.checkpoint([
                .reissueReads: {
                    scene.execute(.touch(page: 0))
                    scene.require(scene.wasCopied(0), "the page has two contents")
                    scene.image.complete(scene.image.held[0])
                    scene.require(scene.machine.slot(0) == .underWay, "the machine is told before the other content has the bytes")
                    scene.scene.completeAll()
                    scene.require(scene.machine.slot(0) == .done, "the machine is told when both have them")
                    let copy = Lock<[UInt8]>([])
                    scene.memory.withCopies(of: scene.page(0)..<scene.page(1)) { copies in
                        copy.withLock { $0 = copies.first.map { unsafe [UInt8]($0.bytes.prefix(sectorSize)) } ?? [] }
                    }
                    scene.require(copy.withLock { $0 } == before.sectors(0..<1), "the checkpoint's content has other bytes")
                }
            ])
        }
    }

    @Test func `claim 26: what new reads bring is not in the checkpoint, wherever in its pages it lands`() async throws {
        try await ClaimScene.with { scene in
            let before = scene.machine.model
            // All that is below is brought before a single page has been saved.
            try scene.checkpoint([.saveDeviceState: { for slot in 0..<scene.machine.layout.slotCount { scene.perform(.read, slot..<slot + 3, slot: slot) } }])
            guard try scene.checkpointed().memory == before.memory, scene.machine.model.memory != before.memory else {
                throw TestFailure("new reads are in it")
            }
        }
    }

    @Test func `claim 27: each checkpoint maps the disk to an overlay of its own, over the parent that has the one before in it`() async throws {
        try await ClaimScene.with { scene in
            let ids = Lock<Set<OverlayID>>([])
            for round in 1...3 {
                try scene.checkpoint([
                    .saveDeviceState: {
                        ids.withLock { $0.formUnion(scene.overlays.map(\.id)) }
                        scene.perform(.write, 0..<round, slot: 0)
                    }
                ])
                guard scene.overlays.isEmpty else { throw TestFailure("mapped to an overlay after the checkpoint") }
            }
            guard ids.withLock({ $0.count }) == 3 else { throw TestFailure("\(ids.withLock { $0 })") }
        }
    }

    @Test func `claim 28: a write behind a pending one of its group loses nothing of either, and a pending write of another group does not hold it`() async throws {
        try await ClaimScene.with { scene in
            let before = scene.machine.model
            scene.submit(.write, 0..<1, slot: 0)
            scene.submit(.write, 8..<9, slot: 1)
            try scene.checkpoint([
                .saveDeviceState: {
                    scene.submit(.write, 1..<2, slot: 3)
                    // The second group's pending write completes: the held write goes on waiting for the first's.
                    scene.image.complete(scene.image.held[1])
                    scene.require(scene.machine.slot(1) == .done && scene.machine.slot(3) == .underWay && scene.image.held.count == 1, "not held")
                    scene.scene.completeAll()
                    scene.require(scene.machine.slot(3) == .done, "held for ever")
                }
            ])
            let layout = scene.machine.layout
            for (sector, slot) in [(0, 0), (8, 1), (1, 3)] {
                let bytes = Array(before.memory[layout.buffer(slot).prefix(sectorSize)])
                guard scene.machine.model.sectors(sector..<sector + 1) == bytes else { throw TestFailure("the write to sector \(sector) is lost") }
            }
        }
    }
}
