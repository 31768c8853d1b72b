// A guest's three lists of requests, and what checkpoints and rollbacks do to them. No I/O here.
//
// Invariants:
// - A request is in one list. Held: issued, and its device may not see it before the next checkpoint (or before that is saved). Unfinished: its device
//   knows of it, or will as soon as earlier requests for the same bytes are finished. Completed: finished since the last checkpoint, or before
//   it without the guest having been told.
// - Held and unfinished requests are in the order of their issue, completed ones in that of their completion.
// - A write that left the list of held ones is never issued again by its guest: it left at a checkpoint, which knows of it.

import CheckpointCore
import Units

/// The lists. Not thread-safe.
struct QueueState {
    let rules: any GuestRules
    private(set) var held: [QueuedRequest] = []
    private(set) var unfinished: [QueuedRequest] = []
    private(set) var completed: [QueuedRequest] = []
    private var lastIssue: UInt64 = 0
    /// Bytes of all buffers.
    private(set) var keptBytes = ByteCount.zero

    init(rules: any GuestRules) { self.rules = rules }

    /// All requests that the guest has issued and was not told of.
    var expected: [QueuedRequest] { (held + unfinished + completed).filter { $0.isOwned && $0.stage != .delivered } }

    // MARK: A request's way

    /// Takes a request that the guest issues. A read that it issued before a rollback is found again instead of being repeated.
    mutating func issue(_ request: GuestRequest, buffer: TransferBuffer?) {
        lastIssue += 1
        let covering = coveringWrites(request)
        if let known = disownedRead(like: request) {
            known.request = request
            known.issue = lastIssue
            known.isOwned = true
            known.covering = covering
            // It now comes after what was issued since the rollback.
            unfinished.sort { $0.issue < $1.issue }
            return
        }
        let queued = QueuedRequest(request, issue: lastIssue, buffer: buffer)
        queued.covering = covering
        keptBytes += request.byteLength
        if rules.isHeld(request.operation) { held.append(queued) } else { unfinished.append(queued) }
    }

    /// Puts in what a saved checkpoint knows of.
    mutating func restore(_ request: GuestRequest, buffer: TransferBuffer?, status: RequestCompletion.Status?) {
        lastIssue += 1
        let queued = QueuedRequest(request, issue: lastIssue, buffer: buffer)
        queued.isKnownAtCheckpoint = true
        keptBytes += request.byteLength
        guard let status else { return unfinished.append(queued) }
        queued.stage = .finished
        queued.status = status
        completed.append(queued)
    }

    /// The requests whose turn it is; they count as being at their device from here on.
    mutating func startReady() -> [QueuedRequest] {
        var started: [QueuedRequest] = []
        for (index, queued) in unfinished.enumerated() where queued.stage == .waiting {
            guard !unfinished[..<index].contains(where: { rules.mustFollow($0.request, queued.request) }) else { continue }
            queued.stage = .atDevice
            if queued.request.operation == .write { outdateReads(under: queued.request) }
            started.append(queued)
        }
        return started
    }

    /// The device is finished with it. Nothing happens when it was forgotten while its device was at work.
    mutating func finish(_ queued: QueuedRequest, _ status: RequestCompletion.Status) {
        guard let index = unfinished.firstIndex(where: { $0 === queued }) else { return }
        unfinished.remove(at: index)
        queued.stage = .finished
        queued.status = status
        completed.append(queued)
    }

    /// The next request that the guest is to be told of. It counts as told from here on.
    mutating func nextDelivery() -> QueuedRequest? {
        guard let next = completed.first(where: { $0.isOwned && $0.stage == .finished }) else { return nil }
        next.stage = .delivered
        return next
    }

    // MARK: Checkpoint and rollback

    /// The guest's present state, which knows of all that it has issued, becomes the checkpoint.
    ///
    /// - Parameter releasing: held requests may go to their devices; otherwise they wait for `release`.
    /// - Returns: how many buffers were freed.
    mutating func checkpoint(releasing: Bool) -> Int {
        let before = unfinished.count + completed.count
        completed.removeAll { $0.stage == .delivered || !$0.isOwned }
        // Nobody waits for what it will bring.
        unfinished.removeAll { !$0.isOwned }
        let freed = before - unfinished.count - completed.count
        for queued in held + unfinished + completed { queued.isKnownAtCheckpoint = true }
        if releasing { release() }
        countBytes()
        return freed
    }

    /// Lets held requests that the checkpoint knows of go to their devices.
    mutating func release() {
        unfinished += held.filter(\.isKnownAtCheckpoint)
        unfinished.sort { $0.issue < $1.issue }
        held.removeAll(where: \.isKnownAtCheckpoint)
    }

    /// The guest is as it was at the checkpoint.
    ///
    /// - Returns: how many requests were forgotten, and how many will be delivered again.
    mutating func rollBack() -> (discarded: Int, deliveredAgain: Int) {
        let heldBefore = held.count
        if rules.rollbackDiscardsHeld { held.removeAll { !$0.isKnownAtCheckpoint } }
        var deliveredAgain = 0
        if rules.rollbackDisownsReads { disownReads() }
        for queued in completed where queued.stage == .delivered && queued.isKnownAtCheckpoint && rules.rollbackDeliversAgain {
            queued.stage = .finished
            deliveredAgain += 1
        }
        if rules.rollbackRepeatsUnfinished { for queued in unfinished { queued.stage = .waiting } }
        countBytes()
        return (heldBefore - held.count, deliveredAgain)
    }

    /// Reads since the checkpoint are none of the guest's any more, until it issues them again.
    private mutating func disownReads() {
        unfinished.removeAll { !$0.isKnownAtCheckpoint && $0.isOutdated }
        completed.removeAll { !$0.isKnownAtCheckpoint && $0.isOutdated }
        for queued in unfinished + completed where !queued.isKnownAtCheckpoint && queued.request.operation == .read {
            queued.isOwned = false
            queued.covering = []
            if queued.stage == .delivered { queued.stage = .finished }
        }
    }

    // MARK: Finding

    private func disownedRead(like request: GuestRequest) -> QueuedRequest? {
        (completed + unfinished).first { !$0.isOwned && !$0.isOutdated && $0.request.readsTheSame(as: request) }
    }

    private func coveringWrites(_ request: GuestRequest) -> [QueuedRequest] {
        guard request.operation == .read, rules.readsSeeHeldWrites else { return [] }
        return held.filter { $0.request.operation == .write && $0.request.overlaps(request) }
    }

    private func outdateReads(under write: GuestRequest) {
        for queued in unfinished + completed where queued.request.operation == .read && queued.request.overlaps(write) {
            // One that waits is going to find what is being written.
            if queued.stage != .waiting { queued.isOutdated = true }
        }
    }

    private mutating func countBytes() {
        keptBytes = (held + unfinished + completed).reduce(into: ByteCount.zero) { $0 += $1.request.byteLength }
    }
}
