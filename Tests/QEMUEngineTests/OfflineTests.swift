// A machine's checkpoint without the machine: in a debugger, and in a QEMU that knows nothing of ckstore.

import Foundation
import QEMUTesting
import QMP
import Testing

/// A store with a checkpoint "one" of a guest that has been killed.
private struct OfflineScene {
    let store: CommandStore
    let machine: GuestMachine

    init() throws {
        store = try CommandStore()
        let guest = try Guest.start(GuestOptions(virtualCPUs: 2))
        defer { guest.kill() }
        try guest.fill(mebibytes: 32)
        try guest.mark(815)
        _ = try store.checkpoint(guest, "one", engine: .background)
        machine = guest.machine
    }

    /// What gdb says to `commands` about a core.
    func debugger(_ core: String, _ commands: String...) throws -> String {
        let arguments = ["-nx", "-batch"] + commands.flatMap { ["-ex", $0] } + ["--core", core]
        let outcome = try RunningTool(arguments, program: "/usr/bin/gdb", scratch: store.file("")).wait(limitSeconds: 60)
        guard outcome.exitCode == 0 else { throw GuestTrouble("gdb: \(outcome.errors)") }
        return outcome.text
    }
}

@Suite(.serialized) struct OfflineTests {
    @Test func `a core shows a debugger the CPUs, their registers, and memory by physical and by the kernel's addresses`() throws {
        let scene = try OfflineScene()
        let core = scene.store.file("core")
        try scene.store.run("export", scene.store.path, "one", "--format", "elf", "-o", core, "--paging")
        let raw = scene.store.file("raw")
        try scene.store.run("export", scene.store.path, "one", "--format", "raw", "-o", raw)

        let threads = try scene.debugger(core, "info threads")
        #expect(threads.contains("LWP 1") && threads.contains("LWP 2") && !threads.contains("LWP 3"), "\(threads)")
        let registers = try scene.debugger(core, "info registers")
        // Which of them a debugger knows differs; these all do.
        for name in ["rax", "rip", "eflags", "cs", "gs"] { #expect(registers.contains("\n\(name) ") || registers.hasPrefix(name), "\(name)") }

        // Physical memory is the block's own bytes.
        let handle = try #require(FileHandle(forReadingAtPath: raw + "/memory-pc.ram.raw"))
        for address: UInt64 in [0x8000, 16 << 20, 40 << 20] {
            try handle.seek(toOffset: address)
            let bytes = try #require(try handle.read(upToCount: 8))
            let word = bytes.reversed().reduce(UInt64(0)) { $0 << 8 | UInt64($1) }
            let text = try scene.debugger(core, "output/x *(unsigned long *)\(address)")
            #expect(text.hasSuffix("0x" + String(word, radix: 16)), "at \(address): \(text)")
        }
        // The kernel is not randomised: its text is mapped to the same bytes as its load address.
        let same = "output *(unsigned long *)0xffffffff81000000 == *(unsigned long *)0x1000000"
        #expect(try scene.debugger(core, same).hasSuffix("1"))
    }

    @Test func `a QEMU by itself loads the stream and the guest goes on`() throws {
        let scene = try OfflineScene()
        let stream = scene.store.file("stream")
        try scene.store.run("export", scene.store.path, "one", "--format", "qemu-stream", "-o", stream)
        let machine = try GuestMachine(forRestoreOf: scene.machine)
        let child = try ChildProcess.spawn(
            executable: "/usr/bin/" + GuestMachine.program, arguments: machine.arguments + ["-incoming", "exec:cat \(stream)"],
            inheriting: [], diesWithParent: true)
        defer { try? child.kill() }
        let guest = try Guest(attachingTo: machine)
        defer { guest.kill() }
        let status = try guest.check()
        #expect(status.ok && status.mark == 815, "\(status)")
        #expect(try scene.store.run("diff", scene.store.path, "one", "one").text.contains("memory:pc.ram"))
    }
}
