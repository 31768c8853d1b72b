// verify at a rate, scrub, salvage, as commands and beside other processes.

import Foundation
import QEMUTesting
import Testing

/// Puts zeros into the store's file.
private func zero(_ path: String, _ range: Range<Int>) throws {
    let handle = try #require(FileHandle(forUpdatingAtPath: path))
    try handle.seek(toOffset: UInt64(range.lowerBound))
    try handle.write(contentsOf: Data(count: range.count))
    try handle.close()
}

/// Where `bytes` stand in a file.
private func place(of bytes: ArraySlice<UInt8>, in path: String) throws -> Int {
    let content = try Data(contentsOf: URL(fileURLWithPath: path), options: .alwaysMapped)
    return try #require(content.range(of: Data(bytes))).lowerBound
}

/// Both slot rings of a store with segments of 256 KiB.
private func zeroSlots(_ path: String) throws {
    for start in [0, 256 << 10] { try zero(path, start..<start + (64 << 10)) }
}

@Test func `verify keeps to a rate`() throws {
    let box = try Sandbox()
    try box.create()
    try box.expect(0, "save", box.store, "one", "--memory", "ram=\(box.write("ram", noise(1, count: 1 << 20)))")
    let start = Date()
    try box.expect(0, "verify", box.store, "--rate", "1M")
    // A MiB at a MiB a second, but for the burst.
    #expect(Date().timeIntervalSince(start) > 0.8)
    try box.expect(2, "verify", box.store, "--rate", "0")
}

@Test func `scrub makes one pass, reports it, and ends with 3 when there is damage`() throws {
    let box = try Sandbox()
    try box.create()
    let memory = noise(4, count: 256 << 10)
    try box.expect(0, "save", box.store, "one", "--memory", "ram=\(box.write("ram", memory))")
    let sound = try box.expect(0, "scrub", box.store, "--once", "--json").object()
    let pass = try #require(sound["pass"] as? [String: Any])
    #expect(pass["isSound"] as? Bool == true && pass["checkpointCount"] as? Int == 1)
    try zero(box.store, try place(of: memory[8192..<8256], in: box.store)..<(try place(of: memory[8192..<8256], in: box.store)) + 64)
    let text = try box.expect(3, "scrub", box.store, "--once", "--rate", "1G").errors
    #expect(text.contains("checkpoint one, region ram, pages "), "\(text)")
    try box.expect(2, "scrub", box.store, "--once", "--interval", "1h")
    try box.expect(2, "scrub", box.store, "--interval", "soon")
}

@Test func `scrub beside processes that save and delete finds no damage`() throws {
    let box = try Sandbox()
    try box.create(size: "24M")
    try box.write("ram", noise(0, count: 1 << 20))
    try box.expect(0, "save", box.store, "c0", "--memory", "ram=\(box.file("ram"))")
    for round in 1...12 {
        let scrubs = try (0..<2).map { _ in try box.start(["scrub", box.store, "--once", "--rate", "20M", "--json"]) }
        try box.write("ram", noise(UInt64(round % 3), count: 1 << 20))
        try box.expect(0, "save", box.store, "c\(round)", "--memory", "ram=\(box.file("ram"))", "--parent", "c\(round - 1)")
        if round > 2 { try box.expect(0, "delete", box.store, "c\(round - 2)") }
        for scrub in scrubs {
            let outcome = try scrub.wait()
            #expect(outcome.exitCode == 0, "round \(round): \(outcome.errors) \(outcome.text)")
        }
    }
    try box.expect(0, "verify", box.store, "--deep")
}

@Test func `salvage brings a store without slots back, and names what is missing`() throws {
    let box = try Sandbox()
    try box.create()
    let (memory, disk) = (noise(1, count: 1 << 20), noise(2, count: 100_000))
    try box.expect(0, "save", box.store, "one", "--memory", "ram=\(box.write("ram", memory))", "--disk", "vda=\(box.write("vda", disk))")
    try box.expect(0, "save", box.store, "two", "--parent", "one", "--inherit")
    try zeroSlots(box.store)
    try box.expect(3, "verify", box.store)

    // 3, since nobody can say that these were all.
    try box.expect(3, "salvage", box.store, "--dry-run")
    #expect(try !box.contents().contains("new.ck"))
    let report = try box.expect(3, "salvage", box.store, "--into", box.file("new.ck"), "--json").object()
    let found = try #require(report["checkpoints"] as? [[String: Any]])
    #expect(found.compactMap { $0["name"] as? String }.sorted() == ["one", "two"])
    #expect(found.allSatisfy { $0["state"] as? String == "whole" })
    for name in ["one", "two"] {
        #expect(try box.expect(0, "restore", box.file("new.ck"), name, "--region", "ram=-").output == memory)
        #expect(try box.expect(0, "restore", box.file("new.ck"), name, "--region", "vda=-").output == disk)
    }
    try box.expect(0, "verify", box.file("new.ck"), "--deep")

    let at = try place(of: memory[409_600..<409_664], in: box.store)
    try zero(box.store, at..<at + 64)
    let second = try box.expect(3, "salvage", box.store, "--into", box.file("second.ck"))
    #expect(second.errors.contains("checkpoint one: partial") && second.errors.contains("region ram: 240 pages are there, 16 are lost: 96..<112"), "\(second.errors)")
}

@Test func `salvage refuses to write into what it reads`() throws {
    let box = try Sandbox()
    try box.create()
    try box.expect(0, "save", box.store, "one", "--memory", "ram=\(box.write("ram", noise(1, count: 1 << 16)))")
    try box.expect(2, "salvage", box.store, "--into", box.store)
    try box.expect(0, "verify", box.store)
    try zeroSlots(box.store)
    try box.expect(3, "salvage", box.store, "--into", box.store)
    try box.expect(2, "salvage", box.store)
    try box.expect(5, "salvage", box.file("nothing"), "--dry-run")
    #expect(try box.expect(3, "salvage", box.store, "--dry-run").text.contains("would bring back 1 checkpoint"))
}
