// ckstore killed before each of the commands that it sends to QEMU: the guard must bring the guest back every time.

import Foundation
import Glibc
import QEMUTesting
import Testing
import Units

@Suite(.serialized) struct KilledCheckpointTests {
    /// All steps with CKSTORE_LONG_TESTS=1; else so many, spread over the checkpoint, another few in each run.
    private static let stepsByDefault = 7
    private static var isLong: Bool { ProcessInfo.processInfo.environment["CKSTORE_LONG_TESTS"] == "1" }

    @Test func `killed before any command of a background checkpoint, ckstore leaves the guest running and its disk chain whole`()
        async throws
    {
        try await onPlainThread {
            try Self.killEverywhere(
                try CheckpointScene(GuestOptions(memorySize: .mebibytes(160), disks: [GuestOptions.Disk(.qcow2)])), engine: "background")
        }
    }

    @Test func `killed before any command of an external checkpoint, ckstore leaves the guest running and its disk chain whole`()
        async throws
    {
        try await onPlainThread {
            try Self.killEverywhere(
                try CheckpointScene(
                    GuestOptions(memorySize: .mebibytes(160), memory: .shared, virtualCPUs: 2, disks: [GuestOptions.Disk(.raw)])),
                engine: "external")
        }
    }

    private static func killEverywhere(_ scene: CheckpointScene, engine: String) throws {
        let count = try commands(scene, engine)
        let seed = seed()
        let stride = isLong ? 1 : max(1, count / stepsByDefault)
        for step in Swift.stride(from: 1 + Int(seed % UInt64(stride)), through: count, by: stride) {
            let place = "seed \(seed), killed before command \(step) of \(count) (\(engine))"
            let name = "killed-\(step)"
            let outcome = try traced(scene, engine, name, inject: ["-e", "inject=sendmsg:signal=SIGKILL:when=\(step)"])
            try require(outcome.signal == SIGKILL || outcome.exitCode == 128 + SIGKILL || outcome.exitCode == 0, "\(place): \(outcome)")
            try scene.requireUnharmed(place)
            // After its commit a checkpoint is there, and sound, although ckstore could not say so any more.
            let names = try scene.checkpoints()
            if names.contains(name) { try scene.store.run("delete", scene.store.path, name) }
        }
        try scene.store.run("vm", "checkpoint", scene.store.path, "after", "--qmp", scene.guest.machine.monitorPath, "--engine", engine)
        try scene.requireUnharmed("after all kills")
    }

    /// How many commands a checkpoint sends.
    private static func commands(_ scene: CheckpointScene, _ engine: String) throws -> Int {
        let log = scene.store.file("trace")
        let outcome = try traced(scene, engine, "first", log: log, inject: [])
        try require(outcome.exitCode == 0, "the traced checkpoint ended with \(outcome)")
        let lines = try String(contentsOfFile: log, encoding: .utf8).split(separator: "\n").filter { $0.contains("sendmsg(") }
        try require(lines.count > 5, "a checkpoint sends more than \(lines.count) commands")
        return lines.count
    }

    /// Runs a checkpoint whose sending is watched by strace.
    private static func traced(
        _ scene: CheckpointScene, _ engine: String, _ name: String, log: String = "/dev/null", inject: [String]
    ) throws -> Outcome {
        let tool = try RunningTool(
            ["-o", log, "-e", "trace=sendmsg"] + inject + [
                RunningTool.path, "vm", "checkpoint", scene.store.path, name, "--qmp", scene.guest.machine.monitorPath, "--engine", engine,
            ], program: "/usr/bin/strace", scratch: (scene.store.path as NSString).deletingLastPathComponent)
        return try tool.wait(limitSeconds: 120)
    }

    private static func seed() -> UInt64 {
        ProcessInfo.processInfo.environment["CKSTORE_TEST_SEED"].flatMap { UInt64($0) } ?? UInt64.random(in: 0...UInt64.max)
    }
}
