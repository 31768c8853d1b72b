// Every way to fail has its exit code and says what, where, and what to do.

import CheckpointStore
import Foundation
import Media
import Testing

@Test func `usage errors exit with 2 and say what is accepted`() throws {
    let box = try Sandbox()
    try box.create()
    let file = try box.write("f", zeros(4096))
    let wrong: [[String]] = [
        ["nonsense"], ["create"], ["create", "tape:x"], ["create", box.file("n"), "--size", "8X"],
        ["create", box.file("n"), "--size", "-1"], ["create", box.file("n"), "--size", "99999999999T"],
        ["create", box.file("n"), "--size", "+8G"], ["create", "ram:needs-a-size"], ["create", box.file("n"), "--segment", "5000"],
        ["create", box.file("n"), "--size", "100K"], ["resize", box.store, "much"], ["resize", box.store, "0"],
        ["save", box.store], ["save", box.store, "x"], ["save", box.store, "x", "--memory", "ram"],
        ["save", box.store, "x", "--memory", "=f"], ["save", box.store, "x", "--memory", "ram="],
        ["save", box.store, "x", "--memory", "a=-", "--disk", "b=-"], ["save", box.store, "x", "--memory", "a=\(file)", "--disk", "a=\(file)"],
        ["save", box.store, "x", "--memory", "a=\(file)", "--inherit"], ["save", box.store, "x", "--memory", "a=\(file)", "--jobs", "0"],
        ["save", box.store, "x", "--memory", "a=\(file)", "--label", "nothing"], ["save", box.store, "x/y", "--memory", "a=\(file)"],
        ["save", box.store, "x", "--memory", "a=\(file)", "--label", "a=1", "--label", "a=2"],
        ["save", box.store, "x", "--memory", "a/b=\(file)"], ["save", box.store, "", "--memory", "a=\(file)"],
        ["restore", box.store, "x"], ["restore", box.store, "x", "--region", "a=-", "--all", "d"],
        ["delete", box.store], ["list", box.store, "--generation", "old"], ["list", box.store, "--limit", "0"],
        ["prune", box.store], ["prune", box.store, "--keep-last", "0"], ["prune", box.store, "--keep-within", "soon"],
        ["prune", box.store, "--keep-label", "=x"], ["name", "set", box.store, "latest", "x"], ["name", "set", box.store, "a/b", "x"],
        ["save", box.store, "latest", "--memory", "a=\(file)"], ["save", box.store, "x", "--memory", "a=\(file)", "--point", "latest"],
    ]
    for arguments in wrong {
        let outcome = try box.run(arguments)
        #expect(outcome.exitCode == 2, "\(arguments): \(outcome.errors)")
        #expect(outcome.errors.hasPrefix("ckstore: "), "\(arguments): \(outcome.errors)")
        #expect(outcome.output.isEmpty, "\(arguments)")
    }
    try box.expect(2, "restore", box.store, "x", "--region", "a=-", "--json")
    #expect(try box.expect(2, "create", "--size", "8X", box.file("n")).errors.contains("K, M, G or T"))
    #expect(try box.expect(2, "save", box.store, "x", "--memory", "ram").errors.contains("REGION=FILE"))
    #expect(try box.contents() == ["f", "vm.ck"], "a refused create leaves no file")
    #expect(try box.checkpointNames() == [])
}

