// A running process, looked at from outside.
//
// Invariants:
// - What is read through the process id counts only when the process is still there afterwards, by its
//   pidfd: an id that another process has taken over never goes unnoticed.
// - Nothing here changes the process.

import CLinux
import CheckpointCore
import Glibc
import Units

/// When a process started, in clock ticks since the host's start. With the process id it names a process for ever.
public struct ProcessStartTime: Quantity {
    public var rawValue: UInt64
    @inlinable public init(_ rawValue: UInt64) { self.rawValue = rawValue }
}

/// A process's descriptor.
public struct TargetDescriptor: Hashable, Sendable {
    /// Its number there.
    public var number: Int32
    /// What it is, as the kernel names it: a path, or `anon_inode:[userfaultfd]`.
    public var target: String
}

/// A running process. Thread-safe; all calls may block for as long as /proc does.
public final class TargetProcess: Sendable {
    public let pid: Int32
    public let startTime: ProcessStartTime
    let handle: OwnedDescriptor

    /// Takes hold of the process with the id `pid`.
    /// - Parameter startTime: when given, the process must have started then: a process that has the same id by chance
    ///   is not found.
    /// - Throws: `.notFound` when there is no such process.
    public init(pid: Int32, startTime: ProcessStartTime? = nil) throws(EngineError) {
        precondition(pid > 0, "a process id is positive")
        let place = Self.place(pid)
        handle = OwnedDescriptor(owning: try checked(ck_pidfd_open(pid), "take hold of the process", place: place))
        self.pid = pid
        self.startTime = try Self.readStartTime(pid)
        try checkRunning()
        if let startTime, startTime != self.startTime {
            throw EngineError(.notFound, "the process has ended, and another one has its id", place: place)
        }
    }

    static func place(_ pid: Int32) -> String { "process \(pid)" }
    var place: String { Self.place(pid) }

    /// A descriptor that becomes readable when the process ends. It belongs to this object.
    public var pidDescriptor: Int32 { handle.number }

    /// Whether the process has ended.
    public var hasEnded: Bool { ck_pidfd_wait(handle.number, 0) != 0 }

    /// Throws `.exited` when the process has ended.
    public func checkRunning() throws(EngineError) {
        if hasEnded { throw EngineError(.exited, "the process has ended", place: place) }
    }

    /// All mappings, in the order of addresses.
    /// - Throws: `.exited`; `.permission`; `.protocolViolation` when the kernel's list has an unknown form.
    public func mappings() throws(EngineError) -> [MemoryMapping] {
        try MemoryMapping.parse(try lines("maps"), place: path("maps"))
    }

    /// All open descriptors, in the order of numbers. One that is closed meanwhile is left out.
    public func descriptors() throws(EngineError) -> [TargetDescriptor] {
        var result: [TargetDescriptor] = []
        for number in try numbers(in: "fd") {
            guard let target = try link("fd/\(number)") else { continue }
            result.append(TargetDescriptor(number: number, target: target))
        }
        return result
    }

    /// A duplicate of the process's descriptor `number`; the caller closes it.
    /// - Throws: `.notFound` when it has none of that number; `.permission`.
    public func duplicate(descriptor number: Int32) throws(EngineError) -> Int32 {
        let result = ck_pidfd_getfd(handle.number, number)
        if result == -EBADF { throw EngineError(.notFound, "the process has no descriptor \(number)", place: place) }
        return try checked(
            result, "duplicate descriptor \(number) of the process", place: place,
            remedy: "Run as root, or as the user of that process with CAP_SYS_PTRACE.")
    }

    /// The ids of its threads.
    public func threads() throws(EngineError) -> [Int32] { try numbers(in: "task") }

    func path(_ name: String) -> String { "/proc/\(pid)/\(name)" }

    /// The lines of one of its files in /proc.
    func lines(_ name: String) throws(EngineError) -> [ArraySlice<UInt8>] {
        do throws(EngineError) {
            let result = try SystemText.lines(path(name))
            try checkRunning()
            return result
        } catch {
            // A process that has ended says so, whatever the file's own error was.
            try checkRunning()
            throw error
        }
    }

    /// Opens one of its files in /proc for reading.
    func open(_ name: String) throws(EngineError) -> OwnedDescriptor {
        let number = unsafe ck_open(path(name), 0)
        try checkRunning()
        return OwnedDescriptor(
            owning: try checked(
                number, "open it", place: path(name), remedy: number == -EACCES || number == -EPERM ? "Run as root." : ""))
    }

    /// What a link in its folder of /proc says; nil when it is gone.
    private func link(_ name: String) throws(EngineError) -> String? {
        var text = [UInt8](repeating: 0, count: Int(PATH_MAX))
        let path = path(name)
        let (count, number) = unsafe text.withUnsafeMutableBytes { bytes in
            let count = unsafe readlink(path, bytes.baseAddress!.assumingMemoryBound(to: CChar.self), bytes.count)
            return (count, errno)
        }
        if count >= 0 { return text[..<count].text }
        try checkRunning()
        if number == ENOENT { return nil }
        throw EngineError(system: "read it", number, remedy: "Run as root.", place: path)
    }

    /// The numbers that one of its folders in /proc lists, ascending.
    private func numbers(in name: String) throws(EngineError) -> [Int32] {
        let path = path(name)
        guard let folder = unsafe opendir(path) else {
            let number = errno
            try checkRunning()
            throw EngineError(system: "list it", number, remedy: "Run as root.", place: path)
        }
        defer { unsafe closedir(folder) }
        var result: [Int32] = []
        while true {
            errno = 0
            guard let entry = unsafe readdir(folder) else { break }
            let name = unsafe withUnsafePointer(to: &entry.pointee.d_name) { name in
                unsafe name.withMemoryRebound(to: CChar.self, capacity: 256) { unsafe String(cString: $0) }
            }
            if let number = Int32(name) { result.append(number) }
        }
        if errno != 0 { throw EngineError(system: "list it", errno, place: path) }
        try checkRunning()
        return result.sorted()
    }

    /// Field 22 of /proc/PID/stat.
    private static func readStartTime(_ pid: Int32) throws(EngineError) -> ProcessStartTime {
        let path = "/proc/\(pid)/stat"
        let text = try SystemText.read(path)
        // The name before it is in parentheses and may hold anything, parentheses and blanks as well.
        guard let end = text.lastIndex(of: UInt8(ascii: ")")) else {
            throw EngineError(.protocolViolation, "can't find the process's name", place: path)
        }
        let fields = text[(end + 1)...].fields
        guard fields.count > 19, let ticks = fields[19].number() else {
            throw EngineError(.protocolViolation, "can't find the process's start time", place: path)
        }
        return ProcessStartTime(ticks)
    }
}
