// An open file descriptor with one owner.

import CLinux
import Synchronization
import Units

/// Owns a file descriptor: closed once, by `close` or with the object.
final class Descriptor: Sendable {
    /// The number, for system calls while this object lives and is not closed.
    let number: Int32
    private let isClosed = Atomic(false)

    init(owning number: Int32) { self.number = number }

    /// Opens `path`; `flags` are `CK_…`.
    convenience init(path: String, flags: ck_open_flags, medium: String, operation: String) throws(MediumError) {
        self.init(owning: try checked(unsafe ck_open(path, flags.rawValue), medium, operation))
    }

    deinit { close() }

    /// Closes it. Errors of earlier buffered writes are `flush`'s to report, so close has none of its own.
    func close() {
        guard !isClosed.exchange(true, ordering: .acquiringAndReleasing) else { return }
        _ = ck_close(number)
    }

    /// What kind of file it is, how large and where.
    func status(medium: String) throws(MediumError) -> ck_file_status {
        var status = ck_file_status()
        try checked(unsafe ck_status(number, &status), medium, "look at it")
        return status
    }

    /// A path by which this very inode can be opened again, whatever has become of its name.
    var reopeningPath: String { "/proc/self/fd/\(number)" }
}

extension ck_open_flags {
    static func | (a: ck_open_flags, b: ck_open_flags) -> ck_open_flags { ck_open_flags(a.rawValue | b.rawValue) }
    static let readOnly = ck_open_flags(0)
}
