// Machines of which no checkpoint can be taken: refused with the reason, and not touched.

import CheckpointCore
import Foundation
import QEMUTesting
import QMP
import Testing
import Units

@Suite(.serialized) struct CheckpointRefusalTests {
    @Test func `a guest that somebody has stopped is refused and stays stopped`() async throws {
        try await onPlainThread {
            let scene = try CheckpointScene(GuestOptions(memorySize: .mebibytes(128)), isBusy: false)
            let monitor = try scene.guest.monitor()
            try monitor.execute("stop")
            let outcome = try scene.store.outcome([
                "vm", "checkpoint", scene.store.path, "c", "--qmp", scene.guest.machine.monitorPath,
            ])
            try require(outcome.exitCode == 6 && outcome.errors.contains("not running"), "\(outcome)")
            try require(try monitor.execute("query-status")["status"]?.string == "paused", "the guest runs")
            try monitor.execute("cont")
            // Private memory can't be seen from outside.
            let external = try scene.store.outcome([
                "vm", "checkpoint", scene.store.path, "c", "--qmp", scene.guest.machine.monitorPath, "--engine", "external",
            ])
            try require(external.exitCode == 1 && external.errors.contains("share=on"), "\(external)")
            monitor.close()
            try scene.requireUnharmed("after two refusals")
            try require(try scene.checkpoints().isEmpty, "a refused checkpoint left a trace")
        }
    }

    @Test func `a machine that is being loaded is refused without a migrate that would spoil it`() async throws {
        try await onPlainThread {
            let folder = try TemporaryFolder()
            let store = try CommandStore(size: .mebibytes(64))
            let socket = folder.file("qmp")
            let child = try ChildProcess.spawn(
                executable: GuestMachine.program,
                arguments: [
                    "-machine", "pc", "-nodefaults", "-display", "none", "-m", "32", "-incoming", "defer", "-qmp",
                    "unix:\(socket),server=on,wait=off", "-qmp", "unix:\(folder.file("qmp2")),server=on,wait=off",
                ], diesWithParent: true)
            defer {
                try? child.kill()
                _ = try? child.wait(timeoutMilliseconds: nil)
            }
            let end = Monotonic.now() + 20_000_000_000
            while !FileManager.default.fileExists(atPath: folder.file("qmp2")), Monotonic.now() < end { usleep(10_000) }
            usleep(200_000)
            let outcome = try store.outcome(["vm", "checkpoint", store.path, "c", "--qmp", socket])
            try require(outcome.exitCode == 6 && outcome.errors.contains("being loaded"), "\(outcome)")
            let monitor = try QMPClient.connect(path: folder.file("qmp2"))
            try require(try monitor.execute("query-migrate")["status"] == nil, "something was migrated")
        }
    }

    @Test func `a socket that is not there, or nobody's, is an error that says what to do`() async throws {
        try await onPlainThread {
            let store = try CommandStore(size: .mebibytes(64))
            let missing = try store.outcome(["vm", "checkpoint", store.path, "c", "--qmp", store.file("none")])
            try require(missing.exitCode == 5 && missing.errors.contains("-qmp unix:"), "\(missing)")
            let usage = try store.outcome(["vm", "checkpoint", store.path, "c", "--qmp", "x", "--latest", "--parent", "p"])
            try require(usage.exitCode == 2, "\(usage)")
        }
    }
}
