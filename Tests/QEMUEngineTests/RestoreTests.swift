// Machines come back: whole, lazily, after a kill; and not at all where anything is wrong.

import CLinux
import CheckpointCore
import Foundation
import Glibc
import QEMUTesting
import QMP
import Testing
import Threading
import Units

@Suite(.serialized) struct RestoreTests {
    @Test func `a machine comes back whole, lazily and under another backend, and not in a machine that is another`() throws {
        try blocking {
            let place = try RestorePlace(GuestOptions(memorySize: .mebibytes(192)))
            try place.goesOn([])
            try place.goesOn(["--lazy"])
            // Its main memory is called otherwise there.
            var shared = place.original.options
            shared.memory = .shared
            try place.goesOn(["--lazy"], shared)
            try place.goesOn([], shared)
            // Where the system has none to give, this part can't be tested.
            if let huge = try? HugePages(mebibytes: 200) {
                // A page of the host comes whole there.
                shared.memory = .sharedHugePages
                try place.goesOn(["--lazy"], shared)
                try place.goesOn([], shared)
                withExtendedLifetime(huge) {}
            }
            try place.isReadAlike()

            var other = place.original.options
            other.memorySize = .mebibytes(256)
            try place.isRefused(other, saying: "192 MiB")
            other.memory = .shared
            try place.isRefused(other, saying: "192 MiB")
            other = place.original.options
            other.virtualCPUs = 2
            try place.isRefused(other, saying: "1 vCPUs")
            other = place.original.options
            other.extraArguments = ["-device", "VGA"]
            try place.isRefused(other, saying: "vga")
            other.extraArguments = ["-machine", "q35"]
            try place.isRefused(other, saying: "pc-q35-7.2")
            other.extraArguments = ["-incoming", "defer"]
            try place.isRefused(other, saying: "-incoming")
        }
    }

    @Test func `a lazy restore that is killed is gone on with, and damage is never handed to a machine`() throws {
        try blocking {
            let place = try RestorePlace(GuestOptions(memorySize: .mebibytes(256), virtualCPUs: 2), fillMebibytes: 150)
            try place.resumesAfterKill()
            try place.failsOnDamage()
        }
    }

    @Test func `disks are recreated before the machine starts, and every disk needs its place`() throws {
        try blocking {
            let options = GuestOptions(memorySize: .mebibytes(128), disks: [.init(.raw, size: .mebibytes(16))])
            let place = try RestorePlace(options, fillMebibytes: 8, writesDisks: true)
            let machine = try GuestMachine(forRestoreOf: place.original)
            let without = try place.store.outcome(place.command(machine, []))
            guard without.exitCode == 2, without.errors.contains("--disk disk0=FILE"), without.errors.contains("--no-disks") else {
                throw RestoreTrouble("a disk without a place: \(without.exitCode ?? -1) \(without.errors)")
            }
            let unknown = try place.store.outcome(place.command(machine, ["--disk", "vdz=\(machine.disks[0])"]))
            guard unknown.exitCode == 2, !FileManager.default.fileExists(atPath: machine.disks[0]) else {
                throw RestoreTrouble("an unknown disk: \(unknown.errors)")
            }
            for isLazy in [false, true] {
                let machine = try GuestMachine(forRestoreOf: place.original)
                try place.goesOn(["--disk", "disk0=\(machine.disks[0])"] + (isLazy ? ["--lazy"] : []), on: machine)
            }
        }
    }
}

/// A store with a checkpoint of a guest that is gone.
final class RestorePlace {
    let store: CommandStore
    let original: GuestMachine
    private static let mark = 4711

    init(_ options: GuestOptions, fillMebibytes: Int = 48, writesDisks: Bool = false) throws {
        store = try CommandStore()
        let guest = try Guest.start(options)
        defer { guest.kill() }
        try guest.fill(mebibytes: fillMebibytes)
        try guest.mark(Self.mark)
        if writesDisks { try guest.writeDisks(threads: 2) }
        usleep(300_000)
        try HandCheckpoint.take(guest, "vm", in: store, disks: guest.machine.disks)
        original = guest.machine
    }

