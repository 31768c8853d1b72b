// What a running QEMU says of itself before a checkpoint: whether one can be taken, and what will be in it.
//
// Invariant: nothing here changes the machine. In particular no `migrate` is issued: after an unfinished postcopy that would leave
// QEMU unable to migrate ever again.

import CheckpointCore
import QMP
import Units

/// A machine as it is before its checkpoint.
struct MachineState: Sendable {
    /// One memory backend that the command line named.
    struct Backend: Sendable {
        var id: String
        var byteLength: ByteCount
        var isShared: Bool
    }

    var isRunning: Bool
    var architecture: String
    var virtualCPUs: Int
    /// Main memory with what was plugged in.
    var memoryLength: ByteCount
    var backends: [Backend]
    var physicalRanges: [MachineRecord.PhysicalRange]
    /// The host's page size of each block of RAM, where QEMU's list could be read.
    var hostPageBytes: [String: UInt64]

    /// Asks `qmp`.
    /// - Throws: `.busy` when the machine is in no state to be checkpointed, saying why and what to do.
    init(_ qmp: QMPClient) throws(EngineError) {
        let status = try qmp.execute("query-status")["status"]?.string ?? ""
        try Self.checkMigration(qmp)
        switch status {
        case "running": isRunning = true
        case "paused", "postmigrate", "suspended", "prelaunch":
            throw EngineError(
                .busy, "the machine is not running (QEMU says: \(status))",
                remedy: "Let it run (`cont`) and try again; a checkpoint of it stops it for milliseconds only.")
        case "inmigrate":
            throw EngineError(
                .busy, "the machine is still being loaded", remedy: "Wait until its restore has come to an end, then try again.")
        default:
            throw EngineError(
                .busy, "the machine is in no state for a checkpoint (QEMU says: \(status))",
                remedy: "See QEMU's own messages; `system_reset` and `cont` bring a crashed guest back.")
        }
        architecture = try qmp.execute("query-target")["arch"]?.string ?? ""
        virtualCPUs = try qmp.execute("query-cpus-fast").array?.count ?? 0
        let summary = try qmp.execute("query-memory-size-summary")
        memoryLength = ByteCount(
            UInt64(clamping: summary["base-memory"]?.integer ?? 0) + UInt64(clamping: summary["plugged-memory"]?.integer ?? 0))
        backends = try qmp.execute("query-memdev").array?.compactMap { backend in
            guard let id = backend["id"]?.string, let size = backend["size"]?.integer, size > 0 else { return nil }
            return Backend(id: id, byteLength: ByteCount(UInt64(size)), isShared: backend["share"]?.bool ?? false)
        } ?? []
        let map = try qmp.execute("human-monitor-command", ["command-line": "info mtree -f"]).string ?? ""
        physicalRanges = PhysicalMap.ranges(map)
        let blocks = try qmp.execute("human-monitor-command", ["command-line": "info ramblock"]).string ?? ""
        hostPageBytes = Dictionary(((try? IncomingMachine.blocks(in: blocks)) ?? []).map { ($0.name, $0.pageBytes) }) { first, _ in first }
        try Self.checkDevices(qmp)
    }

    /// Refuses devices whose disks or memory writes are beyond QEMU: they would be missing in the checkpoint.
    private static func checkDevices(_ qmp: QMPClient) throws(EngineError) {
        for folder in ["/machine/peripheral", "/machine/peripheral-anon"] {
            for device in try qmp.execute("qom-list", ["path": .string(folder)]).array ?? [] {
                let type = device["type"]?.string ?? ""
                guard ["child<vhost-user-", "child<vhost-scsi", "child<vfio-"].contains(where: type.hasPrefix) else { continue }
                throw EngineError(
                    .unsupported, "the machine has a \(type.dropFirst(6).dropLast()), whose state is not QEMU's and can't be captured",
                    remedy: "Unplug it, or give the machine a device that QEMU emulates itself.", place: device["name"]?.string ?? "")
            }
        }
    }

    /// Refuses a machine whose last migration, in or out, has not come to an end.
    private static func checkMigration(_ qmp: QMPClient) throws(EngineError) {
        let status = try qmp.execute("query-migrate")["status"]?.string ?? "none"
        switch status {
        case "none", "completed", "cancelled", "failed": return
        case let status where status.hasPrefix("postcopy"):
            throw EngineError(
                .busy, "the machine's own lazy restore has not come to an end (\(status))",
                remedy: status == "postcopy-paused"
                    ? "Its source is gone: `ckstore vm resume` goes on with it." : "Wait until all of its memory has arrived, then try again.")
        default:
            throw EngineError(
                .busy, "a migration of the machine is under way (\(status))",
                remedy: "Wait until it has ended, then try again. `ckstore vm rescue` brings a machine back whose checkpoint was killed.")
        }
    }
}

/// The flat view of QEMU's address space, as its monitor prints it.
enum PhysicalMap {
    /// RAM and ROM of the memory address space, in its order; empty when the text has another form than expected.
    static func ranges(_ text: String) -> [MachineRecord.PhysicalRange] {
        var ranges: [MachineRecord.PhysicalRange] = []
        var isMemory = false
        for line in text.split(whereSeparator: \.isNewline) {
            if line.hasPrefix("FlatView") { isMemory = false }
            if line.contains("AS \"memory\"") { isMemory = true }
            if isMemory, let range = range(line) { ranges.append(range) }
        }
        return ranges
    }

    /// `  0000000000000000-00000000000bffff (prio 0, ram): pc.ram @0000000000000000 KVM`: the offset is absent where it is 0.
    private static func range(_ line: Substring) -> MachineRecord.PhysicalRange? {
        guard let open = line.firstIndex(of: "("), let close = line.firstIndex(of: ")"), open < close else { return nil }
        let kind = line[open..<close]
        guard kind.hasSuffix(", ram") || kind.hasSuffix(", rom") else { return nil }
        let bounds = line[..<open].split(separator: "-").map { $0.filter { !$0.isWhitespace } }
        guard bounds.count == 2, let first = UInt64(bounds[0], radix: 16), let last = UInt64(bounds[1], radix: 16), first <= last,
            last - first < UInt64(1) << 52
        else { return nil }
        var words = line[line.index(after: close)...].drop { $0 == ":" || $0 == " " }.split(separator: " ")
        var offset: UInt64 = 0
        if let at = words.lastIndex(where: { $0.hasPrefix("@") }) {
            guard let value = UInt64(words[at].dropFirst(), radix: 16) else { return nil }
            offset = value
            words = Array(words[..<at])
        }
        guard !words.isEmpty else { return nil }
        return MachineRecord.PhysicalRange(
            block: words.joined(separator: " "), blockOffset: offset, physicalAddress: first, byteLength: last - first + 1)
    }
}
