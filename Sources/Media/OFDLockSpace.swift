// Locks on byte ranges of the medium's own inode, far behind any data.
//
// Invariants:
// - They are open-file-description locks on a descriptor that was opened for them alone: it is never
//   mapped or duplicated, and closed in a forked child. So they are gone with the handle or its process.
// - The lock bytes start at 2^62; no data ever gets there.

import CLinux
import Glibc
import Synchronization
import Units

/// The locks of one handle.
final class OFDLockSpace: LockSpace {
    private let descriptor: Int32
    private let medium: String
    private let identity: LockedInode
    private let isClosed = Atomic(false)

    /// The first lock byte's offset in the file, and the number of lock bytes.
    static let base: UInt64 = 1 << 62

    /// Opens the inode at `path` for locking.
    init(path: String, isReadOnly: Bool, medium: String) throws(MediumError) {
        descriptor = try checked(unsafe ck_lock_open(path, !isReadOnly), medium, "open it for locking")
        self.medium = medium
        var status = ck_file_status()
        let result = unsafe ck_status(descriptor, &status)
        guard result == 0 else {
            _ = ck_lock_close(descriptor)
            throw .system(-result, medium: medium, operation: "look at it")
        }
        identity = LockedInode(device: status.device, inode: status.inode)
    }

    deinit { close() }

    /// Gives up all locks.
    func close() {
        guard !isClosed.exchange(true, ordering: .acquiringAndReleasing) else { return }
        // Explicitly: a process that is just being spawned elsewhere shares the descriptor until it executes,
        // and would keep the locks for that long.
        _ = ck_lock_set(descriptor, CK_LOCK_NONE, Self.base, Self.base, false)
        _ = ck_lock_close(descriptor)
    }

    func tryLock(_ range: LockRange, _ mode: LockMode) throws(MediumError) -> Bool {
        try set(range, mode.system, waiting: false)
    }

    func lock(_ range: LockRange, _ mode: LockMode, timeout: Duration?) throws(MediumError) {
        guard let timeout else {
            _ = try set(range, mode.system, waiting: true)
            return
        }
        // The system can't wait for a lock with a limit: look again and again, ever more seldom.
        let end = ContinuousClock.now + timeout
        var pauseMicroseconds: UInt32 = 1_000
        while try !set(range, mode.system, waiting: false) {
            guard ContinuousClock.now < end else { throw busy(range, timeout) }
            usleep(min(pauseMicroseconds, UInt32(clamping: (end - .now).microseconds + 1)))
            pauseMicroseconds = min(pauseMicroseconds * 2, 50_000)
        }
    }

    func unlock(_ range: LockRange) throws(MediumError) {
        _ = try set(range, CK_LOCK_NONE, waiting: false)
    }

    func isFree(_ range: LockRange, for mode: LockMode) throws(MediumError) -> Bool {
        let conflicts = ck_lock_conflicts(descriptor, mode.system, Self.start(of: range), range.count)
        return try checked(conflicts, medium, "look at its locks") == 0
    }

    func holders(of range: LockRange) -> [LockHolder] {
        let seen = identity.holders(start: Self.start(of: range), count: range.count, except: descriptor)
        guard seen.isEmpty, (try? isFree(range, for: .exclusive)) == false else { return seen }
        return [LockHolder(process: nil, command: "")]
    }

    private static func start(of range: LockRange) -> UInt64 {
        precondition(
            range.count >= 1 && range.count <= base && range.start <= base - range.count,
            "a lock range must lie within the first 2^62 lock bytes")
        return base + range.start
    }

    /// Returns false when somebody else's lock is in the way.
    private func set(_ range: LockRange, _ mode: ck_lock_mode, waiting: Bool) throws(MediumError) -> Bool {
        let result = ck_lock_set(descriptor, mode, Self.start(of: range), range.count, waiting)
        if result == -EAGAIN { return false }
        if result == -EBADF {
            throw MediumError(
                .readOnly, medium: medium, operation: "lock it", errno: EBADF,
                reason: "this handle can't take that lock: it is read-only or belongs to the parent process",
                remedy: "Open the medium for writing, in this process.")
        }
        try checked(result, medium, "lock it")
        return true
    }

    private func busy(_ range: LockRange, _ timeout: Duration) -> MediumError {
        let names = holders(of: range).map(\.description).joined(separator: ", ")
        return MediumError(
            .busy, medium: medium, operation: "lock it",
            reason: "\(names.isEmpty ? "somebody" : names) holds the lock, and kept it for \(timeout)",
            remedy: "Wait until they are done, or end them if they hang.")
    }
}

extension LockMode {
    fileprivate var system: ck_lock_mode { self == .shared ? CK_LOCK_SHARED : CK_LOCK_EXCLUSIVE }
}

extension Duration {
    /// Whole microseconds.
    fileprivate var microseconds: Int64 { components.seconds * 1_000_000 + components.attoseconds / 1_000_000_000_000 }
}
