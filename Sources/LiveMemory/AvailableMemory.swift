// How much memory this host can give without swapping or killing somebody.
//
// Invariant: limits that can't be read are errors, never "no limit"; a limit that is not set is none.

import CLinux
import CheckpointCore
import Units

/// The memory of this host and of control groups.
public enum HostMemory {
    /// What a process may still take: what the kernel says is available, or less when a control group that the process is in, or one
    /// above it, allows less. A caller refuses what does not fit its worst case.
    ///
    /// - Parameter process: whose control groups count; nil: this process's. Memory that another process touches first is its own.
    /// - Throws: `.notFound` when there is no such process; `.protocolViolation` when the system's files have an unknown form.
    public static func available(to process: Int32? = nil) throws(EngineError) -> ByteCount {
        let groups = "/proc/\(process.map { String($0) } ?? "self")/cgroup"
        return try min(
            hostAvailable(), groupAvailable(try SystemText.lines(groups), root: "/sys/fs/cgroup", place: groups) ?? ByteCount(UInt64.max))
    }

    private static func hostAvailable() throws(EngineError) -> ByteCount {
        let place = "/proc/meminfo"
        for line in try SystemText.lines(place) where line.starts(with: "MemAvailable:".utf8) {
            let fields = line.fields
            guard fields.count == 3, let kibibytes = fields[1].number(), kibibytes < 1 << 50 else { break }
            return .kibibytes(kibibytes)
        }
        throw EngineError(.protocolViolation, "can't find the available memory", place: place)
    }

    /// The least that one of the groups still allows; nil when none has a limit. `lines` are those of /proc/PID/cgroup.
    static func groupAvailable(_ lines: [ArraySlice<UInt8>], root: String, place: String) throws(EngineError) -> ByteCount? {
        var least: ByteCount?
        for line in lines {
            let parts = line.split(separator: UInt8(ascii: ":"), maxSplits: 2, omittingEmptySubsequences: false)
            guard parts.count == 3 else { throw EngineError(.protocolViolation, "can't understand '\(line.text)'", place: place) }
            let kind: GroupFiles
            if parts[0].text == "0", parts[1].isEmpty {
                kind = .unified
            } else if parts[1].split(separator: UInt8(ascii: ",")).contains(where: { $0.text == "memory" }) {
                kind = .memory
            } else {
                continue
            }
            var path = parts[2].text
            while true {
                if let room = try room(in: root + kind.folder + path, kind) { least = min(least ?? room, room) }
                guard let slash = path.lastIndex(of: "/"), path != "/" else { break }
                path = slash == path.startIndex ? "/" : String(path[..<slash])
            }
        }
        return least
    }

    /// The files of the two generations of control groups.
    private struct GroupFiles {
        var folder: String
        var limit: String
        var usage: String
        /// In memory.stat: what could be given back at once.
        var reclaimable: String
        static let unified = GroupFiles(folder: "", limit: "memory.max", usage: "memory.current", reclaimable: "inactive_file")
        static let memory = GroupFiles(
            folder: "/memory", limit: "memory.limit_in_bytes", usage: "memory.usage_in_bytes", reclaimable: "total_inactive_file")
    }

    /// What one group still allows; nil when it has no limit, or does not exist in our view of the groups.
    private static func room(in folder: String, _ kind: GroupFiles) throws(EngineError) -> ByteCount? {
        guard let limit = try value("\(folder)/\(kind.limit)"), let usage = try value("\(folder)/\(kind.usage)") else { return nil }
        let statistics = "\(folder)/memory.stat"
        var reclaimable: UInt64 = 0
        for line in try SystemText.lines(statistics) {
            let fields = line.fields
            if fields.count == 2, fields[0].text == kind.reclaimable { reclaimable = fields[1].number() ?? 0 }
        }
        let used = usage - min(usage, reclaimable)
        return ByteCount(limit - min(limit, used))
    }

    /// The number in a file; nil for "max" and for a file that is not there.
    private static func value(_ path: String) throws(EngineError) -> UInt64? {
        let lines: [ArraySlice<UInt8>]
        do throws(EngineError) { lines = try SystemText.lines(path) } catch {
            if error.code == .notFound { return nil }
            throw error
        }
        guard let line = lines.first, lines.count == 1 else { throw EngineError(.protocolViolation, "not one line", place: path) }
        if line.text == "max" { return nil }
        guard let number = line.number() else { throw EngineError(.protocolViolation, "not a number: '\(line.text)'", place: path) }
        return number
    }
}
