// Checkpoints of a program's own memory, as a user meets them: the bench beside fork, and the example.

import Foundation
import QEMUTesting
import Testing

@Suite(.serialized) struct LiveMemoryTests {
    @Test func `bench-live measures every kind of memory beside fork and leaves nothing behind`() throws {
        let sandbox = try Sandbox()
        let outcome = try sandbox.expect(0, "bench-live", sandbox.file("bench.ck"), "--size", "16M", "--rounds", "1", "--json")
        let report = try outcome.object()
        let rows = try #require(report["rows"] as? [[String: Any]])
        for kind in ["anonymous", "transparent-huge", "shared"] {
            let ofKind = rows.filter { $0["memory"] as? String == kind }
            #expect(ofKind.contains { ($0["name"] as? String)?.contains("first stop") ?? false && $0["peer"] is Double })
            #expect(ofKind.contains { ($0["name"] as? String)?.contains("adaptive") ?? false && ($0["value"] as? Double ?? 0) > 0 })
        }
        #expect(try sandbox.contents() == [])
    }

    @Test(.enabled(if: geteuid() == 0, "only root can become somebody without rights"))
    func `without the right to watch memory the error names the sysctl and the capability`() throws {
        let sandbox = try Sandbox()
        let outcome = try sandbox.start(
            program: "/usr/bin/setpriv", ["--reuid", "65534", "--clear-groups", "--bounding-set", "-all", RunningTool.path, "bench-live", "ram:never-made", "--size", "16M"]
        ).wait()
        #expect(outcome.exitCode == 1)
        #expect(outcome.errors.contains("vm.unprivileged_userfaultfd") && outcome.errors.contains("CAP_SYS_PTRACE"), "\(outcome.errors)")
    }

    @Test func `the example's table goes on from its last checkpoint after kill -9, and its sum is right`() throws {
        let sandbox = try Sandbox()
        let program = (RunningTool.path as NSString).deletingLastPathComponent + "/table-example"
        let store = sandbox.file("table.ck")
        var (lastMoves, lastName) = (-1, "")
        for round in 0..<4 {
            let running = try sandbox.start(program: program, [store, "--mebibytes", "16", "--seconds", "60", "--interval", "0"])
            // Killed at some moment after its next checkpoint.
            let newest = try waitForCheckpoint(after: lastName, in: store, sandbox)
            usleep(UInt32(round * 13_700))
            kill(running.process, SIGKILL)
            _ = try running.wait()
            let check = try sandbox.start(program: program, [store, "--check"]).wait()
            #expect(check.exitCode == 0 && check.text.contains(" consistent"), "\(check.text) \(check.errors)")
            let moves = check.text.split(separator: " ").compactMap { Int($0) }.first ?? 0
            #expect(moves > lastMoves, "round \(round): the table has not gone on")
            (lastMoves, lastName) = (moves, newest)
        }
        try sandbox.expect(0, "verify", store)
    }

    /// The newest checkpoint's name, once it is another one.
    private func waitForCheckpoint(after name: String, in store: String, _ sandbox: Sandbox) throws -> String {
        for _ in 0..<600 {
            let list = try sandbox.run(["list", store, "--json"])
            if list.exitCode == 0, let newest = (try list.object()["checkpoints"] as? [[String: Any]])?.last?["name"] as? String, newest != name { return newest }
            usleep(50_000)
        }
        Issue.record("no checkpoint came")
        return name
    }
}
