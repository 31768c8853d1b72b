// What the consistency tests do with a guest: work, checkpoints, its end, and the proof for each checkpoint.

import Foundation
import QEMUTesting
import Units

/// What the guest does while it is checkpointed.
enum Load: String, CaseIterable {
    case idle, steady, hard

    /// nil: as fast as it can.
    var pagesPerSecond: Int? {
        switch self {
        case .idle: 0
        case .steady: 5000
        case .hard: nil
        }
    }
}

/// One guest, and how it is captured.
struct ConsistencyCase: CustomStringConvertible {
    var engine: CommandStore.Engine
    var memory: GuestOptions.Memory
    var megabytes = 256
    var load = Load.steady
    var virtualCPUs = 1
    var disks = [GuestOptions.Disk(.raw)]

    var description: String {
        "\(engine), \(memory) memory of \(megabytes) MiB, \(load), \(virtualCPUs) vCPUs, disks \(disks.map(\.format.rawValue))"
    }

    var options: GuestOptions {
        GuestOptions(
            memorySize: .mebibytes(UInt64(megabytes)), memory: memory, virtualCPUs: virtualCPUs, disks: disks)
    }

    static let diskThreads = 3

    /// Boots the guest and puts it to work.
    func start() throws -> Guest {
        let guest = try Guest.start(options)
        try guest.fill(mebibytes: megabytes * 3 / 8)
        try guest.dirty(pagesPerSecond: load.pagesPerSecond, mebibytes: megabytes * 3 / 16)
        if !disks.isEmpty { try guest.writeDisks(threads: Self.diskThreads, pauseMicroseconds: 500) }
        // Until each writer's ring has been round once, so that a record that is missing shows.
        let end = Monotonic.now() + 60_000_000_000
        while try guest.status().disks.contains(where: { $0.completed < UInt64(Self.diskThreads) * 300 }) {
            guard Monotonic.now() < end else { throw GuestTrouble("\(self): the guest's disk writers are too slow") }
            usleep(100_000)
        }
        return guest
    }
}

/// A checkpoint of a working guest, with what the guest said around it.
struct TakenCheckpoint {
    var report: CommandStore.Report
    var mark: Int
    var before: GuestStatus
    var after: GuestStatus
}

extension CommandStore {
    /// Gives the guest a mark of its own and takes a checkpoint.
    func take(_ name: String, of guest: Guest, mark: Int, _ test: ConsistencyCase, latest: Bool) throws -> TakenCheckpoint {
        try guest.mark(mark)
        let before = try guest.status()
        let report = try checkpoint(guest, name, engine: test.engine, latest: latest)
        let after = try guest.status()
        try require(after.ticks > before.ticks, "\(test): the guest stands still after checkpoint \(name)")
        try require(report.engine == test.engine.rawValue, "\(test): the engine was \(report.engine)")
        return TakenCheckpoint(report: report, mark: mark, before: before, after: after)
    }

    /// Brings the checkpoint back, twice checked, and ends it.
    func prove(_ checkpoint: TakenCheckpoint, _ original: GuestMachine, _ test: ConsistencyCase, lazily: Bool = false) throws {
        let what = "\(test): checkpoint \(checkpoint.report.checkpoint)\(lazily ? ", lazily" : "")"
        let guest = try restore(checkpoint.report.checkpoint, of: original, lazily: lazily)
        let (first, before) = (guest.firstStatus, checkpoint.before)
        try require(first.mark == checkpoint.mark, "\(what): it is the state of mark \(first.mark), not \(checkpoint.mark)")
        try require(
            first.ticks >= before.ticks && first.dirtyWritten >= before.dirtyWritten && first.fillPages == before.fillPages,
            "\(what): it is older than the checkpoint: \(before), restored \(first)")
        for (now, then) in zip(first.disks, before.disks) {
            try require(now.completed >= then.completed, "\(what): its records are older than the checkpoint: \(before), restored \(first)")
        }
        for round in 1...2 {
            let status = try guest.check()
            try require(status.ok, "\(what), check \(round): \(status.errorCount) errors: \(status.errors)")
            usleep(200_000)
        }
        let last = try guest.status()
        try require(last.ticks > first.ticks, "\(what): the guest stands still")
        let wrote = zip(last.disks, first.disks).allSatisfy { $0.completed > $1.completed }
        try require(wrote && last.disks.count == test.disks.count, "\(what): its disk writers stand still: \(first), then \(last)")
        guest.kill()
    }
}

/// Takes two checkpoints in a row of a working guest, ends it, and proves both of them; the second one lazily, too.
func takeAndProve(_ test: ConsistencyCase) throws {
    let store = try CommandStore(size: .mebibytes(UInt64(test.megabytes) * 4 + 1024))
    let guest = try test.start()
    let checkpoints = [
        try store.take("first", of: guest, mark: 1, test, latest: false),
        try store.take("second", of: guest, mark: 2, test, latest: true),
    ]
    let status = try guest.check()
    try require(status.ok, "\(test): the guest that went on has errors: \(status.errors)")
    guest.kill()
    for checkpoint in checkpoints { try store.prove(checkpoint, guest.machine, test) }
    try store.prove(checkpoints[1], guest.machine, test, lazily: true)
}
