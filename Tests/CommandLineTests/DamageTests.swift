// A store with damaged bytes: what is concerned is named, the rest is still there, no wrong byte gets out.

import Foundation
import Testing

/// Flips a bit of the first place in the file where `bytes` stand. Returns that place.
private func damage(_ path: String, at bytes: ArraySlice<UInt8>) throws -> UInt64 {
    var content = try Data(contentsOf: URL(fileURLWithPath: path), options: .alwaysMapped)
    let place = try #require(content.range(of: Data(bytes))).lowerBound
    content = Data()
    let handle = try #require(FileHandle(forUpdatingAtPath: path))
    try handle.seek(toOffset: UInt64(place))
    try handle.write(contentsOf: Data([bytes[bytes.startIndex] ^ 0x10]))
    try handle.close()
    return UInt64(place)
}

@Test func `verify names the checkpoints, region and pages of a flipped bit, and restore refuses just them`() throws {
    let box = try Sandbox()
    try box.create()
    let memory = noise(1, count: 1024 * 4096)
    let disk = noise(2, count: 100_000)
    try box.expect(
        0, "save", box.store, "one", "--memory", "ram=\(box.write("ram", memory))", "--disk", "vda=\(box.write("vda", disk))")
    try box.expect(0, "save", box.store, "two", "--parent", "one", "--inherit")
    try box.expect(0, "save", box.store, "other", "--disk", "d=\(box.write("d", noise(3, count: 5000)))")
    try box.expect(0, "verify", box.store)
    let page = 600
    _ = try damage(box.store, at: memory[page * 4096..<page * 4096 + 64])

    let verified = try box.run(["verify", box.store, "--json"])
    #expect(verified.exitCode == 3)
    let object = try verified.object()
    #expect(object["isSound"] as? Bool == false)
    let damages = try #require(object["damages"] as? [[String: Any]])
    #expect(damages.count == 1)
    let damage = try #require(damages.first)
    #expect(damage["kind"] as? String == "page run")
    #expect(damage["segment"] != nil && damage["offsetBytes"] != nil)
    let losses = try #require(damage["losses"] as? [[String: Any]])
    #expect(Set(losses.flatMap { $0["checkpoints"] as? [String] ?? [] }) == ["one", "two"])
    for loss in losses {
        #expect(loss["region"] as? String == "ram")
        let pages = try #require((loss["pages"] as? [[String: Any]])?.first)
        let first = try #require(pages["first"] as? Int)
        #expect((first..<first + (try #require(pages["count"] as? Int))).contains(page))
        #expect(try #require(pages["count"] as? Int) <= 16)
    }
    let rest = try #require(object["damagedRegions"] as? [[String: Any]])
    #expect(rest.allSatisfy { ($0["readablePages"] as? Int ?? 0) >= 1024 - 16 } && rest.count == 2)
    let text = try box.expect(3, "verify", box.store, "one").errors
    #expect(text.contains("checkpoint one, region ram, pages "), "\(text)")
    try box.expect(0, "verify", box.store, "other")

    // No half image under the final name, nor beside it.
    let restored = try box.run(["restore", box.store, "one", "--region", "ram=\(box.file("new.ram"))", "--json"])
    #expect(restored.exitCode == 3)
    let error = try #require(try restored.object()["error"] as? [String: Any])
    #expect(error["code"] as? String == "corrupt")
    #expect(error["checkpoint"] as? String == "one")
    #expect(error["region"] as? String == "ram")
    #expect(error["pages"] != nil)
    try box.expect(3, "restore", box.store, "one", "--all", box.file("out"))
    try box.expect(3, "restore", box.store, "one", "--region", "ram=\(box.file("ram"))", "--force")
    #expect(try box.read("ram") == memory, "the file that was to be replaced is still there")
    #expect(try box.contents() == ["d", "ram", "vda", "vm.ck"])

    // What is not damaged still comes back.
    #expect(try box.expect(0, "restore", box.store, "one", "--region", "vda=-").output == disk)
    #expect(try box.expect(0, "read", box.store, "one", "ram", "--length", "4096").output == Array(memory[..<4096]))
    let bytes = try box.run(["read", box.store, "one", "ram", "--offset", "\(page * 4096)", "--length", "1"])
    #expect(bytes.exitCode == 3)
    #expect(bytes.output == [])
}

@Test func `a checkpoint with damage can be deleted`() throws {
    let box = try Sandbox()
    try box.create()
    let content = noise(1, count: 100_000)
    try box.expect(0, "save", box.store, "bad", "--disk", "d=\(box.write("d", content))")
    try box.expect(0, "save", box.store, "good", "--disk", "d=\(box.write("d", noise(2, count: 100_000)))")
    _ = try damage(box.store, at: content[..<64])
    try box.expect(3, "verify", box.store)
    try box.expect(0, "delete", box.store, "bad")
    try box.expect(0, "verify", box.store, "--deep")
    #expect(try box.checkpointNames() == ["good"])
}
