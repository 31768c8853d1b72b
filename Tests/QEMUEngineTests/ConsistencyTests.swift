// Memory, devices and disks of one instant: real guests that check themselves, the command, and real restores.
//
// Invariant: each restored guest is asked for its own account: a page or a record of another instant is an error to it.

import CheckpointCore
import Foundation
import QEMUTesting
import Testing
import Units

@Suite(.serialized) struct ConsistencyTests {
    static let isLong = ProcessInfo.processInfo.environment["CKSTORE_LONG_TESTS"] == "1"

    @Test func `a background checkpoint is of one instant: two disks, a steady writer, two in a row`() async throws {
        try await onPlainThread {
            try takeAndProve(
                ConsistencyCase(
                    engine: .background, memory: .anonymous,
                    disks: [GuestOptions.Disk(.raw), GuestOptions.Disk(.qcow2, style: .drive)]))
        }
    }

    @Test func `an external checkpoint is of one instant: two disks, a steady writer, two in a row`() async throws {
        try await onPlainThread {
            try takeAndProve(
                ConsistencyCase(
                    engine: .external, memory: .shared,
                    disks: [GuestOptions.Disk(.qcow2), GuestOptions.Disk(.raw, style: .drive)]))
        }
    }

    @Test func `a hard writer on two processors is captured at one instant`() async throws {
        try await onPlainThread {
            for (engine, memory) in [(CommandStore.Engine.background, GuestOptions.Memory.anonymous), (.external, .shared)] {
                try takeAndProve(ConsistencyCase(engine: engine, memory: memory, load: .hard, virtualCPUs: 2))
            }
        }
    }

    @Test func `an idle guest's second checkpoint stores next to nothing, and is whole`() async throws {
        try await onPlainThread {
            for (engine, memory) in [(CommandStore.Engine.background, GuestOptions.Memory.anonymous), (.external, .shared)] {
                let test = ConsistencyCase(engine: engine, memory: memory, load: .idle, disks: [])
                let store = try CommandStore()
                let guest = try test.start()
                let first = try store.take("first", of: guest, mark: 1, test, latest: false)
                let second = try store.take("second", of: guest, mark: 2, test, latest: true)
                try require(
                    second.report.storedBytes * 20 < first.report.storedBytes,
                    "\(test): \(first.report.storedBytes) bytes, then \(second.report.storedBytes)")
                guest.kill()
                try store.prove(second, guest.machine, test)
            }
        }
    }

    @Test func `a disk that is older than the memory is found out`() async throws {
        try await onPlainThread {
            // Were this not an error to the guest, the tests above would show nothing.
            let test = ConsistencyCase(engine: .background, memory: .anonymous)
            let store = try CommandStore()
            let guest = try test.start()
            let old = store.file("old.raw")
            try FileManager.default.copyItem(atPath: guest.machine.disks[0], toPath: old)
            usleep(30_000)
            let checkpoint = try store.take("one", of: guest, mark: 1, test, latest: false)
            guest.kill()
            let restored = try store.restore(checkpoint.report.checkpoint, of: guest.machine, withDisks: [old])
            let status = try restored.check()
            try require(!status.ok && status.errors.contains { $0.hasPrefix("disk 0") }, "an old disk went unnoticed: \(status)")
        }
    }

    @Test(.enabled(if: isLong)) func `guests of 512 MiB and 2 GiB under every load are captured at one instant`() async throws {
        try await onPlainThread {
            for megabytes in [512, 2048] {
                for load in Load.allCases {
                    for (engine, memory) in [(CommandStore.Engine.background, GuestOptions.Memory.anonymous), (.external, .shared)] {
                        try takeAndProve(ConsistencyCase(engine: engine, memory: memory, megabytes: megabytes, load: load))
                    }
                }
            }
        }
    }

    @Test(.enabled(if: isLong)) func `guests on huge pages are captured at one instant`() async throws {
        try await onPlainThread {
            for engine in [CommandStore.Engine.background, .external] {
                let pages = try HugePages(mebibytes: 512)
                defer { withExtendedLifetime(pages) {} }
                try takeAndProve(ConsistencyCase(engine: engine, memory: .sharedHugePages, megabytes: 512, load: .steady))
                try takeAndProve(ConsistencyCase(engine: engine, memory: .sharedHugePages, megabytes: 512, load: .hard))
            }
        }
    }
}