    /// The command line of a restore into a new machine.
    func command(_ machine: GuestMachine, _ options: [String]) -> [String] {
        ["vm", "restore", store.path, "vm", "--json"] + options + ["--", GuestMachine.program] + machine.arguments
    }

    /// Restores it and sees that it goes on from where it was.
    func goesOn(_ options: [String], _ hardware: GuestOptions? = nil, on given: GuestMachine? = nil) throws {
        let machine = try given ?? hardware.map { try GuestMachine($0) } ?? GuestMachine(forRestoreOf: original)
        let tool = try store.start(command(machine, options))
        do {
            let guest = try Guest(attachingTo: machine)
            try Self.check(guest)
            try Self.waitFor("completed", guest)
            // QEMU knows that it has everything a moment before ckstore has said so.
            sleep(1)
            guest.kill()
        } catch {
            tool.send(SIGTERM)
            throw RestoreTrouble("\(options): \(error)\n\(try tool.wait(limitSeconds: 5))")
        }
        let outcome = try tool.wait(limitSeconds: 20)
        guard outcome.exitCode == 128 + SIGKILL, outcome.text.contains(#""running":true"#) else {
            throw RestoreTrouble("\(options): it ended with \(outcome) \(outcome.text)")
        }
    }

    static func check(_ guest: Guest) throws {
        let status = try guest.check()
        guard status.ok, status.mark == mark else { throw RestoreTrouble("the guest is not what it was: \(status)") }
    }

    /// Waits until the migration that the machine sees has come to this.
    static func waitFor(_ wanted: String, _ guest: Guest) throws {
        let qmp = try guest.monitor()
        defer { qmp.close() }
        try waitFor(wanted, qmp)
    }

    static func waitFor(_ wanted: String, _ qmp: QMPClient) throws {
        var status = ""
        for _ in 0..<600 {
            status = try qmp.execute("query-migrate")["status"]?.string ?? ""
            if status == wanted { return }
            usleep(20_000)
        }
        throw RestoreTrouble("its migration is \(status), not \(wanted)")
    }

    /// The command line is refused, with exit code 2 and that text, and QEMU does not stay.
    func isRefused(_ hardware: GuestOptions, saying text: String) throws {
        let machine = try GuestMachine(hardware)
        let outcome = try store.outcome(command(machine, []), limitSeconds: 30)
        guard outcome.exitCode == 2, outcome.errors.contains(text) else {
            throw RestoreTrouble("it was to be refused with \(text): \(outcome.exitCode ?? -1) \(outcome.errors)")
        }
    }

