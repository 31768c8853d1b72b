// A machine that goes on from a checkpoint with its main memory mapped from the mount: nothing of it is restored.

import CheckpointCore
import CheckpointStore
import FaultHarness
import Foundation
import MigrationStream
import QEMUTesting
import QMP
import StoreTesting
import Testing
import Units

/// What QEMU's stream says of a machine.
private struct MachineContent: StreamHandler {
    var machineType = ""
    var blocks: [StreamRAMBlock] = []
    /// The blocks' bytes.
    var memory: [[UInt8]] = []
    var state: [UInt8] = []

    mutating func configuration(machineType: String, capabilities: [String]) throws(EngineError) { self.machineType = machineType }

    mutating func ramBlocks(_ blocks: [StreamRAMBlock]) throws(EngineError) {
        self.blocks = blocks
        memory = blocks.map { [UInt8](repeating: 0, count: $0.byteLength.int) }
    }

    mutating func page(block: Int, _ page: PageIndex, _ bytes: UnsafeRawBufferPointer) throws(EngineError) {
        unsafe memory[block].replaceSubrange(page.int * pageSize..<(page.int + 1) * pageSize, with: bytes)
    }

    mutating func zeroPage(block: Int, _ page: PageIndex) throws(EngineError) {
        memory[block].replaceSubrange(page.int * pageSize..<(page.int + 1) * pageSize, with: repeatElement(0, count: pageSize))
    }

    mutating func deviceState(_ bytes: UnsafeRawBufferPointer) throws(EngineError) { unsafe state += bytes }

    init(_ stream: [UInt8]) throws {
        var parser = StreamParser()
        let used = try unsafe stream.withUnsafeBytes { try unsafe parser.feed($0, &self) }
        try #require(used == stream.count)
        try parser.finish()
    }

    /// A stream for a machine that has the memory called `name` already.
    func stream(without name: String) -> [UInt8] {
        var writer = StreamWriter()
        writer.header(machineType: machineType)
        writer.ramBlocks(blocks)
        for (index, block) in blocks.enumerated() where block.name != name {
            unsafe memory[index].withUnsafeBytes { unsafe writer.pages(block: index, at: PageIndex(UInt64(0)), $0) }
        }
        writer.endRAM()
        writer.deviceState(state)
        return writer.takeBytes()
    }
}

@Suite(.enabled(if: MountSupport.isAvailable, Comment(rawValue: MountSupport.reason)), .serialized)
struct MountedMachineTests {
    private static let qemu = "/usr/bin/qemu-system-x86_64"

    private func start(_ scene: MountScene, _ name: String, memory: String, _ more: String...) throws -> (RunningTool, QMPClient) {
        let socket = scene.folder.file(name)
        let tool = try RunningTool(
            [
                "-machine", "pc,memory-backend=ram0", "-accel", "tcg", "-m", "32M", "-nodefaults", "-display", "none", "-object", memory,
                "-qmp", "unix:\(socket),server=on,wait=off", "-S",
            ] + more, program: Self.qemu, scratch: scene.folder.path)
        #expect(eventually(seconds: 30) { FileManager.default.fileExists(atPath: socket) })
        return (tool, try QMPClient.connect(path: socket))
    }

    private func migration(_ monitor: QMPClient) throws -> String? { try monitor.execute("query-migrate")["status"]?.string }

    /// The processor's registers, as QEMU shows them.
    private func registers(_ monitor: QMPClient) throws -> String {
        try #require(try monitor.execute("human-monitor-command", ["command-line": "info registers"]).string)
    }

    @Test(.enabled(if: FileManager.default.isExecutableFile(atPath: qemu), "\(qemu) is missing: install qemu-system-x86"))
    func `a machine goes on from a checkpoint whose main memory is mapped privately from the mount`() async throws {
        try await onPlainThread {
            let scene = try MountScene(.mebibytes(256))
            let (original, first) = try start(scene, "first", memory: "memory-backend-ram,id=ram0,size=32M")
            _ = try first.execute("cont")
            usleep(1_500_000)
            _ = try first.execute("stop")
            let shown = try registers(first)
            let path = scene.folder.file("stream")
            _ = try first.execute("migrate", ["uri": .string("exec:cat > \(path)")])
            #expect(try eventually(seconds: 60) { try migration(first) == "completed" })
            original.send(SIGKILL)
            _ = try original.wait()
            let content = try MachineContent([UInt8](try #require(FileManager.default.contents(atPath: path))))
            let main = try #require(content.blocks.firstIndex { $0.name == "ram0" })
            let bytes = content.memory[main]
            let writer = try scene.store.begin("one")
            try writer.addRegion("ram", kind: .memory, byteLength: ByteCount(bytes.count)).write(bytes)
            try writer.commit()
            // Without the main memory: what it has comes from the mount.
            let rest = content.stream(without: "ram0")
            #expect(FileManager.default.createFile(atPath: path, contents: Data(rest)))
            try scene.mounted("--private-writes") { _ throws in
                let memory = "memory-backend-file,id=ram0,size=32M,mem-path=\(scene.path("one", "ram")),share=off"
                let (machine, monitor) = try start(scene, "second", memory: memory, "-incoming", "exec:cat \(path)")
                #expect(try eventually(seconds: 60) { try migration(monitor) == "completed" })
                #expect(try registers(monitor) == shown)
                let dump = scene.folder.file("dump")
                _ = try monitor.execute(
                    "pmemsave", ["val": .integer(1 << 20), "size": .integer(Int64(bytes.count - 1 << 20)), "filename": .string(dump)])
                #expect(FileManager.default.contents(atPath: dump).map { [UInt8]($0) == Array(bytes[(1 << 20)...]) } == true)
                _ = try monitor.execute("cont")
                usleep(500_000)
                #expect(try monitor.execute("query-status")["status"]?.string == "running")
                #expect(try OpenedFile(scene.path("one", "ram")).read(at: 0, bytes.count) == bytes)
                machine.send(SIGKILL)
                _ = try machine.wait()
            }
            #expect(try scene.run("verify", scene.storePath, "--deep").exitCode == 0)
        }
    }
}
