// Programs that know nothing of checkpoints work on mounted ones.

import CheckpointStore
import FaultHarness
import Foundation
import QEMUTesting
import QMP
import StoreTesting
import Testing
import Units

@Suite(.enabled(if: MountSupport.isAvailable, Comment(rawValue: MountSupport.reason)), .serialized)
struct ToolTests {
    @Test func `cmp, cp, strings, gdb and qemu-img work on mounted regions`() async throws {
        try await onPlainThread {
            let scene = try MountScene()
            var bytes = content(8 << 20, seed: 1)
            bytes.replaceSubrange(3_000_001..<3_000_001 + 23, with: Array("\0needle in the haystack\0".utf8.prefix(23)))
            let program = [UInt8](try #require(FileManager.default.contents(atPath: RunningTool.path)))
            try scene.save("one", ["vda": bytes, "program": program])
            try scene.mounted { _ throws in
                let copy = scene.folder.file("copy")
                #expect(FileManager.default.createFile(atPath: copy, contents: Data(bytes)))
                #expect(try scene.tool("cmp", scene.path("one", "vda"), copy).exitCode == 0)
                #expect(try scene.tool("cp", "--sparse=always", scene.path("one", "vda"), copy + "2").exitCode == 0)
                #expect(try scene.tool("cmp", copy, copy + "2").exitCode == 0)
                #expect(try scene.tool("strings", scene.path("one", "vda")).text.contains("needle in the haystack"))
                let sections = try scene.tool("gdb", "-nx", "-batch", "-ex", "info files", scene.path("one", "program"))
                #expect(sections.text.contains("Entry point"), "\(sections)")

                let information = try scene.tool("qemu-img", "info", "-f", "raw", scene.path("one", "vda"))
                #expect(information.text.contains("8388608 bytes"), "\(information)")
                #expect(try scene.tool("qemu-img", "compare", "-f", "raw", "-F", "raw", scene.path("one", "vda"), copy).exitCode == 0)
                let converted = scene.folder.file("vda.qcow2")
                let conversion = try scene.tool("qemu-img", "convert", "-f", "raw", "-O", "qcow2", scene.path("one", "vda"), converted)
                #expect(conversion.exitCode == 0, "\(conversion)")
                #expect(try scene.tool("qemu-img", "compare", "-f", "qcow2", "-F", "raw", converted, copy).exitCode == 0)
                // A machine's disk goes on from the checkpoint in an overlay, without a restore.
                let overlay = scene.folder.file("overlay.qcow2")
                let backing = scene.path("one", "vda")
                let created = try scene.tool("qemu-img", "create", "-q", "-f", "qcow2", "-b", backing, "-F", "raw", overlay)
                #expect(created.exitCode == 0, "\(created)")
                #expect(try scene.tool("qemu-img", "compare", "-f", "qcow2", "-F", "raw", overlay, copy).exitCode == 0)
            }
        }
    }

    @Test func `QEMU maps a mounted region as memory of a machine`() async throws {
        try await onPlainThread {
            let scene = try MountScene(.mebibytes(256))
            let bytes = content(32 << 20, seed: 5)
            try scene.save("one", ["ram": bytes])
            try scene.mounted { _ throws in
                let socket = scene.folder.file("qmp")
                let machine = try RunningTool(
                    [
                        "-machine", "pc,nvdimm=on", "-accel", "tcg", "-m", "64M,slots=1,maxmem=1G", "-nodefaults", "-display", "none", "-S",
                        "-object", "memory-backend-file,id=cp,mem-path=\(scene.path("one", "ram")),size=32M,share=off,readonly=on",
                        "-device", "nvdimm,id=nv,memdev=cp,unarmed=on", "-qmp", "unix:\(socket),server=on,wait=off",
                    ], program: "/usr/bin/qemu-system-x86_64", scratch: scene.folder.path)
                #expect(eventually(seconds: 30) { FileManager.default.fileExists(atPath: socket) })
                let monitor = try QMPClient.connect(path: socket)
                let devices = try monitor.execute("query-memory-devices")
                let address = try #require(devices.array?.first?.object?["data"]?.object?["addr"]?.integer)
                let dump = scene.folder.file("dump")
                _ = try monitor.execute(
                    "pmemsave", ["val": .integer(address), "size": .integer(Int64(bytes.count)), "filename": .string(dump)])
                #expect(FileManager.default.contents(atPath: dump).map { [UInt8]($0) == bytes } == true)
                machine.send(SIGKILL)
                _ = try machine.wait()
            }
        }
    }
}
