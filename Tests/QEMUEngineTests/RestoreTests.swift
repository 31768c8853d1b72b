// Machines come back: whole, lazily, after a kill; and not at all where anything is wrong.

import CLinux
import CheckpointCore
import Foundation
import QEMUTesting
import QMP
import Testing
import Threading
import Units

@Suite(.serialized) struct RestoreTests {
    @Test func `a machine comes back whole, and lazily, and goes on from where it was`() throws {
        try blocking {
            let place = try RestorePlace()
            for isLazy in [false, true] {
                let restored = try place.restore(isLazy ? ["--lazy"] : [])
                let status = try restored.guest.check()
                guard status.ok, status.mark == 4711 else { throw RestoreTrouble("lazy \(isLazy): \(status)") }
                restored.guest.kill()
                let outcome = try restored.tool.wait(limitSeconds: 20)
                print(outcome.text, outcome.errors)
                guard outcome.exitCode == 128 + 9 else { throw RestoreTrouble("exit \(outcome)") }
            }
        }
    }
}

/// A store with a checkpoint of a guest that is gone.
final class RestorePlace {
    let store: CommandStore
    let original: GuestMachine

    init(_ options: GuestOptions = GuestOptions()) throws {
        store = try CommandStore()
        let guest = try Guest.start(options)
        defer { guest.kill() }
        try guest.fill(mebibytes: 64)
        try guest.mark(4711)
        try HandCheckpoint.take(guest, "vm", in: store)
        original = guest.machine
    }

    struct Restored {
        var machine: GuestMachine
        var tool: RunningTool
        var guest: Guest
    }

    /// The command line of a restore into a new machine.
    func command(_ machine: GuestMachine, _ options: [String]) -> [String] {
        ["vm", "restore", store.path, "vm", "--json"] + options + ["--", GuestMachine.program] + machine.arguments
    }

    func restore(_ options: [String]) throws -> Restored {
        let machine = try GuestMachine(forRestoreOf: original)
        let tool = try store.start(command(machine, options))
        do {
            return Restored(machine: machine, tool: tool, guest: try Guest(attachingTo: machine))
        } catch {
            tool.send(SIGKILL)
            throw RestoreTrouble("\(error)\n\(try tool.wait(limitSeconds: 5))")
        }
    }
}
