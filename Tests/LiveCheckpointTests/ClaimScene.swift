// What the tests of the claims are written in: a checkpoint of the workload machine with a script of what happens at its steps.

import CheckpointCore
import FaultHarness
import Foundation
@testable import LiveCheckpoint
@testable import MachineMemory
import Testing
import Threading
import Units
@testable import VirtualDisks

/// A machine of its own for each test.
final class ClaimScene: @unchecked Sendable {
    let scene: WorkloadScene
    private var problems: [String] = []

    init(sectorCount: Int = WorkloadScene.sectorCount, store: any CheckpointDataStore = MemoryStore()) throws {
        scene = try WorkloadScene(sectorCount: sectorCount, consumesAtOnce: false, store: store)
    }

    /// Runs a test with a machine, and closes it.
    static func with(
        sectorCount: Int = WorkloadScene.sectorCount, store: (any CheckpointDataStore)? = nil, _ body: @escaping @Sendable (ClaimScene) throws -> Void
    ) async throws {
        try await onPlainThread {
            let scene = try ClaimScene(sectorCount: sectorCount, store: store ?? MemoryStore())
            defer { scene.scene.close() }
            try body(scene)
        }
    }

    var image: HeldImage { scene.image }
    var machine: WorkloadMachine { scene.machine }
    var memory: CopyOnWriteMemory { scene.checkpointer.memory.all[0] }
    var isRunning: Bool { machine.processor.withLock { $0.isRunning } }
    var overlays: [CowFile] { machine.disk.state.withLock { $0.overlays } }
    var overlayFiles: [String] { (try? FileManager.default.contentsOfDirectory(atPath: scene.folder)) ?? [] }

    /// A script can't throw: what is wrong is said when the checkpoint is over.
    func require(_ condition: Bool, _ problem: String) { if !condition { problems.append(problem) } }
    func execute(_ instruction: Instruction) { require(machine.execute(instruction), "\(instruction) can't be executed") }
    func submit(_ operation: DiskOperation, _ sectors: Range<Int>, slot: Int) { execute(.submit(slot: slot, operation, sectors: sectors)) }
    /// Submits a request, completes it and everything else, and consumes it.
    func perform(_ operation: DiskOperation, _ sectors: Range<Int>, slot: Int) {
        submit(operation, sectors, slot: slot)
        scene.completeAll()
        execute(.consume(slot: slot))
    }
    func consume(_ slots: Int...) { for slot in slots { execute(.consume(slot: slot)) } }
    func page(_ page: Int) -> PageIndex { PageIndex(page) }
    func wasCopied(_ page: Int) -> Bool { memory.wasCopied(PageIndex(page)) }

    /// Takes a checkpoint, and compares it, and the machine afterwards, with the model.
    @discardableResult
    func checkpoint(_ script: [LiveStep: () -> Void] = [:]) throws -> LiveCheckpointReport {
        scene.onStep = { script[$0]?() }
        defer { scene.onStep = nil }
        let report = try scene.run([], Choices(), ChoicePoints(steps: []))
        guard problems.isEmpty else { throw TestFailure(problems.joined(separator: "; ")) }
        return report
    }

    /// The last checkpoint's content.
    func checkpointed() throws -> WorkloadModel { try scene.checkpointed() }

    /// Completes what waits, from another thread, some time later; `done` is set before.
    func completeLater(_ done: Lock<Bool>) -> PlainThread? {
        PlainThread { [image] in
            usleep(30_000)
            done.withLock { $0 = true }
            image.completeAll()
        }
    }
}

extension WorkloadModel {
    func sectors(_ range: Range<Int>) -> [UInt8] { Array(disk[range.lowerBound * sectorSize..<range.upperBound * sectorSize]) }
}