@Test func `help and version are answers, and name the exit codes and examples`() throws {
    let box = try Sandbox()
    let help = try box.expect(0, "--help").text
    for text in ["Exit codes:", "--generate-completion-script", "corrupt", "no space"] { #expect(help.contains(text)) }
    for command in ["create", "resize", "save", "restore", "list", "show", "info", "verify", "delete", "read", "prune"] {
        let text = try box.expect(0, command, "--help").text
        #expect(text.contains("ckstore \(command) vm.ck"), "\(command)")
        #expect(text.contains("--json"), "\(command)")
        #expect(text.split(separator: "\n").filter { $0.hasPrefix("  ckstore ") }.allSatisfy { $0.count < 80 })
    }
    #expect(try box.expect(0, "--version").text.hasPrefix("ckstore "))
    #expect(try box.expect(0, "--generate-completion-script", "bash").text.contains("ckstore"))
}

@Test func `inputs that can't be saved are refused before anything is written`() throws {
    let box = try Sandbox()
    try box.create()
    let odd = try box.write("odd", zeros(5000))
    let message = try box.expect(2, "save", box.store, "x", "--memory", "ram=\(odd)").errors
    #expect(message.contains("5000 bytes") && message.contains("--disk"), "\(message)")
    let input = try box.open(odd, O_RDONLY)
    try input.seek(toOffset: 1)
    try box.expect(2, "save", box.store, "x", "--memory", "ram=-", input: input.fileDescriptor)
    try box.expect(5, "save", box.store, "x", "--memory", "ram=\(box.file("missing"))")
    let directory = try box.expect(2, "save", box.store, "x", "--disk", "d=\(box.directory)").errors
    #expect(directory.contains("Is a directory"), "\(directory)")
    if getuid() != 0 {
        try FileManager.default.setAttributes([.posixPermissions: 0], ofItemAtPath: odd)
        try box.expect(1, "save", box.store, "x", "--disk", "d=\(odd)")
    }
    #expect(try box.checkpointNames() == [])
}

@Test func `what is not there exits with 5`() throws {
    let box = try Sandbox()
    try box.expect(5, "list", box.file("missing"))
    try box.expect(5, "list", "ram:ckstore-no-such-memory")
    try box.create()
    let file = try box.write("f", zeros(4096))
    try box.expect(0, "save", box.store, "one", "--memory", "ram=\(file)")
    try box.expect(5, "show", box.store, "two")
    try box.expect(5, "restore", box.store, "two", "--all", box.file("out"))
    try box.expect(5, "verify", box.store, "two")
    try box.expect(5, "save", box.store, "x", "--parent", "two", "--memory", "ram=\(file)")
    try box.expect(5, "read", box.store, "one", "rom")
    try box.expect(5, "restore", box.store, "one", "--region", "ram=\(box.file("out/ram"))")
    let mixed = try box.expect(5, "delete", box.store, "one", "two", "--json").object()
    let error = try #require(mixed["error"] as? [String: Any])
    #expect(error["code"] as? String == "not-found")
    #expect(error["checkpoint"] as? String == "two")
    #expect(try box.checkpointNames() == ["one"], "all are deleted, or none")
    #expect(try box.contents() == ["f", "vm.ck"])
}

@Test func `what is there already exits with 1`() throws {
    let box = try Sandbox()
    try box.create()
    let file = try box.write("f", zeros(4096))
    try box.expect(0, "save", box.store, "one", "--memory", "ram=\(file)")
    let again = try box.expect(1, "create", box.store)
    #expect(again.errors.contains("force"), "\(again.errors)")
    try box.expect(1, "save", box.store, "one", "--memory", "ram=\(file)")
    #expect(try box.checkpointNames() == ["one"])
    try box.expect(2, "create", box.store, "--size", "1M", "--force")
    #expect(try box.checkpointNames() == ["one"], "nothing is lost for a store that can't be")
    try box.expect(0, "create", box.store, "--size", "32M", "--force")
    #expect(try box.checkpointNames() == [])
}

@Test func `what is no store, or not all of one, exits with 3`() throws {
    let box = try Sandbox()
    try box.expect(3, "list", try box.write("text", Array("no store at all".utf8)))
    try box.expect(3, "list", try box.write("zeros", zeros(1 << 20)))
    try box.expect(3, "list", try box.write("empty", []))
    try box.create()
    try box.expect(0, "save", box.store, "one", "--disk", "d=\(box.write("d", noise(1, count: 100_000)))")
    try box.open(box.store, O_RDWR).truncate(atOffset: 1 << 20)
    let outcome = try box.run(["list", box.store, "--json"])
    #expect(outcome.exitCode == 3)
    #expect((try outcome.object()["error"] as? [String: Any])?["code"] as? String == "truncated")
}

@Test func `a full store exits with 4, keeps what it has, and can delete`() throws {
    let box = try Sandbox()
    try box.create(size: "4M", segment: "128K")
    let content = noise(2, count: 1 << 20)
    try box.expect(0, "save", box.store, "one", "--disk", "d=\(box.write("d", content))")
    let large = try box.write("large", noise(3, count: 8 << 20))
    let full = try box.expect(4, "save", box.store, "two", "--disk", "d=\(large)", "--json").object()
    #expect((full["error"] as? [String: Any])?["code"] as? String == "no-space")
    #expect(try box.checkpointNames() == ["one"])
    #expect(try box.expect(0, "restore", box.store, "one", "--region", "d=-").output == content)
    try box.expect(0, "verify", box.store)
    try box.expect(0, "delete", box.store, "one")
    try box.expect(0, "save", box.store, "three", "--disk", "d=\(box.file("d"))")
}

@Test func `a store that somebody else uses exits with 6 and names them`() throws {
    let box = try Sandbox()
    try box.create()
    let store = try CheckpointStore.open(try openMedium(try Locator(box.store), access: .readWrite))
    defer { store.close() }
    for arguments in [["create", box.store, "--force"], ["resize", box.store, "32M"]] {
        let outcome = try box.run(arguments)
        #expect(outcome.exitCode == 6, "\(arguments): \(outcome.errors)")
        #expect(outcome.errors.contains("process \(getpid())"), "\(outcome.errors)")
    }
    // Using it beside each other is no conflict.
    try box.expect(0, "save", box.store, "one", "--disk", "d=\(box.write("d", [1]))")
}

@Test func `the store itself is never the target of a restore`() throws {
    let box = try Sandbox()
    try box.create()
    let content = noise(4, count: 10_000)
    let path = try box.write("d", content)
    try box.expect(0, "save", box.store, "one", "--disk", "vm.ck=\(path)", "--disk", "e=\(path)")
    try box.expect(2, "restore", box.store, "one", "--region", "e=\(box.store)", "--force")
    try box.expect(2, "restore", box.store, "one", "--all", box.directory, "--force")
    try box.expect(
        2, "restore", box.store, "one", "--region", "e=\(box.file("x"))", "--region", "vm.ck=\(box.directory)/./x")
    #expect(try box.checkpointNames() == ["one"])
    #expect(try box.contents() == ["d", "vm.ck"])
}
