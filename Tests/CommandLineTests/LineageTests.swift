// The tree of checkpoints, names that move, and pruning, as the command shows and does them.

import Foundation
import Testing

/// A store with a trunk "a" - "b" - "d", and "c" beside "b".
private func makeTree() throws -> Sandbox {
    let box = try Sandbox()
    try box.create()
    for (name, parent) in [("a", nil), ("b", "a"), ("c", "a"), ("d", "b")] as [(String, String?)] {
        let path = try box.write("s", Array("state of \(name)".utf8))
        let outcome = try box.run(
            ["save", box.store, name, "--state", "s=\(path)", "--label", "of=\(name)", "-q"] + (parent.map { ["--parent", $0] } ?? []))
        #expect(outcome.exitCode == 0, "\(outcome.errors)")
    }
    return box
}

/// The first column of what `list` prints: the drawing and the names.
private func drawing(_ box: Sandbox, _ arguments: String...) throws -> [String] {
    let outcome = try box.run(["list", box.store] + arguments)
    #expect(outcome.exitCode == 0, "\(outcome.errors)")
    return outcome.text.split(separator: "\n").dropFirst().map { line in
        // The columns are apart by two blanks at least.
        line.range(of: "  ").map { String(line[..<$0.lowerBound]) } ?? String(line)
    }
}

@Test func `a store is listed as a tree, with a dot where a deleted checkpoint joins branches`() throws {
    let box = try makeTree()
    #expect(try drawing(box) == ["a", "│ └ c", "├ b", "└ d"])
    #expect(try drawing(box, "--limit", "1") == ["d"])
    #expect(try drawing(box, "--label", "of=b") == ["b"])
    #expect(try drawing(box, "--label", "of", "--flat") == ["a", "b", "c", "d"])
    try box.expect(0, "delete", box.store, "a", "-q")
    #expect(try drawing(box) == ["·", "│ └ c", "├ b", "└ d"])
    let object = try box.expect(0, "list", box.store, "--json").object()
    let checkpoints = try #require(object["checkpoints"] as? [[String: Any]])
    let deleted = try #require(object["deletedMembers"] as? [[String: Any]])
    #expect(deleted.count == 1)
    let c = try #require(checkpoints.first { $0["name"] as? String == "c" })
    #expect(c["lineageParentID"] as? String == deleted[0]["id"] as? String)
    #expect(c["parentID"] as? String == deleted[0]["id"] as? String)
    #expect(c["parentName"] == nil)
    #expect(checkpoints.compactMap { ($0["references"] as? [String]).flatMap { $0.isEmpty ? nil : $0 } } == [["latest"]])
}

@Test func `a moving name stands for its checkpoint in every command, and keeps it from being deleted`() throws {
    let box = try makeTree()
    #expect(try box.expect(0, "restore", box.store, "latest", "--region", "s=-").text == "state of d")
    try box.expect(0, "name", "set", box.store, "stable", "b")
    for command in [["show"], ["verify"], ["read"], ["diff"]] {
        let more = command == ["read"] ? ["s"] : command == ["diff"] ? ["latest"] : []
        let outcome = try box.run(command + [box.store, "stable"] + more)
        #expect(outcome.exitCode == 0, "\(command): \(outcome.errors)")
    }
    let refused = try box.expect(1, "delete", box.store, "b")
    #expect(refused.errors.contains("ckstore name"), "\(refused.errors)")
    let path = try box.write("s", [1])
    let saved = try box.expect(0, "save", box.store, "e", "--parent", "stable", "--state", "s=\(path)", "--point", "stable", "--json").object()
    #expect((saved["checkpoint"] as? [String: Any])?["parentName"] as? String == "b")
    #expect(try box.expect(0, "name", "list", box.store).text.contains("stable"))
    try box.expect(0, "delete", box.store, "b", "-q")
    try box.expect(0, "name", "remove", box.store, "stable", "-q")
    try box.expect(5, "name", "remove", box.store, "stable")
    try box.expect(5, "show", box.store, "stable")
    try box.expect(0, "verify", box.store, "--deep")
}

@Test func `pruning says why each checkpoint is kept`() throws {
    let box = try makeTree()
    try box.expect(0, "name", "set", box.store, "stable", "a", "-q")
    let dry = try box.expect(0, "prune", box.store, "--keep-label", "of=c", "--dry-run").text
    #expect(dry.contains("would delete 1 checkpoint"), "\(dry)")
    let object = try box.expect(0, "prune", box.store, "--keep-label", "of=c", "--json").object()
    #expect(object["deleted"] as? [String] == ["b"])
    let kept = try #require(object["kept"] as? [[String: Any]])
    #expect(kept.map { $0["reasons"] as? [String] } == [["name stable"], ["label of=c"], ["name latest"]])
    #expect(try box.checkpointNames() == ["a", "c", "d"])
    try box.expect(0, "prune", box.store, "--keep-within", "1h", "-q")
    #expect(try box.checkpointNames() == ["a", "c", "d"])
}
