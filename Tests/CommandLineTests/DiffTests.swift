// `ckstore diff` on checkpoints whose differences are known.

import Foundation
import Testing

/// A store with two checkpoints: of a region that changes, one that grows, one that goes and one that comes.
private func makeTwo() throws -> Sandbox {
    let box = try Sandbox()
    try box.create()
    var ram = noise(1, count: 20 * 4096)
    // Page 5 is zero in A only, page 7 in B only.
    ram.replaceSubrange(5 * 4096..<6 * 4096, with: zeros(4096))
    try box.expect(
        0, "save", box.store, "a", "--memory", "ram=\(box.write("ram", ram))", "--disk", "hd=\(box.write("hd", noise(2, count: 10_000)))",
        "--disk", "old=\(box.write("old", noise(3, count: 4096)))")
    ram.replaceSubrange(2 * 4096..<4 * 4096, with: noise(4, count: 2 * 4096))
    ram.replaceSubrange(5 * 4096..<6 * 4096, with: noise(5, count: 4096))
    ram.replaceSubrange(7 * 4096..<8 * 4096, with: zeros(4096))
    try box.expect(
        0, "save", box.store, "b", "--parent", "a", "--memory", "ram=\(box.write("ram", ram))",
        "--disk", "hd=\(box.write("hd", noise(2, count: 10_000) + noise(6, count: 10_000)))",
        "--disk", "new=\(box.write("new", noise(7, count: 8192)))")
    return box
}

private func regions(_ outcome: [String: Any]) throws -> [String: [String: Any]] {
    let list = try #require(outcome["regions"] as? [[String: Any]])
    return Dictionary(uniqueKeysWithValues: list.map { ($0["name"] as? String ?? "", $0) })
}

@Test func `diff counts the pages that differ in each region, whichever checkpoint comes first`() throws {
    let box = try makeTwo()
    for (arguments, sides) in [(["a", "b"], ("onlyInAPages", "onlyInBPages")), (["b", "a"], ("onlyInBPages", "onlyInAPages"))] {
        let found = try regions(box.run(["diff", box.store] + arguments + ["--json"]).object())
        func counts(_ name: String) -> [Int] {
            ["changedPages", sides.0, sides.1].map { found[name]?[$0] as? Int ?? -1 }
        }
        #expect(found.count == 4)
        #expect(counts("ram") == [2, 1, 1])
        // The last page of the shorter disk has gone on, two more are there.
        #expect(counts("hd") == [1, 0, 2])
        #expect(counts("old") == [0, 1, 0])
        #expect(counts("new") == [0, 0, 2])
        #expect(found["ram"]?["ranges"] == nil)
    }
    let same = try regions(box.expect(0, "diff", box.store, "a", "a", "--json").object())
    #expect(same.values.allSatisfy { $0["nodesRead"] as? Int == 0 })
    #expect(same.values.allSatisfy { region in ["changedPages", "onlyInAPages", "onlyInBPages"].allSatisfy { region[$0] as? Int == 0 } })
}

@Test func `diff lists the pages as ranges`() throws {
    let box = try makeTwo()
    let found = try regions(box.expect(0, "diff", box.store, "a", "b", "--region", "ram", "--pages", "--json").object())
    let ranges = try #require(found["ram"]?["ranges"] as? [[String: Any]])
    #expect(found.count == 1)
    #expect(ranges.map { $0["first"] as? Int } == [2, 5, 7])
    #expect(ranges.map { $0["count"] as? Int } == [2, 1, 1])
    #expect(ranges.map { $0["difference"] as? String } == ["changed", "onlyInB", "onlyInA"])
    let text = try box.expect(0, "diff", box.store, "a", "b", "--pages").text
    #expect(text.contains("ram:\n  2-3 changed\n  5 onlyInB\n  7 onlyInA\n"), "\(text)")
    // Disks by bytes, up to the end of the longer one.
    #expect(text.contains("hd:\n  8192+4096 changed\n  12288+7712 onlyInB\n"), "\(text)")
    #expect(text.contains("old (not in B)") && text.contains("new (not in A)"), "\(text)")
    #expect(text.contains("hd (10000 bytes in A, 20000 in B)"), "\(text)")
}

@Test func `diff says what is missing`() throws {
    let box = try makeTwo()
    try box.expect(5, "diff", box.store, "a", "nobody")
    let outcome = try box.expect(5, "diff", box.store, "a", "b", "--region", "tape")
    #expect(outcome.errors.contains("They have: "), "\(outcome.errors)")
    try box.expect(2, "diff", box.store, "a")
}
