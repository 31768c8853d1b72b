// What engines need of the system: checked results, owned descriptors.
//
// Invariant: a negative result of a shim is an errno value and always becomes an error here.

import CLinux
import Glibc
import Synchronization

/// Throws what a shim's negative result means; otherwise hands the result through.
@discardableResult
package func checked<T: FixedWidthInteger & SignedInteger>(
    _ result: T, _ what: @autoclosure () -> String, place: @autoclosure () -> String = "", remedy: String = ""
) throws(EngineError) -> T {
    if result < 0 { throw EngineError(system: what(), Int32(-result), remedy: remedy, place: place()) }
    return result
}

/// Owns a file descriptor: closed once, by `close` or with the object.
package final class OwnedDescriptor: Sendable {
    /// The number, for system calls while this object lives and is not closed.
    package let number: Int32
    private let isClosed = Atomic(false)

    package init(owning number: Int32) { self.number = number }

    deinit { close() }

    /// Closes it; nothing more happens when that was done before.
    package func close() {
        guard !isClosed.exchange(true, ordering: .acquiringAndReleasing) else { return }
        ck_close(number)
    }
}
