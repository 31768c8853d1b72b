// What is saved comes back: from files, streams, sparse files, with parents and labels.

import Foundation
import Testing

@Test func `memory, disk and state of any length come back bit by bit`() throws {
    let box = try Sandbox()
    try box.create()
    let memory = noise(1, count: 40 * 4096) + zeros(600 * 4096) + noise(2, count: 4096)
    let disk = noise(3, count: 1_000_001)
    let state = Array("device state".utf8)
    let saved = try box.expect(
        0, "save", box.store, "one", "--memory", "ram=\(box.write("a", memory))", "--disk", "vda=\(box.write("b", disk))",
        "--state", "dev=\(box.write("c", state))", "--state", "nothing=\(box.write("d", []))")
    #expect(saved.text.contains("287 new, 600 zero, 0 unchanged"), "\(saved.text)")
    #expect(saved.errors.isEmpty, "progress without a terminal")

    try box.expect(0, "restore", box.store, "one", "--all", box.file("out"))
    #expect(try box.contents(of: "out") == ["dev", "nothing", "ram", "vda"])
    #expect(try box.read("out/ram") == memory)
    #expect(try box.read("out/vda") == disk)
    #expect(try box.read("out/dev") == state)
    #expect(try box.read("out/nothing") == [])

    try box.expect(
        0, "restore", box.store, "one", "--region", "vda=\(box.file("disk.img"))", "--region", "dev=\(box.file("state"))",
        "--jobs", "1")
    #expect(try box.read("disk.img") == disk)
    #expect(try box.read("state") == state)
}

@Test func `random regions come back, whatever they hold`() throws {
    let seed = UInt64.random(in: .min ... .max)
    var generator = SeededGenerator(seed: seed)
    let box = try Sandbox()
    // Small segments: blocks that have to go on in the next one all the time.
    try box.create(segment: "128K")
    for round in 0..<6 {
        let kind = ["--memory", "--disk", "--state"].randomElement(using: &generator)!
        var content: [UInt8] = []
        for _ in 0..<Int.random(in: 0...12, using: &generator) {
            let count = Int.random(in: 1...200_000, using: &generator)
            let isNoise = Bool.random(using: &generator)
            content += isNoise ? noise(generator.next(), count: count) : [UInt8](repeating: UInt8(count & 1), count: count)
        }
        if kind == "--memory" { content += zeros((4096 - content.count % 4096) % 4096) }
        let name = "c\(round)"
        var arguments = ["save", box.store, name, kind, "r=\(try box.write(name, content))", "--jobs", "\(1 + round % 3)"]
        if round > 0, Bool.random(using: &generator) { arguments += ["--parent", "c\(round - 1)"] }
        let saved = try box.run(arguments)
        #expect(saved.exitCode == 0, "seed \(seed), round \(round): \(saved.errors)")
        try box.expect(0, "restore", box.store, name, "--region", "r=\(box.file("\(name).out"))")
        #expect(try box.read("\(name).out") == content, "seed \(seed), round \(round)")
    }
    try box.expect(0, "verify", box.store, "--deep")
}

@Test func `standard input is saved and standard output restored to, with the same bytes`() throws {
    let box = try Sandbox()
    try box.create()
    let content = noise(5, count: 5_000_003)
    let pipe = try PrivatePipe()
    let tool = try box.start(["save", box.store, "piped", "--disk", "vda=-"], input: pipe.reading.fileDescriptor)
    try pipe.reading.close()
    try pipe.writing.write(contentsOf: Data(content))
    try pipe.writing.close()
    #expect(try tool.wait().exitCode == 0)

    let restored = try box.expect(0, "restore", box.store, "piped", "--region", "vda=-")
    #expect(restored.output == content)

    // A file as standard input is read as the file that it is, or from where it was read up to.
    let input = try box.open(try box.write("input", content), O_RDONLY)
    try box.expect(0, "save", box.store, "redirected", "--disk", "vda=-", input: input.fileDescriptor)
    #expect(try box.expect(0, "restore", box.store, "redirected", "--region", "vda=-").output == content)
    try input.seek(toOffset: 1000)
    try box.expect(0, "save", box.store, "rest", "--disk", "vda=-", input: input.fileDescriptor)
    #expect(try box.expect(0, "restore", box.store, "rest", "--region", "vda=-").output == Array(content[1000...]))
}

