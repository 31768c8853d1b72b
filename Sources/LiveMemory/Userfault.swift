// A userfaultfd of another process, held here alone.
//
// Invariants:
// - The other process has no descriptor of it. So when this process ends, however it ends, the kernel unregisters
//   everything, takes the protection off and wakes who waits: nothing of it can outlive us.
// - Addresses are those of the other process.

import CLinux
import CLiveMemory
import CheckpointCore
import Glibc
import Units

/// Which kind of write protection.
enum ProtectionKind {
    /// Writes go through; the page tables note which pages were written.
    case asynchronous
    /// A writer waits until the page is released.
    case synchronous
}

/// An open userfaultfd. Its calls may come from several threads.
final class Userfault: Sendable {
    let descriptor: OwnedDescriptor
    private let process: TargetProcess
    private var place: String { process.place }

    private static let newKernel = "This needs Linux 6.7 or newer."

    /// How long a process takes at most from giving its memory back to its end.
    private static let endMilliseconds: Int32 = 1000
    /// A multiple of the usual huge page.
    private static let piece = ByteCount.mebibytes(32)

    /// Makes one for `process`, which has one of its threads stopped for some tenths of a millisecond for it.
    init(_ process: TargetProcess, _ kind: ProtectionKind, avoiding threads: Set<Int32>) throws(EngineError) {
        self.process = process
        descriptor = try Injection(process, avoiding: threads).userfault(for: kind)
        let result = ck_uffd_begin(descriptor.number, kind == .asynchronous)
        if result == -EINVAL {
            throw EngineError(
                .unsupported, "the kernel has no \(kind == .asynchronous ? "asynchronous " : "")write protection of shared memory",
                remedy: Self.newKernel, place: place)
        }
        try checked(result, "set up a userfaultfd", place: place)
    }

    /// Registers a range. Throws `.busy` when another userfaultfd has a part of it; `.unsupported` when it is memory of another kind.
    func register(_ range: Range<TargetAddress>) throws(EngineError) {
        let result = ck_uffd_register(descriptor.number, range.lowerBound.rawValue, range.length.rawValue)
        switch result {
        case -EBUSY:
            throw EngineError(
                .busy, "somebody else watches the memory's writes or serves its pages",
                remedy: "Wait until the machine's own snapshot or postcopy migration, or another checkpoint, has ended; "
                    + "one that failed has to be released.", place: place)
        case -EINVAL, -EPERM:
            throw EngineError(
                .unsupported, "the memory can't be write-protected from outside",
                remedy: "Guest memory has to be a memfd, or a file on tmpfs or hugetlbfs. " + Self.newKernel, place: place)
        default: try checked(result, "register the memory for write protection", place: place)
        }
    }

    /// Ends the registration of a range, and with it the protection. A process that has ended is none the worse.
    func unregister(_ range: Range<TargetAddress>) throws(EngineError) {
        try inPieces(range) { (start, length) throws(EngineError) in
            let result = ck_uffd_unregister(descriptor.number, start, length)
            // Out of memory is also what the kernel says when the process has just given its memory back, shortly before its end.
            if result == -ESRCH || (result == -ENOMEM && ck_pidfd_wait(process.handle.number, Self.endMilliseconds) != 0) { return }
            try checked(result, "end the memory's write protection", place: place)
            // Who began to wait while that went on.
            ck_uffd_wake(descriptor.number, start, length)
        }
    }

    /// Protects a range.
    func protect(_ range: Range<TargetAddress>) throws(EngineError) {
        try inPieces(range) { (start, length) throws(EngineError) in
            try checked(ck_uffd_protect(descriptor.number, start, length, true), "write-protect the memory", place: place)
        }
    }

    /// Large ranges in pieces, since the process's page faults or at least its mmap calls wait during each: some 0.6 ms.
    private func inPieces(
        _ range: Range<TargetAddress>, _ body: (UInt64, UInt64) throws(EngineError) -> Void
    ) throws(EngineError) {
        var start = range.lowerBound
        while start < range.upperBound {
            let end = min(start + Self.piece, range.upperBound)
            try body(start.rawValue, (end - start).rawValue)
            start = end
        }
    }

    /// Lets a range be written again and wakes who waits for that. A process that has ended is none the worse.
    func unprotect(_ range: Range<TargetAddress>) throws(EngineError) {
        let result = ck_uffd_protect(descriptor.number, range.lowerBound.rawValue, range.length.rawValue, false)
        if result == -ESRCH { return }
        try checked(result, "end the write protection of pages", place: place)
    }

    /// Ends everything.
    func close() { descriptor.close() }
}

extension Range<TargetAddress> {
    var length: ByteCount { upperBound - lowerBound }
}
