// One request of a guest from its issue until a checkpoint follows its completion.
//
// Invariants:
// - Its buffer is never the guest's memory. What is written was copied when it was issued; what was read is what the device had, before
//   anything that the guest has issued and its device has not seen.
// - Nobody touches it without the lock of the queues that it is in, except for the content of its buffer, which nobody changes.

import Units

/// A request in one of a guest's three lists.
final class QueuedRequest: @unchecked Sendable {
    enum Stage {
        /// Its device does not know of it.
        case waiting
        case atDevice
        /// Finished, and the guest does not know it, or not any more.
        case finished
        /// The guest was told; kept for a rollback.
        case delivered
    }

    var request: GuestRequest
    /// Grows with each issue and never goes back: the order in which requests for the same bytes are carried out.
    var issue: UInt64
    var stage = Stage.waiting
    var status = RequestCompletion.Status.done
    /// What is written; what was read, once it was.
    var buffer: TransferBuffer?
    /// Whether the guest, rolled back to its checkpoint, knows that it has issued it.
    var isKnownAtCheckpoint = false
    /// False for a read that the guest does not know of since it was rolled back: it may issue it again.
    var isOwned = true
    /// A write to these bytes has begun since: to a guest that issues the read again the result is too old.
    var isOutdated = false
    /// It is unfinished in the last save: a guest that is made again from there starts it again.
    var isSavedUnfinished = false
    /// Held writes that were issued before it, for its bytes: their data lie over what the device has.
    var covering: [QueuedRequest] = []
    /// Halves of the device that have not finished it.
    var remaining: Set<Int> = []

    init(_ request: GuestRequest, issue: UInt64, buffer: TransferBuffer?) {
        self.request = request
        self.issue = issue
        self.buffer = buffer
    }

    /// What the guest is to find in its memory: the device's bytes under those of the held writes.
    func content() -> TransferBuffer {
        guard !covering.isEmpty else { return buffer! }
        let result = TransferBuffer(byteLength: request.byteLength)
        unsafe result.bytes.copyMemory(from: UnsafeRawBufferPointer(buffer!.bytes))
        for write in covering {
            let start = max(write.request.offset, request.offset)
            let end = min(write.request.offset + write.request.byteLength, request.offset + request.byteLength)
            let source = Int(start.rawValue - write.request.offset.rawValue)..<Int(end.rawValue - write.request.offset.rawValue)
            let target = Int(start.rawValue - request.offset.rawValue)..<Int(end.rawValue - request.offset.rawValue)
            unsafe UnsafeMutableRawBufferPointer(rebasing: result.bytes[target])
                .copyMemory(from: UnsafeRawBufferPointer(rebasing: write.buffer!.bytes[source]))
        }
        return result
    }
}
