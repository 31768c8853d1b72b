// `ckstore repair`: from a synced replica, from a copy, and when nobody has what is missing.

import Foundation
import QEMUTesting
import Testing

/// Overwrites some bytes where `content` stands in a file.
private func damage(_ path: String, where content: ArraySlice<UInt8>) throws {
    let bytes = try Data(contentsOf: URL(fileURLWithPath: path))
    let place = try #require(bytes.range(of: Data(content))).lowerBound
    let handle = try #require(FileHandle(forUpdatingAtPath: path))
    try handle.seek(toOffset: UInt64(place))
    try handle.write(contentsOf: Data(count: 32))
    try handle.close()
}

/// A store with two checkpoints of memory that does not compress, and a synced replica.
private func scene() throws -> (box: Sandbox, replica: String, memory: [UInt8]) {
    let box = try Sandbox()
    try box.create()
    let memory = noise(4, count: 256 << 10)
    try box.expect(0, "save", box.store, "one", "--memory", "ram=\(box.write("ram", memory))")
    try box.expect(0, "save", box.store, "two", "--memory", "ram=\(box.write("ram2", noise(5, count: 256 << 10)))")
    let replica = box.file("replica.ck")
    try box.expect(0, "create", replica, "--size", "32M")
    try box.expect(0, "sync", box.store, replica)
    return (box, replica, memory)
}

@Test func `repair brings back from a synced replica what is damaged`() throws {
    let (box, replica, memory) = try scene()
    #expect(try box.expect(0, "repair", box.store).text.contains("nothing to repair"))
    try damage(box.store, where: memory[8192..<8256])
    let dry = try box.expect(3, "repair", box.store, "--from", replica, "--dry-run", "--json").object()
    #expect(dry["rewrittenBlocks"] as? Int == 1 && (dry["remaining"] as? [Any])?.count == 1)
    try box.expect(3, "verify", box.store)
    let result = try box.expect(0, "repair", box.store, "--from", replica, "--json").object()
    #expect(result["rewrittenBlocks"] as? Int == 1 && (result["remaining"] as? [Any])?.isEmpty == true, "\(result)")
    try box.expect(0, "verify", box.store, "--deep")
    #expect(try box.expect(0, "restore", box.store, "one", "--region", "ram=-").output == memory)
}

@Test func `repair of one checkpoint leaves the others`() throws {
    let (box, replica, memory) = try scene()
    try damage(box.store, where: memory[8192..<8256])
    try damage(box.store, where: noise(5, count: 16384)[8192..<8256])
    try box.expect(0, "repair", box.store, "--from", replica, "--checkpoint", "one")
    try box.expect(0, "verify", box.store, "one")
    try box.expect(3, "verify", box.store, "two")
    try box.expect(5, "repair", box.store, "--from", replica, "--checkpoint", "three")
}

@Test func `repair says what stays damaged and what to do`() throws {
    let (box, _, memory) = try scene()
    try damage(box.store, where: memory[8192..<8256])
    let alone = try box.expect(3, "repair", box.store)
    #expect(alone.errors.contains("stays damaged") && alone.errors.contains("--from"), "\(alone.errors)")
    // A store that never had the checkpoint.
    let other = box.file("other.ck")
    try box.expect(0, "create", other, "--size", "32M")
    let foreign = try box.expect(5, "repair", box.store, "--from", other)
    #expect(foreign.errors.contains("does not have checkpoint one"), "\(foreign.errors)")
    try box.expect(5, "repair", box.store, "--from", box.file("nowhere.ck"))
}

@Test func `repair from a copy of the medium, as after a bad sector`() throws {
    let (box, _, memory) = try scene()
    let copy = box.file("copy.ck")
    try FileManager.default.copyItem(atPath: box.store, toPath: copy)
    try damage(box.store, where: memory[8192..<8256])
    // The index of checkpoint one, too: the leaf block starts with its checksum, and its magic.
    try damage(box.store, where: Array("CKLF".utf8)[...])
    try box.expect(0, "repair", box.store, "--from", copy)
    try box.expect(0, "verify", box.store, "--deep")
}

@Test func `a leaf that is destroyed comes back without any other store`() throws {
    let (box, _, memory) = try scene()
    try damage(box.store, where: Array("CKLF".utf8)[...])
    #expect(try box.expect(3, "verify", box.store).errors.contains("ckstore repair"))
    let dry = try box.expect(3, "repair", box.store, "--dry-run", "--json").object()
    #expect((dry["derivedBlocks"] as? [Any])?.count == 1 && (dry["remaining"] as? [Any])?.count == 1, "\(dry)")
    let result = try box.expect(0, "repair", box.store, "--json").object()
    let derived = try #require(result["derivedBlocks"] as? [[String: Any]])
    #expect(derived.count == 1 && derived[0]["kind"] as? String == "full leaf" && result["rewrittenBlocks"] as? Int == 0, "\(result)")
    try box.expect(0, "verify", box.store, "--deep")
    #expect(try box.expect(0, "restore", box.store, "one", "--region", "ram=-").output == memory)
}

@Test func `repair rebuilds the segment table of a store, and says so`() throws {
    let (box, _, memory) = try scene()
    let bytes = try Data(contentsOf: URL(fileURLWithPath: box.store))
    let handle = try #require(FileHandle(forUpdatingAtPath: box.store))
    // Every copy of a leaf of the table, the one in use among them.
    var start = bytes.startIndex
    while let found = bytes.range(of: Data("CKTL".utf8), in: start..<bytes.endIndex) {
        try handle.seek(toOffset: UInt64(found.lowerBound))
        try handle.write(contentsOf: Data(count: 32))
        start = found.upperBound
    }
    try handle.close()
    let refused = try box.expect(3, "delete", box.store, "one")
    #expect(refused.errors.contains("ckstore repair"), "\(refused.errors)")
    let dry = try box.expect(3, "repair", box.store, "--dry-run")
    #expect(dry.errors.contains("would rebuild segment table"), "\(dry.errors)")
    let result = try box.expect(0, "repair", box.store, "--json").object()
    #expect((result["rebuiltTrees"] as? [[String: Any]])?.first?["name"] as? String == "segment table", "\(result)")
    try box.expect(0, "verify", box.store, "--deep")
    #expect(try box.expect(0, "restore", box.store, "one", "--region", "ram=-").output == memory)
    try box.expect(0, "delete", box.store, "one")
    try box.expect(0, "verify", box.store, "--deep")
}
