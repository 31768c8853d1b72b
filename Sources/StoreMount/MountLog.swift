// What a mounted store has to say while nobody is at its terminal.
//
// Invariant: what is the same is said once, however often the kernel asks again; memory for that is bounded.

import CStoreMount
import CheckpointStore
import Threading

/// A log of what went wrong. Thread-safe.
public final class MountLog: Sendable {
    private let write: @Sendable (String) -> Void
    private let said = Lock<Set<String>>([])
    private static let mostRemembered = 4096

    /// - Parameter write: takes one line, without its end; called by several threads.
    public init(_ write: @escaping @Sendable (String) -> Void) { self.write = write }

    /// A log that goes to the system's.
    public static func system() -> MountLog { MountLog { line in unsafe ck_log_to_system(line) } }

    /// Says what went wrong, unless it has been said.
    func add(_ error: StoreError) { add(error.description) }

    func add(_ line: String) {
        let isNew = said.withLock { said in
            if said.count >= Self.mostRemembered { said = [] }
            return said.insert(line).inserted
        }
        if isNew { write(line) }
    }
}