@Test func `sparse files are saved by their extents and restored with holes`() throws {
    let box = try Sandbox()
    try box.create()
    let (first, second) = (noise(6, count: 10_000), noise(7, count: 5000))
    let length: UInt64 = 64 << 30
    let path = try box.writeSparse("sparse", length: length, [(offset: 8192 + 100, bytes: first), (offset: length - 5000, bytes: second)])
    let saved = try box.expect(0, "save", box.store, "sparse", "--memory", "ram=\(path)", "--json").object()
    #expect(saved["logicalBytes"] as? UInt64 == length)
    #expect(try #require(saved["newPages"] as? Int) == 5)
    try box.expect(0, "restore", box.store, "sparse", "--region", "ram=\(box.file("out"))")
    #expect(try FileManager.default.attributesOfItem(atPath: box.file("out"))[.size] as? UInt64 == length)
    #expect(box.allocatedBytes("out") < 1 << 20)
    let handle = try box.open(box.file("out"), O_RDONLY)
    try handle.seek(toOffset: 8192)
    #expect(try handle.read(upToCount: 10_200).map([UInt8].init) == zeros(100) + first + zeros(100))
    try handle.seek(toOffset: length - 5001)
    #expect(try handle.readToEnd().map([UInt8].init) == [0] + second)
}

@Test func `a checkpoint with a parent stores what differs and reads as a whole`() throws {
    let box = try Sandbox()
    try box.create()
    var memory = noise(8, count: 2000 * 4096)
    let path = try box.write("ram", memory)
    try box.expect(0, "save", box.store, "one", "--memory", "ram=\(path)", "--state", "dev=\(box.write("dev", noise(9, count: 100)))")
    for page in [0, 700, 1999] { memory[page * 4096] ^= 1 }
    memory.replaceSubrange(300 * 4096..<310 * 4096, with: zeros(10 * 4096))
    try box.write("ram", memory)
    let saved = try box.expect(0, "save", box.store, "two", "--parent", "one", "--memory", "ram=\(path)", "--json").object()
    #expect(saved["newPages"] as? Int == 3)
    #expect(saved["zeroPages"] as? Int == 10)
    #expect(saved["unchangedPages"] as? Int == 1987)
    #expect(try #require(saved["storedBytes"] as? Int) < 100_000)
    let checkpoint = try #require(saved["checkpoint"] as? [String: Any])
    #expect(checkpoint["parentName"] as? String == "one")
    #expect((checkpoint["regions"] as? [[String: Any]])?.map { $0["name"] as? String } == ["ram"], "only what was named")

    // Without its parent it still reads as a whole.
    try box.expect(0, "delete", box.store, "one")
    #expect(try box.expect(0, "restore", box.store, "two", "--region", "ram=-").output == memory)
    #expect(try box.expect(0, "list", box.store, "--flat").text.contains("(deleted)"))
}

@Test func `regions that are not named are taken over where that is asked for`() throws {
    let box = try Sandbox()
    try box.create()
    let state = noise(10, count: 77)
    try box.expect(
        0, "save", box.store, "one", "--memory", "ram=\(box.write("ram", noise(11, count: 8192)))", "--state",
        "dev=\(box.write("dev", state))")
    let newer = noise(12, count: 12288)
    try box.expect(0, "save", box.store, "two", "--parent", "one", "--inherit", "--memory", "ram=\(box.write("ram", newer))")
    #expect(try box.expect(0, "restore", box.store, "two", "--region", "dev=-").output == state)
    #expect(try box.expect(0, "restore", box.store, "two", "--region", "ram=-").output == newer)
    try box.expect(0, "save", box.store, "three", "--parent", "two", "--inherit")
    #expect(try box.expect(0, "restore", box.store, "three", "--region", "ram=-").output == newer)
}

@Test func `labels are kept and shown, and can't move the terminal's cursor`() throws {
    let box = try Sandbox()
    try box.create()
    let path = try box.write("s", [1])
    try box.expect(0, "save", box.store, "one", "--state", "s=\(path)", "--label", "why=a=b", "--label", "red=\u{1B}[31m")
    let shown = try box.expect(0, "show", box.store, "one", "--json").object()
    #expect(shown["labels"] as? [String: String] == ["why": "a=b", "red": "\u{1B}[31m"])
    let list = try box.expect(0, "list", box.store).text
    #expect(list.contains("why=a=b"))
    #expect(!list.contains("\u{1B}"))
}

