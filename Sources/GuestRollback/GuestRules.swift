// The rules of system E that tests replace to see that breaking one is found.
//
// Invariant: the product has one set of rules, `StandardGuestRules`.

import CheckpointCore
import MachineMemory

/// One of the mappings of a guest's memory.
package typealias MemoryMapping = KeyPath<GuestMemory, UnsafeMutableRawBufferPointer> & Sendable

/// The decisions that rolling a guest back alone rests on.
package protocol GuestRules: Sendable {
    /// Whether a request that was issued since the checkpoint waits for the next one before its device sees it.
    func isHeld(_ operation: GuestRequest.Operation) -> Bool
    /// Whether a request is kept back while an earlier one is unfinished.
    func mustFollow(_ earlier: GuestRequest, _ later: GuestRequest) -> Bool
    /// Whether a read sees what earlier held writes will write.
    var readsSeeHeldWrites: Bool { get }
    /// Whether a rollback forgets held requests.
    var rollbackDiscardsHeld: Bool { get }
    /// Whether a rollback tells the guest again of what it was told since the checkpoint.
    var rollbackDeliversAgain: Bool { get }
    /// Whether a rollback starts unfinished requests again.
    var rollbackRepeatsUnfinished: Bool { get }
    /// Whether reads that were issued since the checkpoint wait after a rollback until the guest issues them again.
    var rollbackDisownsReads: Bool { get }
    /// Whether a rollback puts the real read-only marks back.
    var rollbackRestoresReadOnly: Bool { get }
    /// Whether a save keeps writes back that have to follow reads that are unfinished in it.
    var saveKeepsWritesBehindReads: Bool { get }
    /// Through which mapping of the memory devices put what they have read.
    var deviceMapping: MemoryMapping { get }
    /// Whether the unfinished requests of a failed device go to its mirror.
    var failureRedirects: Bool { get }
}

/// The rules as they are.
package struct StandardGuestRules: GuestRules {
    package init() {}

    /// Reads change nothing and are let go at once: a guest that waits for one before its next checkpoint would wait for ever.
    package func isHeld(_ operation: GuestRequest.Operation) -> Bool { operation != .read }

    /// Requests for the same bytes are carried out in the order of their issue. So a read that is issued again after a rollback would
    /// find what it found before, mirrors don't come apart, and a flush covers what was written before it.
    package func mustFollow(_ earlier: GuestRequest, _ later: GuestRequest) -> Bool {
        guard earlier.device == later.device else { return false }
        if later.operation == .flush { return earlier.operation == .write }
        return (earlier.operation == .write || later.operation == .write) && earlier.overlaps(later)
    }

    package var readsSeeHeldWrites: Bool { true }
    package var rollbackDiscardsHeld: Bool { true }
    package var rollbackDeliversAgain: Bool { true }
    package var rollbackRepeatsUnfinished: Bool { false }
    package var rollbackDisownsReads: Bool { true }
    package var rollbackRestoresReadOnly: Bool { true }
    package var saveKeepsWritesBehindReads: Bool { true }
    /// The one that is tracked: what a device changes has to be rolled back like what a processor changes.
    package var deviceMapping: MemoryMapping { unsafe \.bytes }
    package var failureRedirects: Bool { true }
}
