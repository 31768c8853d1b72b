// `ckstore compact`: what it says, what it leaves, how it ends.

import Foundation
import QEMUTesting
import Testing

/// A store with "new", of which a good part shares segments with what was deleted. Returns its content.
private func makeHoles(_ box: Sandbox) throws -> [UInt8] {
    try box.create(segment: "1M")
    let old = noise(1, count: 16 << 20)
    var new = old
    // Every other run of 64 KiB is written anew.
    for start in stride(from: 0, to: new.count, by: 128 << 10) {
        new.replaceSubrange(start..<start + (64 << 10), with: noise(UInt64(start + 2), count: 64 << 10))
    }
    try box.expect(0, "save", box.store, "old", "--disk", "d=\(box.write("old", old))")
    try box.expect(0, "save", box.store, "new", "--parent", "old", "--disk", "d=\(box.write("new", new))")
    try box.expect(0, "delete", box.store, "old")
    return new
}

@Test func `compaction frees what a deletion could not, and checkpoints stay as they are`() throws {
    let box = try Sandbox()
    let content = try makeHoles(box)
    let planned = try box.expect(0, "compact", box.store, "--dry-run", "--json").object()
    #expect((planned["freedSegments"] as? Int ?? 0) > 10)
    #expect(planned["commits"] as? Int == 0)
    let done = try box.expect(0, "compact", box.store, "--json").object()
    #expect((done["freedSegments"] as? Int ?? 0) > 10)
    #expect((done["movedBytes"] as? Int ?? 0) > 1 << 20)
    let (used, live) = (done["usedBytesAfter"] as? Int ?? 0, done["liveBytes"] as? Int ?? 1)
    #expect(Double(used) < 1.15 * Double(live))
    try box.expect(0, "verify", box.store, "--deep")
    try box.expect(0, "restore", box.store, "new", "--region", "d=\(box.file("out"))")
    #expect(try box.read("out") == content)
    let again = try box.expect(0, "compact", box.store, "--json").object()
    #expect(again["movedBytes"] as? Int == 0)
}

@Test func `a signal ends compaction with what was done so far`() throws {
    let box = try Sandbox()
    let content = try makeHoles(box)
    let tool = try box.start(["compact", box.store, "--watch", "--rate", "64K", "--json"])
    while try FileManager.default.contentsOfDirectory(atPath: "/proc/\(tool.process)/task").count < 3 { sched_yield() }
    tool.send(SIGINT)
    #expect(try tool.wait().exitCode == 0)
    try box.expect(0, "verify", box.store, "--deep")
    try box.expect(0, "restore", box.store, "new", "--region", "d=\(box.file("out"))")
    #expect(try box.read("out") == content)
}

@Test func `what another process was reading is given back by the next compaction`() throws {
    let box = try Sandbox()
    try box.create(segment: "1M")
    for name in ["one", "two"] {
        try box.expect(0, "save", box.store, name, "--disk", "d=\(box.write("d", noise(UInt64(name.count + name.utf8.count), count: 16 << 20)))")
    }
    let pipe = try PrivatePipe()
    // It stops when the pipe is full, in the middle of what it reads.
    let reader = try box.start(["read", box.store, "one", "d"], output: pipe.writing.fileDescriptor)
    try pipe.writing.close()
    let first = try #require(try pipe.reading.read(upToCount: 4096))
    let before = box.allocatedBytes("vm.ck")
    try box.expect(0, "delete", box.store, "one")
    #expect(box.allocatedBytes("vm.ck") > before - (1 << 20))
    func freeAllocated() throws -> Int { try box.expect(0, "info", box.store, "--json").object()["freeAllocatedBytes"] as? Int ?? -1 }
    #expect(try freeAllocated() >= 16 << 20)
    #expect(try box.expect(0, "info", box.store).text.contains("not given back yet"))
    let early = try box.expect(0, "compact", box.store, "--json").object()
    #expect((early["givenBackBytes"] as? Int ?? -1) < 1 << 20)
    let rest = try #require(try pipe.reading.readToEnd())
    #expect(try reader.wait().exitCode == 0)
    #expect(first.count + rest.count == 16 << 20)
    let planned = try box.expect(0, "compact", box.store, "--dry-run", "--json").object()
    #expect((planned["givenBackBytes"] as? Int ?? 0) >= 16 << 20)
    let done = try box.expect(0, "compact", box.store, "--json").object()
    #expect((done["givenBackBytes"] as? Int ?? 0) >= 16 << 20)
    #expect(box.allocatedBytes("vm.ck") < before - (14 << 20), "and what the catalog took meanwhile")
    #expect(try freeAllocated() < 1 << 20)
    try box.expect(0, "verify", box.store, "--deep")
}

@Test func `options of compaction that make no sense are refused`() throws {
    let box = try Sandbox()
    try box.create()
    for arguments in [["--target", "0.5"], ["--rate", "0"], ["--interval", "0"], ["--watch", "--dry-run"]] {
        let outcome = try box.run(["compact", box.store] + arguments)
        #expect(outcome.exitCode == 2, "\(arguments): \(outcome.errors)")
    }
    try box.expect(5, "compact", box.file("missing"))
}
