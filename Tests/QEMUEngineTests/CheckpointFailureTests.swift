// Checkpoints that are cancelled, meet a full store, or lose their machine, at each stage: nothing of them stays, and where there still is a
// guest, it runs.

import CheckpointCore
import CheckpointStore
import Foundation
import Glibc
import QEMUEngine
import QEMUTesting
import Testing
import Threading
import Units

@Suite(.serialized) struct CheckpointFailureTests {
    /// Stages by their order in a checkpoint.
    private enum Stage: CaseIterable {
        case preparing, memory, resumed, disks, finishing

        func matches(_ phase: CheckpointProgress.Phase) -> Bool {
            switch (self, phase) {
            case (.preparing, .preparing), (.memory, .memory), (.resumed, .resumed), (.disks, .disks), (.finishing, .finishing): true
            default: false
            }
        }
    }

    private static let engines: [(engine: CaptureEngine, options: GuestOptions)] = [
        (.background, GuestOptions(memorySize: .mebibytes(128), disks: [GuestOptions.Disk(.raw), GuestOptions.Disk(.qcow2)])),
        (.external, GuestOptions(memorySize: .mebibytes(128), memory: .shared, disks: [GuestOptions.Disk(.qcow2)])),
    ]

    @Test func `a checkpoint cancelled at any stage leaves the guest running and nothing in the store`() async throws {
        try await onPlainThread {
            for (engine, options) in Self.engines {
                let scene = try CheckpointScene(options)
                for stage in Stage.allCases {
                    let place = "cancelled at \(stage) (\(engine))"
                    let store = try scene.open()
                    let running = Lock<QEMUCheckpointer?>(nil)
                    let checkpointer = scene.checkpointer("c", engine: engine, StoreBackedDataStore(store, options: WriterOptions())) {
                        if stage.matches($0.phase) { running.withLock { $0 }?.cancel() }
                    }
                    running.withLock { $0 = checkpointer }
                    let error = Self.failure { () throws(EngineError) in _ = try checkpointer.run() }
                    store.close()
                    try require(error?.code == .cancelled, "\(place): \(error.map { "\($0)" } ?? "the checkpoint came about")")
                    try scene.requireUnharmed(place)
                    try require(try scene.checkpoints().isEmpty, "\(place): the store has a trace of it")
                }
            }
        }
    }

    @Test func `a store that fills up at any point leaves the guest running and the older checkpoints whole`() async throws {
        try await onPlainThread {
            for (engine, options) in Self.engines {
                let scene = try CheckpointScene(options, storeSize: .mebibytes(256))
                try scene.store.run(
                    "vm", "checkpoint", scene.store.path, "first", "--qmp", scene.guest.machine.monitorPath, "--engine", engine.rawValue)
                // No parent, so that every attempt stores all of it; sooner or later there is no room left.
                var attempts = 0
                while true {
                    attempts += 1
                    let outcome = try scene.store.outcome([
                        "vm", "checkpoint", scene.store.path, "more-\(attempts)", "--qmp", scene.guest.machine.monitorPath, "--engine",
                        engine.rawValue,
                    ])
                    let place = "attempt \(attempts) to fill the store (\(engine))"
                    try scene.requireUnharmed(place)
                    let names = try scene.checkpoints()
                    try require(names.contains("first"), "\(place): the first checkpoint is gone")
                    if outcome.exitCode == 0 {
                        try require(attempts < 20, "the store never fills up")
                        continue
                    }
                    try require(outcome.exitCode == 4, "\(place): \(outcome)")
                    try require(!names.contains("more-\(attempts)"), "\(place): a trace of the failed checkpoint is there")
                    break
                }
            }
        }
    }

    @Test func `a machine killed at any stage is an error, and leaves nothing in the store`() async throws {
        try await onPlainThread {
            for (engine, options) in Self.engines {
                for stage in Stage.allCases {
                    let place = "machine killed at \(stage) (\(engine))"
                    let scene = try CheckpointScene(options)
                    let store = try scene.open()
                    let guest = scene.guest
                    let checkpointer = scene.checkpointer("c", engine: engine, StoreBackedDataStore(store, options: WriterOptions())) {
                        if stage.matches($0.phase) { guest.kill() }
                    }
                    let error = Self.failure { () throws(EngineError) in _ = try checkpointer.run() }
                    store.close()
                    // Nobody is connected to it yet when it is being prepared.
                    let isRight = error?.code == .exited || stage == .preparing && error?.code == .connection
                    try require(isRight, "\(place): \(error.map { "\($0)" } ?? "the checkpoint came about")")
                    // At the end everything has been captured: the checkpoint comes about, and only the machine is lost.
                    let isTaken = stage == .finishing && error?.reason.contains("is taken") == true
                    try require(try scene.checkpoints() == (isTaken ? ["c"] : []), "\(place): the store has \(try scene.checkpoints())")
                    try Self.requireDisksWhole(scene, place)
                }
            }
        }
    }

    /// A machine that died with overlays in place has its writes in its images again.
    private static func requireDisksWhole(_ scene: CheckpointScene, _ place: String) throws {
        for disk in scene.guest.machine.disks {
            let folder = (disk as NSString).deletingLastPathComponent
            let left = try FileManager.default.contentsOfDirectory(atPath: folder).filter { $0.contains("ckstore-") }
            try require(left.isEmpty, "\(place): \(left) beside the images")
        }
    }

    private static func failure(_ body: () throws(EngineError) -> Void) -> EngineError? {
        do throws(EngineError) {
            try body()
            return nil
        } catch { return error }
    }
}
