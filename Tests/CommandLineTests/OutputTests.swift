// Full disks, gone readers, and JSON for programs.

import Foundation
import QEMUTesting
import Testing

@Test func `a full output is an error and leaves no file`() throws {
    let box = try Sandbox()
    try box.create()
    try box.expect(0, "save", box.store, "one", "--disk", "d=\(box.write("d", noise(1, count: 1 << 20)))")
    let full = try box.open("/dev/full", O_WRONLY)
    for arguments in [["list", box.store], ["restore", box.store, "one", "--region", "d=-"], ["read", box.store, "one", "d"]] {
        let outcome = try box.run(arguments, output: full.fileDescriptor)
        #expect(outcome.exitCode == 4, "\(arguments): \(outcome.errors)")
        #expect(outcome.errors.contains("No space left"), "\(arguments): \(outcome.errors)")
    }
    // A limit on file sizes stands for a disk that fills up.
    let limited = try box.start(
        program: "/bin/sh",
        ["-c", "ulimit -f 100; exec \"$0\" \"$@\"", RunningTool.path, "restore", box.store, "one", "--all", box.file("out")]
    ).wait()
    #expect(limited.exitCode == 4, "\(limited.errors)")
    #expect(limited.errors.contains("out/d"), "\(limited.errors)")
    #expect(try box.contents() == ["d", "vm.ck"])
}

@Test func `a reader that goes away ends the command quietly`() throws {
    let box = try Sandbox()
    try box.create()
    try box.expect(0, "save", box.store, "one", "--disk", "d=\(box.write("d", noise(1, count: 1 << 20)))")
    for arguments in [["list", box.store], ["restore", box.store, "one", "--region", "d=-"], ["info", box.store, "--json"]] {
        let pipe = try PrivatePipe()
        try pipe.reading.close()
        let outcome = try box.run(arguments, output: pipe.writing.fileDescriptor)
        #expect(outcome.signal == SIGPIPE, "\(arguments)")
        #expect(outcome.errors == "", "\(arguments)")
    }
}

@Test func `standard streams that are closed never become the store`() throws {
    let box = try Sandbox()
    try box.create()
    let path = try box.write("d", noise(1, count: 10_000))
    let closed = try box.start(
        program: "/bin/sh",
        ["-c", "exec \"$0\" \"$@\" <&- >&- 2>&-", RunningTool.path, "save", box.store, "one", "--disk", "d=\(path)"]
    ).wait()
    #expect(closed.exitCode == 1, "what it did could not be printed")
    #expect(try box.checkpointNames() == ["one"])
    try box.expect(0, "verify", box.store, "--deep")
}

@Test func `quiet commands print nothing`() throws {
    let box = try Sandbox()
    let path = try box.write("d", noise(1, count: 10_000))
    for arguments in [
        ["create", box.store, "--size", "64M"], ["save", box.store, "one", "--disk", "d=\(path)"],
        ["restore", box.store, "one", "--all", box.file("out")], ["verify", box.store], ["delete", box.store, "one"],
        ["resize", box.store, "32M"],
    ] {
        let outcome = try box.run(arguments + ["--quiet"])
        #expect(outcome.exitCode == 0 && outcome.output.isEmpty && outcome.errors.isEmpty, "\(arguments): \(outcome.errors)")
    }
}

@Test func `every command answers in JSON with its documented fields`() throws {
    let box = try Sandbox()
    func fields(_ arguments: String..., names: [String], at location: SourceLocation = #_sourceLocation) throws {
        let outcome = try box.run(arguments + ["--json"])
        #expect(outcome.exitCode == 0, "\(outcome.errors)", sourceLocation: location)
        #expect(outcome.errors == "", sourceLocation: location)
        let object = try outcome.object(at: location)
        #expect(object.keys.sorted() == names, sourceLocation: location)
    }
    try fields("create", box.store, "--size", "64M", names: ["medium", "segmentBytes", "segmentCount", "sizeBytes", "uuid"])
    let path = try box.write("d", noise(1, count: 10_000))
    try fields(
        "save", box.store, "one", "--disk", "d=\(path)",
        names: [
            "checkpoint", "elapsedSeconds", "logicalBytes", "logicalBytesPerSecond", "newPages", "storedBytes",
            "storedBytesPerSecond", "totalPages", "unchangedPages", "zeroPages",
        ])
    try box.expect(0, "save", box.store, "two", "--parent", "one", "--disk", "d=\(path)", "--quiet")
    try fields("list", box.store, names: ["checkpoints", "deletedMembers", "generation", "medium"])
    try fields("name", "set", box.store, "stable", "one", names: ["checkpoint", "checkpointID", "name"])
    try fields("name", "list", box.store, names: ["names"])
    try fields("name", "remove", box.store, "stable", names: ["removed"])
    try fields("prune", box.store, "--keep-last", "2", "--dry-run", names: ["deleted", "freedBytes", "isDryRun", "kept"])
    try fields(
        "show", box.store, "two",
        names: [
            "createdAt", "createdNanoseconds", "generation", "id", "labels", "logicalBytes", "name", "newPages", "parentID",
            "parentName", "regions", "storedBytes",
        ])
    let region = try #require((try box.expect(0, "show", box.store, "two", "--json").object()["regions"] as? [[String: Any]])?.first)
    #expect(
        region.keys.sorted() == ["kind", "lengthBytes", "name", "newPages", "totalPages", "unchangedPages", "zeroPages"])
    try fields(
        "info", box.store,
        names: [
            "catalogBytes", "checkpointCount", "classes", "compaction", "deadBytes", "deadestSegments", "eraseUnitBytes", "features",
            "freeAllocatedBytes", "freeBytes", "generation", "indexBytes", "isPersistent", "isPersistentMemory", "isReadOnly", "kind", "liveBytes",
            "logicalBytes", "medium", "nonZeroBytes", "ratio", "reserveBytes", "reserveSegments", "reservesSpace", "runBytes", "segmentBytes", "segmentCount", "sharedBytes", "sizeBytes",
            "usedSegments", "uuid", "writeMethod",
        ])
    try fields(
        "verify", box.store,
        names: ["checkpointCount", "damagedRegions", "damages", "generation", "isSound", "lostBytes", "lostPages", "medium", "seconds", "verifiedBlocks", "verifiedBytes"])
    try fields(
        "restore", box.store, "two", "--all", box.file("out"),
        names: ["checkpoint", "elapsedSeconds", "logicalBytes", "logicalBytesPerSecond", "regions"])
    try fields("delete", box.store, "one", "two", names: ["deleted", "freedBytes", "freedSegments", "nodesRead"])
    try fields(
        "resize", box.store, "32M", names: ["earlierSegmentCount", "medium", "segmentBytes", "segmentCount", "sizeBytes"])
}

@Test func `errors in JSON have the code, the place and the remedy, whatever went wrong`() throws {
    let box = try Sandbox()
    try box.create()
    let usage = try box.run(["create", box.file("n"), "--size", "8X", "--json"])
    #expect(usage.exitCode == 2)
    let wrong = try #require(try usage.object()["error"] as? [String: Any])
    #expect(wrong["code"] as? String == "usage")
    #expect((wrong["message"] as? String)?.contains("8X") == true)
    let missing = try box.run(["read", box.store, "one", "d", "--json"])
    #expect(missing.exitCode == 5)
    let error = try #require(try missing.object()["error"] as? [String: Any])
    #expect(error.keys.sorted() == ["checkpoint", "code", "medium", "message", "remedy"])
    #expect(error["medium"] as? String == "file:\(box.store)")
    #expect(missing.errors.hasPrefix("ckstore: "))
}
