// The claim about storage outside of the machine's computer system [claim 7].

import CheckpointCore
import FaultHarness
import Foundation
@testable import LiveCheckpoint
import MachineMemory
import Testing
import Threading
import Units
import VirtualDisks

/// A machine whose disk is a storage device's, and which changes the mapping to that device's overlay itself while it stands still.
private final class RemoteDiskMachine: Machine {
    let name = "remote"
    let identity = MachineIdentity(hypervisor: "test", version: "1", machineType: "remote", architecture: "none")
    let virtualCPUCount = 1
    let memory: [GuestMemory]
    let disks: [VirtualDisk] = []
    let physicalRanges: [MachineRecord.PhysicalRange] = []
    private let mapping: Lock<(disk: ExternalDisk, overlay: ExternalDisk?, isRunning: Bool)>

    init(_ memory: GuestMemory, _ disk: ExternalDisk) {
        self.memory = [memory]
        mapping = Lock((disk, nil, true))
    }

    var disk: ExternalDisk { mapping.withLock { $0.disk } }
    func offer(_ overlay: ExternalDisk) { mapping.withLock { $0.overlay = overlay } }

    func pause() throws(EngineError) { mapping.withLock { $0.isRunning = false } }
    func resume() throws(EngineError) { mapping.withLock { $0.isRunning = true } }
    func deviceState() throws(EngineError) -> [UInt8] {
        mapping.withLock { mapping in
            precondition(!mapping.isRunning, "the mapping changes while the machine stands still")
            if let overlay = mapping.overlay { mapping.disk = overlay }
        }
        return [7]
    }
    func settledDeviceState(_ state: [UInt8]) throws(EngineError) -> [UInt8] { state }
}

@Suite(.serialized) struct ClaimExternalTests {
    @Test(.enabled(if: ExternalDisk.isAvailable, "needs nbdkit"))
    func `claim 7: a storage device outside makes the overlay and handles its faults`() async throws {
        try await onPlainThread {
            let scratch = try LiveScratch()
            let image = scratch.scratch.folder + "/parent.img"
            try Data(repeating: 1, count: 1 << 20).write(to: URL(fileURLWithPath: image))
            let ram = try GuestMemory("ram", byteLength: .kibibytes(64), sharing: .shared)
            let machine = RemoteDiskMachine(ram, try ExternalDisk(image: image, isCopyOnWrite: false))
            try machine.disk.write(at: 0, [UInt8](repeating: 2, count: 4096))
            let problem = Lock<String?>(nil)
            let goOn: @Sendable () throws -> Void = {
                // Changes a part of what the parent has, and reads what it has not changed, with what it has.
                try machine.disk.write(at: 512, [UInt8](repeating: 3, count: 512))
                try unsafe machine.disk.read(at: 0, into: UnsafeMutableRawBufferPointer(rebasing: ram.bytes[..<8192]))
            }
            var options = LiveCheckpointer.Options()
            options.step = { step in
                do {
                    if step == .createOverlays { machine.offer(try ExternalDisk(image: image, isCopyOnWrite: true)) }
                    if step == .reissueReads { try goOn() }
                } catch { problem.withLock { $0 = "\(error)" } }
            }
            let checkpointer = try LiveCheckpointer(machine, store: scratch.data, overlayFolder: scratch.scratch.folder, options: options)
            defer { checkpointer.close() }
            unsafe ram.bytes.storeBytes(of: 9, toByteOffset: 0, as: UInt8.self)
            try checkpointer.checkpoint("one")
            if let problem = problem.withLock({ $0 }) { throw TestFailure(problem) }
            let parent = [UInt8](try Data(contentsOf: URL(fileURLWithPath: image)))
            guard parent == [UInt8](repeating: 2, count: 4096) + [UInt8](repeating: 1, count: (1 << 20) - 4096) else {
                throw TestFailure("the parent is modified")
            }
            let content = try scratch.data.source("one").content()
            guard content["memory:ram"] == [9] + [UInt8](repeating: 0, count: 65535), content["state:devices"] == [7] else {
                throw TestFailure("other memory")
            }
            let seen = unsafe [UInt8](ram.bytes[..<8192])
            var expected = [UInt8](repeating: 2, count: 4096) + [UInt8](repeating: 1, count: 4096)
            expected.replaceSubrange(512..<1024, with: repeatElement(3, count: 512))
            if let difference = WorkloadModel.difference(seen, expected) { throw TestFailure("the machine sees other bytes: \(difference)") }
        }
    }
}
