// What a guest's processors are to somebody who rolls them back.
//
// Invariant: a processor's state is everything that its guest has outside its memory: registers, and completions that the guest has been
// told of and has not dealt with.

import CheckpointCore
import Units

/// One processor of a guest: a thread that interprets, a virtual CPU with its interrupt controller.
///
/// It stores into the guest's memory through `RollbackGuest.store`, which tells it of pages that it may not write. One that stores by
/// itself, as a virtual CPU does, gets the same from the memory's mapping: a signal, or an exit of KVM.
public protocol GuestProcessor: Sendable {
    /// Stops it between two of its steps and returns when it stands still: it has no store, load or request under way. Harmless
    /// when it stands still already. A call of `store` or `submit` that it is in returns soon, whatever it waits for.
    func pause() throws(EngineError)
    /// Lets it go on.
    func resume()
    /// Its state. Called while it stands still.
    func state() throws(EngineError) -> [UInt8]
    /// Puts a state back that `state` returned. Called while it stands still; called again when it threw.
    func restore(_ state: [UInt8]) throws(EngineError)
    /// One of its requests is finished: what was read is in memory. Called on a thread of the guest, never while the processor is paused or
    /// its state is taken. It must not wait for the guest; a processor keeps the completion as part of its state until it has dealt with it.
    func complete(_ completion: RequestCompletion)
    /// It has tried to store into a page that is really read-only; nothing was written to that page. Called on the thread that stored,
    /// before `RollbackGuest.store` returns.
    func violation(at page: PageIndex)
}

/// How a request ended.
public struct RequestCompletion: Sendable, Equatable {
    public enum Status: Sendable, Equatable {
        case done
        /// The device failed, and there is no other that has its data. Holds what happened.
        case deviceFailed(String)
        /// What was read could not be put into memory: this page of it is really read-only.
        case readOnlyTarget(PageIndex)
    }

    public var request: RequestID
    public var status: Status

    public init(request: RequestID, status: Status) {
        self.request = request
        self.status = status
    }
}
