// The first claims: the method as a whole [claims 1 to 8], and the rules at its edges [15 to 18]. Each checkpoint here is compared with the model, too.

import CheckpointCore
import FaultHarness
import Foundation
@testable import LiveCheckpoint
import Testing
import Threading
import Units
import VirtualDisks

@Suite(.serialized) struct ClaimTests {
    @Test func `claim 1: an overlay is made, the machine stopped, its memory marked, its state kept, its disk switched; it goes on, and faults are handled`() async throws {
        try await ClaimScene.with { scene in
            let parent = scene.image.content
            let report = try scene.checkpoint([
                .stop: { scene.require(scene.overlayFiles.count == 1, "there is no overlay") },
                .reissueReads: {
                    scene.execute(.touch(page: 0))
                    scene.perform(.write, 0..<1, slot: 3)
                },
                .waitForReads: {
                    scene.require(scene.wasCopied(0) && !scene.wasCopied(1), "the original of the page that was written is kept, and of no other")
                    scene.require(scene.overlays.map(\.groupCount) == [1], "the write is in the overlay")
                    scene.require(scene.image.content == parent, "the image is as it was")
                },
            ])
            guard report.steps == LiveStep.allCases.filter({ $0 != .waitForAllRequests }) else { throw TestFailure("steps \(report.steps)") }
        }
    }

    @Test func `claim 2: the overlay is made while the machine runs`() async throws {
        try await ClaimScene.with { scene in
            try scene.checkpoint([
                .createOverlays: {
                    scene.require(scene.isRunning && scene.overlayFiles.isEmpty, "the machine runs, nothing is made yet")
                    scene.perform(.write, 0..<1, slot: 0)
                },
                .stop: {
                    scene.require(scene.isRunning && scene.overlayFiles.count == 1, "the machine runs, the overlay is there")
                    scene.perform(.write, 1..<2, slot: 0)
                    scene.require(scene.overlays.isEmpty, "the machine does not use it yet")
                },
            ])
        }
    }

    @Test func `claim 3: the parent is copied for the checkpoint after pending writes have completed`() async throws {
        try await ClaimScene.with { scene in
            let isCompleted = Lock(false)
            scene.submit(.write, 0..<1, slot: 0)
            scene.scene.completesPending = false
            scene.scene.onCall = { (call) throws(EngineError) in
                if call == .writePages("disk:vda") { scene.require(isCompleted.withLock { $0 }, "the parent is copied before the write has completed") }
            }
            let thread = Lock<PlainThread?>(nil)
            try scene.checkpoint([
                .copyDisks: {
                    scene.require(scene.image.held.count == 1, "the write is under way")
                    thread.withLock { $0 = scene.completeLater(isCompleted) }
                }
            ])
            thread.withLock { $0 }?.join()
            guard isCompleted.withLock({ $0 }) else { throw TestFailure("nobody waited for the write") }
        }
    }

    @Test func `claim 4: the overlay is committed into the parent`() async throws {
        try await ClaimScene.with { scene in
            let parent = scene.image.content
            let report = try scene.checkpoint([
                .saveDeviceState: { scene.perform(.write, 7..<9, slot: 0) },
                .commitOverlays: { scene.require(scene.image.content == parent, "committed too early") },
            ])
            guard scene.image.content != parent, scene.overlays.isEmpty, scene.overlayFiles.isEmpty, report.commits["vda"]?.mergedGroups == 2 else {
                throw TestFailure("not committed: \(report.commits)")
            }
        }
    }

    @Test func `claim 5: while the overlay is committed, new ones take the machine's writes`() async throws {
        try await ClaimScene.with(sectorCount: 40 * 8) { scene in
            let (merges, most) = (Lock(0), Lock(0))
            scene.scene.onMerge = {
                let count = merges.withLock { count in
                    count += 1
                    return count
                }
                guard count == 3 else { return }
                most.withLock { $0 = scene.overlays.count }
                // Reads a group that is being merged, writes it, and reads it again.
                for operation in [DiskOperation.read, .write, .read] { scene.perform(operation, 16..<18, slot: 0) }
                scene.require(scene.overlays.first?.groupCount == 1, "the write is in the new overlay")
            }
            let report = try scene.checkpoint([
                .saveDeviceState: { for group in 0..<20 { scene.perform(.write, group * 8..<group * 8 + 2, slot: 0) } }
            ])
            guard most.withLock({ $0 }) == 2, report.commits["vda"]?.rounds == 1, scene.overlayFiles.isEmpty else {
                throw TestFailure("\(most.withLock { $0 }) overlays, \(report.commits)")
            }
        }
    }

