// What this kernel can do for checkpoints of memory, and what that means for its user.
//
// Invariant: what is not there is said, with what would bring it; what can be done without is done without.

import CLiveMemory
import CheckpointCore
import Glibc
import Units

/// What the kernel's userfaultfd offers to this process.
public struct KernelFeatures: Sendable, Equatable {
    private let bits: UInt64

    /// Asks the kernel.
    /// - Throws: `.permission`, `.unsupported`: there is no userfaultfd for this process.
    public static func current() throws(EngineError) -> KernelFeatures {
        var bits: UInt64 = 0
        try check(unsafe ck_uffd_features(&bits))
        return KernelFeatures(bits: bits)
    }

    package init(bits: UInt64) { self.bits = bits }

    /// Shared memory and huge pages can be write-protected (Linux 5.19).
    public var protectsShared: Bool { bits & ck_write_protects_shared != 0 }
    /// Pages that were never touched can be write-protected (Linux 6.4). Without it they are provided first.
    public var protectsUntouched: Bool { bits & ck_write_protects_untouched != 0 }
    /// Writes can be noted without keeping the writer waiting (Linux 6.7).
    public var tracksAsynchronously: Bool { bits & ck_write_protects_asynchronously != 0 }

    /// What is done without, one sentence each; empty when nothing is.
    public var limitations: [String] {
        var result: [String] = []
        if !protectsUntouched { result.append("pages that were never touched are provided before they are protected (Linux 6.4 would not need that)") }
        if !tracksAsynchronously { result.append("written pages are found by write faults, not by scans of the page tables (Linux 6.7 has these)") }
        return result
    }

    var forProtection: UInt64 { bits & (ck_write_protects_shared | ck_write_protects_untouched) }
    var forTracking: UInt64 { bits & (ck_write_protects_shared | ck_write_protects_untouched | ck_write_protects_asynchronously) }

    /// Throws `.unsupported` when memory of this kind can't be protected.
    func checkProtects(_ memory: GuestMemory) throws(EngineError) {
        guard protectsShared || (memory.sharing == .anonymous && memory.pages != .huge) else {
            throw EngineError(
                .unsupported, "this kernel can't write-protect shared memory or huge pages",
                remedy: "Use anonymous memory in pages of 4 KiB, or Linux 5.19 or newer.", place: memory.name)
        }
    }

    static func openUserfault() throws(EngineError) -> OwnedDescriptor { OwnedDescriptor(owning: try check(ck_uffd_open())) }

    @discardableResult
    private static func check(_ result: Int32) throws(EngineError) -> Int32 {
        switch result {
        case -EPERM, -EACCES:
            throw EngineError(
                .permission, "this process may not watch writes to its memory (userfaultfd)",
                remedy: "Run it as root or with the capability CAP_SYS_PTRACE, set the sysctl vm.unprivileged_userfaultfd to 1, or give its user "
                    + "access to /dev/userfaultfd.")
        case -ENOSYS:
            throw EngineError(
                .unsupported, "this kernel has no userfaultfd", remedy: "Use a kernel with CONFIG_USERFAULTFD; a sandbox may also have forbidden the call.")
        default: return try checked(result, "ask the kernel for a userfaultfd")
        }
    }
}