    /// The independent reader says of the machine what `vm show` says.
    func isReadAlike() throws {
        let reader = URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent()
            .appending(path: "Formats/reader.py").path
        let python = try RunningTool(
            ["-B", reader, "machine", store.path, "vm"], program: "/usr/bin/python3", scratch: store.file("")
        ).wait(limitSeconds: 60)
        let shown = try store.run("vm", "show", store.path, "vm", "--json")
        let own = try JSONSerialization.jsonObject(with: Data(shown.output)) as? [String: Any]
        let other = try JSONSerialization.jsonObject(with: Data(python.output))
        let texts = try [own?["machine"], other as Any?].map { value in
            try JSONSerialization.data(withJSONObject: try #require(value), options: .sortedKeys)
        }
        guard python.exitCode == 0, texts[0] == texts[1] else { throw RestoreTrouble("Python reads it otherwise: \(python.text) \(python.errors)\n\(shown.text)") }
    }

    // MARK: - Kills

    /// A lazy restore of which the server is gone, in the middle; the machine waits.
    func interrupted() throws -> (GuestMachine, WaitingMachine) {
        for _ in 0..<5 {
            let machine = try GuestMachine(forRestoreOf: original)
            let tool = try store.start(command(machine, ["--lazy"]))
            let waiting = WaitingMachine(try Self.monitor(machine))
            while waiting.status() == "active" || waiting.status() == "" {}
            tool.send(SIGKILL)
            _ = try tool.wait(limitSeconds: 10)
            usleep(200_000)
            if waiting.isWaiting { return (machine, waiting) }
        }
        throw RestoreTrouble("the restore was always faster than the kill")
    }

    private static func monitor(_ machine: GuestMachine) throws -> QMPClient {
        for _ in 0..<2000 {
            if let qmp = try? QMPClient.connect(path: machine.testMonitorPath) { return qmp }
            usleep(5000)
        }
        throw RestoreTrouble("QEMU did not start: \(machine.messages)")
    }

    func resumesAfterKill() throws {
        try Data([1]).write(to: URL(fileURLWithPath: store.file("x")))
        try store.run("save", store.path, "plain", "--state", "x=\(store.file("x"))")
        let (machine, waiting) = try interrupted()
        let plain = try store.outcome(["vm", "resume", store.path, "plain", "--qmp", machine.monitorPath])
        guard plain.exitCode == 2 else { throw RestoreTrouble("no checkpoint of a machine: \(plain.errors)") }
        let outcome = try store.outcome(["vm", "resume", store.path, "vm", "--qmp", machine.monitorPath, "--json"])
        guard outcome.exitCode == 0 else { throw RestoreTrouble("resume: \(outcome.errors)") }
        let guest = try Guest(attachingTo: machine)
        try Self.check(guest)
        let again = try store.outcome(["vm", "resume", store.path, "vm", "--qmp", machine.monitorPath])
        waiting.kill()
        guard again.exitCode == 6 else { throw RestoreTrouble("resuming what is complete: \(again.exitCode ?? -1) \(again.errors)") }
    }

    // MARK: - Damage

    func failsOnDamage() throws {
        try damage()
        let machine = try GuestMachine(forRestoreOf: original)
        let outcome = try store.outcome(command(machine, []), limitSeconds: 60)
        guard outcome.exitCode == 3, !outcome.text.contains("loadedMilliseconds") else {
            throw RestoreTrouble("a full restore of damage: \(outcome.exitCode ?? -1) \(outcome.text) \(outcome.errors)")
        }
        let lazy = try GuestMachine(forRestoreOf: original)
        let tool = try store.start(command(lazy, ["--lazy"]))
        let waiting = WaitingMachine(try Self.monitor(lazy))
        for _ in 0..<400 where !waiting.isWaiting { usleep(50_000) }
        // What this command says, it has said by now; it stays as long as the machine does.
        usleep(700_000)
        waiting.kill()
        let errors = try tool.wait(limitSeconds: 20).errors
        guard errors.contains("the machine waits"), errors.contains("vm resume"), errors.contains("bad-checksum") else {
            throw RestoreTrouble("a lazy restore of damage: \(errors)")
        }
    }

    /// Changes a byte in the middle of what is stored, where pages of memory are.
    private func damage() throws {
        let handle = try #require(FileHandle(forUpdatingAtPath: store.path))
        defer { try? handle.close() }
        for offset in stride(from: UInt64(60) << 20, to: 90 << 20, by: (1 << 20) + 12345) {
            try handle.seek(toOffset: offset)
            let byte = try #require(try handle.read(upToCount: 1)?.first)
            try handle.seek(toOffset: offset)
            try handle.write(contentsOf: Data([byte ^ 0x10]))
            let verified = try store.outcome(["verify", store.path])
            if (verified.errors + verified.text).contains("region memory:pc.ram") { return }
        }
        throw RestoreTrouble("no byte was worth damaging")
    }
}

/// A machine that may wait for a page while it holds the lock of QEMU's main loop: then its monitor does not answer.
final class WaitingMachine {
    private let qmp: QMPClient
    private let process: Int32

    init(_ qmp: QMPClient) {
        self.qmp = qmp
        process = qmp.processID
    }

    deinit { kill() }

    /// What it says of its migration; nil when it does not answer.
    func status() -> String? {
        guard let answer = try? qmp.execute("query-migrate", timeoutMilliseconds: 1000) else { return nil }
        return answer["status"]?.string ?? ""
    }

    var isWaiting: Bool {
        let status = status()
        return status == nil || status == "postcopy-paused"
    }

    func kill() { Glibc.kill(process, SIGKILL) }
}
