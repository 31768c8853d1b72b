// `ckstore export` of checkpoints that no machine made: raw files, and what is refused.

import Foundation
import Testing

@Test func `raw files are the regions, with holes for zeros, under names that QEMU takes for files`() throws {
    let box = try Sandbox()
    try box.create()
    let ram = try box.writeSparse("ram", length: 8 << 20, [(1 << 20, noise(1, count: 8192))])
    let disk = try box.write("hd", noise(2, count: 10_000))
    try box.expect(0, "save", box.store, "one", "--memory", "memory:pc.ram=\(ram)", "--disk", "disk:vda=\(disk)", "--state", "cpu=\(disk)")
    let outcome = try box.expect(0, "export", box.store, "one", "--format", "raw", "-o", box.file("out"))
    #expect(outcome.text.contains("exported one"))
    #expect(try box.contents(of: "out") == ["cpu.bin", "disk-vda.raw", "memory-pc.ram.raw"])
    #expect(try box.read("out/memory-pc.ram.raw") == box.read("ram"))
    #expect(try box.read("out/disk-vda.raw") == noise(2, count: 10_000))
    #expect(try box.read("out/cpu.bin") == noise(2, count: 10_000))
    #expect(box.allocatedBytes("out/memory-pc.ram.raw") <= 64 << 10)

    let again = try box.expect(1, "export", box.store, "one", "--format", "raw", "-o", box.file("out"))
    #expect(again.errors.contains("--force"), "\(again.errors)")
    let report = try box.expect(0, "export", box.store, "one", "--format", "raw", "-o", box.file("out"), "--force", "--json").object()
    #expect(report.keys.sorted() == ["checkpoint", "elapsedSeconds", "files", "format", "logicalBytes", "notes"])
    #expect((report["files"] as? [Any])?.count == 3)
}

@Test func `what is no machine has no core and no stream, and wrong options are told`() throws {
    let box = try Sandbox()
    try box.create()
    try box.expect(0, "save", box.store, "one", "--memory", "ram=\(box.write("ram", noise(1, count: 8192)))")
    for format in ["elf", "qemu-stream"] {
        let outcome = try box.expect(2, "export", box.store, "one", "--format", format, "-o", box.file("out"))
        #expect(outcome.errors.contains("no checkpoint of a virtual machine"), "\(outcome.errors)")
    }
    let wrong: [[String]] = [
        ["--format", "tar", "-o", "x"], ["--format", "raw"], ["-o", "x"], ["--format", "raw", "-o", "-"], ["--format", "elf", "-o", "-"],
        ["--format", "qemu-stream", "-o", "-", "--json"], ["--format", "raw", "-o", "x", "--paging"], ["--format", "raw", "-o", ""],
        ["--format", "qemu-stream", "-o", box.store],
    ]
    for arguments in wrong {
        let outcome = try box.run(["export", box.store, "one"] + arguments)
        #expect(outcome.exitCode == 2, "\(arguments): \(outcome.errors)")
    }
    try box.expect(5, "export", box.store, "two", "--format", "raw", "-o", box.file("out"))
    #expect(try box.contents() == ["ram", "vm.ck"], "what is refused leaves nothing")
}
