// `ckstore report`, and the parts of `ckstore info` that say what segments hold.

import Foundation
import Testing

/// A store with three checkpoints, the second of which is gone again.
private func makeStore() throws -> Sandbox {
    let box = try Sandbox()
    try box.create()
    var parent: [String] = []
    for (name, seed) in [("a", UInt64(1)), ("b", 2), ("c", 3)] {
        let ram = noise(seed, count: 40 * 4096) + noise(9, count: 200 * 4096)
        try box.expectAll(0, ["save", box.store, name, "--memory", "ram=\(box.write("ram", ram))"] + parent)
        parent = ["--parent", name]
    }
    try box.expect(0, "delete", box.store, "b")
    return box
}

extension Sandbox {
    fileprivate func expectAll(_ code: Int32, _ arguments: [String]) throws {
        let outcome = try run(arguments)
        #expect(outcome.exitCode == code, "\(arguments): \(outcome.errors)")
    }
}

@Test func `report writes one page, its data, or both`() throws {
    let box = try makeStore()
    let (page, json) = (box.file("r.html"), box.file("r.json"))
    try box.expect(0, "report", box.store, "-o", page, "--json", json)
    let html = String(decoding: try box.read("r.html"), as: UTF8.self)
    #expect(html.hasPrefix("<!DOCTYPE html>") && html.hasSuffix("</html>\n"))
    let data = try #require(try JSONSerialization.jsonObject(with: Data(try box.read("r.json"))) as? [String: Any])
    #expect((data["checkpoints"] as? [[String: Any]])?.compactMap { $0["name"] as? String } == ["a", "c"])
    #expect(data["formatVersion"] as? Int == 1)
    let alone = try box.expect(0, "report", box.store, "--json", "-", "--checkpoints", "1").object()
    #expect((alone["checkpoints"] as? [[String: Any]])?.compactMap { $0["name"] as? String } == ["c"])
    #expect(alone["omittedCheckpoints"] as? Int == 1)
    #expect(try box.expect(0, "report", box.store, "-o", "-").text.hasPrefix("<!DOCTYPE html>"))
    let permissions = try FileManager.default.attributesOfItem(atPath: page)[.posixPermissions] as? Int
    #expect(permissions == 0o600)
}

@Test func `report replaces nothing unasked and leaves nothing half made`() throws {
    let box = try makeStore()
    let page = try box.write("r.html", [1, 2, 3])
    #expect(try box.expect(1, "report", box.store, "-o", page).errors.contains("--force"))
    #expect(try box.read("r.html") == [1, 2, 3])
    try box.expect(0, "report", box.store, "-o", page, "--force", "--quiet")
    #expect(try box.read("r.html").count > 10_000)
    try box.expect(2, "report", box.store, "-o", box.store, "--force")
    try box.expect(2, "report", box.store)
    try box.expect(2, "report", box.store, "-o", box.file("x"), "--checkpoints", "0")
    try box.expect(2, "report", box.store, "-o", box.file("x"), "--json", box.file("x"))
    try box.expect(5, "report", box.file("none.ck"), "-o", box.file("x"))
    let full = try box.open("/dev/full", O_WRONLY)
    #expect(try box.run(["report", box.store, "-o", "-"], output: full.fileDescriptor).exitCode == 4)
    #expect(try box.contents() == ["r.html", "ram", "vm.ck"])
}

@Test func `info says what segments hold, and what compacting would give back`() throws {
    let box = try makeStore()
    let info = try box.expect(0, "info", box.store, "--segments", "--json").object()
    let classes = try #require(info["classes"] as? [[String: Any]])
    let segments = try #require(info["segments"] as? [[String: Any]])
    #expect(classes.map { $0["name"] as? String } == ["runs", "index", "catalog"])
    func total(_ objects: [[String: Any]], _ key: String) -> Int { objects.reduce(0) { $0 + ($1[key] as? Int ?? 0) } }
    #expect(total(classes, "segmentCount") == info["usedSegments"] as? Int && segments.count == info["usedSegments"] as? Int)
    for key in ["liveBytes", "deadBytes"] {
        #expect(total(classes, key) == info[key] as? Int, "\(key)")
        #expect(total(segments, key) == info[key] as? Int, "\(key)")
    }
    let segmentBytes = try #require(info["segmentBytes"] as? Int)
    let all = total(classes, "liveBytes") + total(classes, "deadBytes") + total(classes, "unwrittenBytes")
    let rest = try #require(info["freeBytes"] as? Int) + #require(info["reserveBytes"] as? Int)
    #expect(all + rest == segmentBytes * (try #require(info["segmentCount"] as? Int)))
    // What b alone had is dead: about 40 pages.
    #expect(try #require(info["deadBytes"] as? Int) > 38 * 4096)
    let text = try box.expect(0, "info", box.store).text
    #expect(text.contains("CLASS") && text.contains("most dead space:") && text.contains("compacting:"), "\(text)")
    #expect(try box.expect(0, "info", box.store, "--segments").text.contains("LAST WRITER"))
}
