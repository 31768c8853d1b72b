// Letting a process go on whose memory is write-protected by a userfaultfd that nobody reads any more.
//
// A machine's own background snapshot that failed or was cancelled leaves its memory protected for ever (QEMU 7.2): every
// thread that writes waits, and in the end the control socket's thread as well.
//
// Invariants:
// - Only mappings that are registered for write protection alone are touched. Where missing pages are served as well or instead (a
//   postcopy restore), ending that would give zero pages: never done.
// - Releasing what is not protected changes nothing, so it can be done again at any time.

import CLiveMemory
import CheckpointCore
import Glibc
import Units

/// The rescue of a process from its own userfaultfds. Everything may be called from any process with the right to trace, and at
/// any time.
public enum UserfaultRescue {
    /// What was found and done.
    public struct Report: Sendable, Equatable {
        /// The process's userfaultfds, by number.
        public var descriptors: [Int32] = []
        /// What is written freely again.
        public var released: [Range<TargetAddress>] = []
        /// What serves missing pages and was left alone.
        public var leftAlone: [Range<TargetAddress>] = []
        /// Write-protected mappings that belong to none of the descriptors: another process holds theirs, and looks after them.
        public var heldByOthers: [Range<TargetAddress>] = []
    }

    private enum Registration { case writeProtection, missingPages }

    /// Ends every write protection that the process's own userfaultfds have set, and wakes who waits for it.
    ///
    /// - Parameter numbers: only these descriptors of the process; nil: all.
    /// - Throws: `.exited`, `.permission`; `.ioFailed` when a release failed, after all others were tried.
    @discardableResult
    public static func release(_ process: TargetProcess, only numbers: Set<Int32>? = nil) throws(EngineError) -> Report {
        var report = Report()
        for descriptor in try process.descriptors() where descriptor.target == "anon_inode:[userfaultfd]" {
            if numbers?.contains(descriptor.number) ?? true { report.descriptors.append(descriptor.number) }
        }
        var failure: EngineError?
        let registrations = try registrations(process)
        report.leftAlone = registrations.filter { $0.kind == .missingPages }.map(\.addresses)
        var remaining = registrations.filter { $0.kind == .writeProtection }.map(\.addresses)
        var userfaults: [OwnedDescriptor] = []
        for number in report.descriptors {
            do throws(EngineError) { userfaults.append(OwnedDescriptor(owning: try process.duplicate(descriptor: number))) } catch {
                // Closed meanwhile: the kernel has released what it had.
                if error.code != .notFound { failure = failure ?? error }
            }
        }
        for userfault in userfaults {
            var others: [Range<TargetAddress>] = []
            for range in remaining {
                do throws(EngineError) {
                    if try unregister(range, userfault, process) { report.released.append(range) } else { others.append(range) }
                } catch {
                    failure = failure ?? error
                    others.append(range)
                }
            }
            remaining = others
        }
        // Unregistering takes the protection off, and does not wake who waits for that. By all of them: older kernels let each
        // unregister what is another's.
        for userfault in userfaults {
            for range in report.released { ck_uffd_wake(userfault.number, range.lowerBound.rawValue, range.length.rawValue) }
        }
        if let failure { throw failure }
        report.heldByOthers = remaining
        return report
    }

    /// Ends one mapping's registration; false when it belongs to another userfaultfd.
    private static func unregister(
        _ range: Range<TargetAddress>, _ userfault: OwnedDescriptor, _ process: TargetProcess
    ) throws(EngineError) -> Bool {
        let result = ck_uffd_unregister(userfault.number, range.lowerBound.rawValue, range.length.rawValue)
        if result == -EINVAL { return false }
        if result < 0 { try process.checkRunning() }
        try checked(result, "end the memory's write protection", place: process.place)
        return true
    }

    /// The mappings that some userfaultfd watches, by the flags that /proc/PID/smaps lists last for each.
    private static func registrations(
        _ process: TargetProcess
    ) throws(EngineError) -> [(addresses: Range<TargetAddress>, kind: Registration)] {
        var result: [(addresses: Range<TargetAddress>, kind: Registration)] = []
        var current: Range<TargetAddress>?
        for line in try process.lines("smaps") {
            if let mapping = MemoryMapping(line: line) {
                current = mapping.addresses
                continue
            }
            guard line.starts(with: "VmFlags:".utf8) else { continue }
            guard let addresses = current else {
                throw EngineError(.protocolViolation, "can't understand the list of mappings", place: process.path("smaps"))
            }
            let flags = line.fields.dropFirst().map(\.text)
            if flags.contains("um") || flags.contains("ui") {
                result.append((addresses, .missingPages))
            } else if flags.contains("uw") {
                result.append((addresses, .writeProtection))
            }
            current = nil
        }
        return result
    }
}
