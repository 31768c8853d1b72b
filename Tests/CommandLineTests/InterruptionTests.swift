// Signals in the middle of a save or a restore: nothing stays behind, and what was there is still there.

import Foundation
import QEMUTesting
import Testing

@Test func `a signal while input is awaited leaves no checkpoint`() throws {
    for (signal, code) in [(SIGINT, Int32(130)), (SIGTERM, 143), (SIGHUP, 129)] {
        let box = try Sandbox()
        try box.create()
        let pipe = try PrivatePipe()
        let tool = try box.start(
            ["save", box.store, "half", "--disk", "d=-", "--json"], input: pipe.reading.fileDescriptor)
        try pipe.reading.close()
        // More than the pipe takes: when this returns the save is under way.
        try pipe.writing.write(contentsOf: Data(noise(1, count: 4 << 20)))
        tool.send(signal)
        let outcome = try tool.wait()
        #expect(outcome.exitCode == code, "\(outcome.errors)")
        #expect(outcome.errors.contains("cancelled"), "\(outcome.errors)")
        #expect((try outcome.object()["error"] as? [String: Any])?["code"] as? String == "cancelled")
        try pipe.writing.close()
        #expect(try box.checkpointNames() == [])
        try box.expect(0, "verify", box.store)
        try box.expect(0, "save", box.store, "half", "--disk", "d=\(box.write("d", [1]))")
    }
}

@Test func `a signal while a file is saved leaves the whole checkpoint or none`() throws {
    let box = try Sandbox()
    try box.create()
    // Holes all through: long enough to be interrupted, and cheap.
    let path = try box.writeSparse("sparse", length: 4 << 40, [(offset: 0, bytes: noise(1, count: 8 << 20))])
    let tool = try box.start(["save", box.store, "half", "--disk", "d=\(path)"])
    // The threads of the save are there once it has begun.
    while try FileManager.default.contentsOfDirectory(atPath: "/proc/\(tool.process)/task").count < 4 { sched_yield() }
    tool.send(SIGINT)
    let outcome = try tool.wait()
    #expect(outcome.exitCode == 130 || outcome.exitCode == 0, "\(outcome.errors)")
    #expect(try box.checkpointNames() == (outcome.exitCode == 0 ? ["half"] : []))
    try box.expect(0, "verify", box.store)
}

@Test func `a signal that was ignored from the start stays ignored`() throws {
    let box = try Sandbox()
    try box.create()
    let path = try box.writeSparse("sparse", length: 64 << 30, [(offset: 0, bytes: noise(1, count: 1 << 20))])
    let tool = try box.start(
        program: "/bin/sh",
        ["-c", "trap '' INT; exec \"$0\" \"$@\"", RunningTool.path, "save", box.store, "whole", "--disk", "d=\(path)"])
    while try FileManager.default.contentsOfDirectory(atPath: "/proc/\(tool.process)/task").count < 4 { sched_yield() }
    tool.send(SIGINT)
    #expect(try tool.wait().exitCode == 0)
    #expect(try box.checkpointNames() == ["whole"])
}

@Test func `a signal while a restore waits for its reader leaves no file`() throws {
    let box = try Sandbox()
    try box.create()
    try box.expect(
        0, "save", box.store, "one", "--disk", "a=\(box.write("a", noise(1, count: 4 << 20)))", "--disk",
        "b=\(box.write("b", noise(2, count: 4 << 20)))")
    let pipe = try PrivatePipe()
    let tool = try box.start(
        ["restore", box.store, "one", "--region", "a=\(box.file("a.out"))", "--region", "b=-"],
        output: pipe.writing.fileDescriptor)
    try pipe.writing.close()
    // The first file is complete by now; it has no name before all are.
    #expect(try pipe.reading.read(upToCount: 1000)?.isEmpty == false)
    tool.send(SIGTERM)
    let outcome = try tool.wait()
    #expect(outcome.exitCode == 143, "\(outcome.errors)")
    #expect(try box.contents() == ["a", "b", "vm.ck"])
}