    @Test func `claim 6: the checkpoint points to the copy of the parent`() async throws {
        let scratch = try LiveScratch()
        try await ClaimScene.with(store: scratch.data) { scene in
            scene.perform(.write, 3..<5, slot: 0)
            try scene.checkpoint()
            let restore = try MachineRestore(try scratch.data.source("1"))
            guard restore.record.disks.map(\.name) == ["vda"], restore.record.disks[0].region == "disk:vda" else {
                throw TestFailure("\(restore.record.disks)")
            }
            let expected = scene.machine.modelAtStop!.disk
            let content = Lock([UInt8](repeating: 0, count: expected.count))
            unsafe try restore.disk("vda") { (offset, bytes) throws(EngineError) in
                content.withLock { unsafe $0.replaceSubrange(offset.int..<offset.int + bytes.count, with: bytes) }
            }
            if let difference = WorkloadModel.difference(content.withLock { $0 }, expected) { throw TestFailure(difference) }
        }
    }

    @Test func `claim 8: memory is saved after all pending reads have completed`() async throws {
        try await ClaimScene.with { scene in
            let isCompleted = Lock(false)
            scene.submit(.read, 0..<1, slot: 0)
            scene.scene.completesPending = false
            scene.scene.onCall = { (call) throws(EngineError) in
                if call == .writePages("memory:ram") { scene.require(isCompleted.withLock { $0 }, "memory is saved before the read has completed") }
            }
            let thread = Lock<PlainThread?>(nil)
            try scene.checkpoint([
                .waitForReads: {
                    scene.require(scene.image.held.count == 1, "the read is under way")
                    thread.withLock { $0 = scene.completeLater(isCompleted) }
                }
            ])
            thread.withLock { $0 }?.join()
            guard isCompleted.withLock({ $0 }) else { throw TestFailure("nobody waited for the read") }
        }
    }

    @Test func `claim 15: a new read forces the fault on its pages before it is issued`() async throws {
        try await ClaimScene.with { scene in
            try scene.checkpoint([
                .saveDeviceState: {
                    // Across the border of two pages.
                    scene.submit(.read, 0..<2, slot: 4)
                    scene.require(scene.image.held.count == 1, "the read is with the device, and has brought nothing yet")
                    scene.require(scene.wasCopied(3) && scene.wasCopied(4) && !scene.wasCopied(0), "the originals of its two pages are kept already")
                }
            ])
        }
    }

    @Test func `claim 16: a pending read followed by a pending write to its block delays the resumption until all requests complete`() async throws {
        try await ClaimScene.with { scene in
            scene.submit(.read, 0..<2, slot: 0)
            scene.submit(.write, 1..<2, slot: 3)
            scene.submit(.write, 9..<10, slot: 4)
            let report = try scene.checkpoint([
                .waitForAllRequests: { scene.require(!scene.isRunning && scene.machine.disk.pendingRequests.count == 3, "it stands still, all are pending") },
                .resume: { scene.require(scene.machine.disk.pendingRequests.isEmpty, "requests are pending as the machine goes on") },
            ])
            guard report.steps.contains(.waitForAllRequests), !report.steps.contains(.reissueReads) else {
                throw TestFailure("steps \(report.steps)")
            }
            scene.consume(0, 3, 4)
            // The other way round, and side by side, nothing has to wait.
            scene.submit(.write, 0..<1, slot: 0)
            scene.submit(.read, 0..<1, slot: 3)
            scene.submit(.write, 1..<2, slot: 4)
            let other = try scene.checkpoint([.reissueReads: { scene.require(scene.machine.disk.pendingRequests.count == 3, "all are pending") }])
            guard !other.steps.contains(.waitForAllRequests) else { throw TestFailure("steps \(other.steps)") }
        }
    }

    @Test func `claim 17: without that delay, reads into memory that has had a fault are issued again, others are not`() async throws {
        try await ClaimScene.with { scene in
            scene.submit(.read, 0..<1, slot: 0)
            scene.submit(.read, 8..<9, slot: 3)
            try scene.checkpoint([
                .reissueReads: {
                    scene.execute(.touch(page: 0))
                    let issued = scene.image.state.withLock { $0.count }
                    scene.scene.completeAll()
                    scene.require(scene.image.state.withLock { $0.count } == issued + 1, "one of two reads is issued again")
                }
            ])
        }
    }

    @Test func `claim 18: a write to a group with a pending write, and its fault, wait until that has completed`() async throws {
        try await ClaimScene.with { scene in
            scene.submit(.write, 0..<1, slot: 0)
            try scene.checkpoint([
                .saveDeviceState: {
                    scene.submit(.write, 5..<6, slot: 3)
                    scene.submit(.write, 9..<10, slot: 4)
                    // The pending write, and the group of the last one, which is being read for its copy.
                    scene.require(scene.image.held.count == 2 && scene.overlays[0].groupCount == 0, "the group is copied too early")
                    scene.image.complete(scene.image.held[0])
                    scene.scene.completeAll()
                    scene.require(scene.overlays[0].groupCount == 2, "both are written")
                }
            ])
        }
    }
}
