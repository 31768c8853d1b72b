// Who holds a lock: the system says it only in /proc/*/fdinfo (open-file-description locks carry no
// process id elsewhere), and only of processes that we may look at.

import CLinux
import Glibc
import SystemPackage
import Units

/// The inode that locks are on.
struct LockedInode: Sendable {
    var device: UInt64
    var inode: UInt64

    /// The processes with a lock on the bytes, but for our own descriptor `except`. Looks at every
    /// descriptor of every process: for messages, not for decisions.
    func holders(start: UInt64, count: UInt64, except: Int32) -> [LockHolder] {
        let own = getpid()
        var found: [LockHolder] = []
        for process in ProcessFiles.entries("/proc").compactMap({ Int32($0) }) {
            let holds = ProcessFiles.entries("/proc/\(process)/fdinfo").contains { entry in
                if process == own, Int32(entry) == except { return false }
                guard let text = ProcessFiles.text("/proc/\(process)/fdinfo/\(entry)") else { return false }
                let locks = text.split(separator: "\n").filter { $0.hasPrefix("lock:") }
                return locks.contains { Self.overlaps($0, start: start, count: count) }
                    && isThis("/proc/\(process)/fd/\(entry)")
            }
            if holds {
                let command = ProcessFiles.text("/proc/\(process)/comm")?.split(separator: "\n").first
                found.append(LockHolder(process: process, command: command.map(String.init) ?? ""))
            }
        }
        return found
    }

    private func isThis(_ path: String) -> Bool {
        var status = ck_file_status()
        return unsafe ck_status_at(path, &status) == 0 && status.device == device && status.inode == inode
    }

    /// Reads a line such as `lock: 1: OFDLCK ADVISORY WRITE -1 fe:00:1234 4611686018427387904 EOF`.
    private static func overlaps(_ line: Substring, start: UInt64, count: UInt64) -> Bool {
        let words = line.split(whereSeparator: { $0 == " " || $0 == "\t" })
        guard words.count >= 2, words.contains("OFDLCK"), let first = UInt64(words[words.count - 2]) else {
            return false
        }
        let last = UInt64(words[words.count - 1]) ?? UInt64.max
        return first <= start + (count - 1) && start <= last
    }
}

/// Small files and directories of /proc and /sys.
enum ProcessFiles {
    /// The names in a directory, without those that begin with a dot; empty when it can't be read.
    static func entries(_ path: String) -> [String] {
        guard let directory = unsafe opendir(path) else { return [] }
        defer { unsafe closedir(directory) }
        var names: [String] = []
        while let entry = unsafe readdir(directory) {
            let name = unsafe withUnsafePointer(to: &entry.pointee.d_name) {
                unsafe $0.withMemoryRebound(to: CChar.self, capacity: 256) { unsafe String(cString: $0) }
            }
            if !name.hasPrefix(".") { names.append(name) }
        }
        return names
    }

    /// A file's text, or nil when it can't be read. At most 64 KiB, enough for any single entry.
    static func text(_ path: String) -> String? {
        let number = unsafe ck_open(path, 0)
        guard number >= 0 else { return nil }
        let file = Descriptor(owning: number)
        defer { file.close() }
        let most = 64 << 10
        var got: Int64 = 0
        let bytes = unsafe [UInt8](unsafeUninitializedCapacity: most) { buffer, count in
            got = unsafe ck_read_at(file.number, buffer.baseAddress, most, 0)
            count = max(0, Int(got))
        }
        return got < 0 ? nil : String(decoding: bytes, as: UTF8.self)
    }
}