@Test func `any bytes of a region can be read, as they are and as a dump`() throws {
    let box = try Sandbox()
    try box.create()
    let content = noise(13, count: 9000)
    try box.expect(0, "save", box.store, "one", "--disk", "d=\(box.write("d", content))")
    let read = try box.expect(0, "read", box.store, "one", "d", "--offset", "0xff0", "--length", "40")
    #expect(read.output == Array(content[0xFF0..<0xFF0 + 40]))
    #expect(try box.expect(0, "read", box.store, "one", "d", "--offset", "8K").output == Array(content[8192...]))
    #expect(try box.expect(0, "read", box.store, "one", "d", "--offset", "9000").output == [])
    let dump = try box.expect(0, "read", box.store, "one", "d", "--offset", "32", "--length", "17", "--hex").text
    let lines = dump.split(separator: "\n")
    #expect(lines.count == 2)
    let digits = lines.joined(separator: " ").split(separator: " ").compactMap { $0.count == 2 ? UInt8($0, radix: 16) : nil }
    #expect(Array(digits.prefix(17)) == Array(content[32..<49]))
    #expect(lines[0].hasPrefix("000000000020 "))
}

@Test func `an older generation can still be listed and restored`() throws {
    let box = try Sandbox()
    try box.create()
    let content = noise(14, count: 5000)
    let saved = try box.expect(0, "save", box.store, "gone", "--disk", "d=\(box.write("d", content))", "--json").object()
    let generation = try #require((saved["checkpoint"] as? [String: Any])?["generation"] as? Int)
    try box.expect(0, "save", box.store, "kept", "--disk", "d=\(box.file("d"))")
    let list = try box.expect(0, "list", box.store, "--generation", "\(generation)", "--json").object()
    #expect((list["checkpoints"] as? [[String: Any]])?.count == 1)
    #expect(try box.expect(0, "restore", box.store, "gone", "--region", "d=-", "--generation", "\(generation)").output == content)
    try box.expect(5, "list", box.store, "--generation", "999")
}

@Test func `existing files are replaced only by force, and symbolic links stay links`() throws {
    let box = try Sandbox()
    try box.create()
    let content = noise(15, count: 5000)
    try box.expect(0, "save", box.store, "one", "--disk", "d=\(box.write("d", content))")
    try box.write("old", [1, 2, 3])
    let refused = try box.expect(1, "restore", box.store, "one", "--region", "d=\(box.file("old"))")
    #expect(refused.errors.contains("--force"))
    #expect(try box.read("old") == [1, 2, 3])
    try FileManager.default.createSymbolicLink(atPath: box.file("link"), withDestinationPath: "old")
    try box.expect(0, "restore", box.store, "one", "--region", "d=\(box.file("link"))", "--force")
    #expect(try box.read("old") == content)
    #expect(try FileManager.default.destinationOfSymbolicLink(atPath: box.file("link")) == "old")
    #expect(try box.contents() == ["d", "link", "old", "vm.ck"])
}

@Test func `what is restored can be read by its owner alone`() throws {
    let box = try Sandbox()
    try box.create()
    try box.expect(0, "save", box.store, "one", "--disk", "d=\(box.write("d", [1]))")
    try box.expect(0, "restore", box.store, "one", "--all", box.file("out"))
    for path in [box.file("out/d"), box.store] {
        #expect(try FileManager.default.attributesOfItem(atPath: path)[.posixPermissions] as? Int == 0o600)
    }
    #expect(try FileManager.default.attributesOfItem(atPath: box.file("out"))[.posixPermissions] as? Int == 0o700)
}

@Test func `a store grows and shrinks, and refuses to shrink over what is in use`() throws {
    let box = try Sandbox()
    try box.create(size: "16M", segment: "1M")
    let resized = try box.expect(0, "resize", box.store, "32M", "--json").object()
    #expect(resized["sizeBytes"] as? Int == 32 << 20)
    let content = noise(16, count: 20 << 20)
    try box.expect(0, "save", box.store, "one", "--disk", "d=\(box.write("d", content))")
    let refused = try box.expect(4, "resize", box.store, "16M")
    #expect(refused.errors.contains("in use behind the new end"))
    #expect(try box.expect(0, "restore", box.store, "one", "--region", "d=-").output == content)
    try box.expect(0, "resize", box.store, "31M")
}
