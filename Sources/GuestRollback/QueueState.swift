// A guest's three lists of requests, and what checkpoints and rollbacks do to them. No I/O here.
//
// Invariants:
// - A request is in one list. Held: issued, and its device may not see it before the next checkpoint (or before that is saved). Unfinished: its
//   device knows of it, or will as soon as earlier requests for the same bytes are finished. Completed: finished since the last checkpoint, or
//   before it without the guest having been told.
// - Held and unfinished requests are in the order of their issue. Completed ones are in two parts, so that the next one to tell the guest of is found
//   at once: those that it is to be told of, in the order of their completion, and those that it was told of.
// - A write that left the list of held ones is never issued again by its guest: it left at a checkpoint, which knows of it.

import CheckpointCore
import Units

/// The lists. Not thread-safe.
struct QueueState {
    let rules: any GuestRules
    private(set) var held: [QueuedRequest] = []
    private(set) var unfinished: [QueuedRequest] = []
    /// Completed, and the guest is to be told, or will be when it issues the request again.
    private(set) var finished: [QueuedRequest] = []
    /// Completed, and the guest was told.
    private(set) var delivered: [QueuedRequest] = []
    /// The ids of the requests that the guest has issued and was not told of.
    private(set) var expected: Set<RequestID> = []
    private var lastIssue: UInt64 = 0
    /// Bytes of all buffers.
    private(set) var keptBytes = ByteCount.zero

    init(rules: any GuestRules) { self.rules = rules }

    /// Completed requests that are kept.
    var completed: [QueuedRequest] { delivered + finished }
    private var all: [QueuedRequest] { held + unfinished + completed }
    /// Whether the guest is to be told of something.
    var hasDelivery: Bool { finished.contains(where: \.isOwned) }
    /// Whether there are reads that the guest issued before a rollback and has not issued again.
    var hasDisownedReads: Bool { (unfinished + finished).contains { !$0.isOwned } }

    // MARK: A request's way

    /// Takes a request that the guest issues. A read that it issued before a rollback is found again instead of being repeated.
    mutating func issue(_ request: GuestRequest, buffer: TransferBuffer?) {
        lastIssue += 1
        expected.insert(request.id)
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

    /// Puts in what a saved checkpoint knows of, in the order of its issue. Then `release` or `releaseSaved` is called, as after a save.
    mutating func restore(_ request: GuestRequest, buffer: TransferBuffer?, status: RequestCompletion.Status?) {
        lastIssue += 1
        let queued = QueuedRequest(request, issue: lastIssue, buffer: buffer)
        queued.isKnownAtCheckpoint = true
        keptBytes += request.byteLength
        expected.insert(request.id)
        if let status {
            unfinished.append(queued)
            return finish(queued, status)
        }
        queued.isSavedUnfinished = true
        queued.covering = coveringWrites(request)
        if rules.isHeld(request.operation) { held.append(queued) } else { unfinished.append(queued) }
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
        finished.append(queued)
    }

    /// The next request that the guest is to be told of. It counts as told from here on.
    mutating func nextDelivery() -> QueuedRequest? {
        guard let index = finished.firstIndex(where: \.isOwned) else { return nil }
        let next = finished.remove(at: index)
        next.stage = .delivered
        delivered.append(next)
        expected.remove(next.request.id)
        return next
    }

    // MARK: Checkpoint and rollback

    /// The guest's present state, which knows of all that it has issued, becomes the checkpoint.
    ///
    /// - Parameter releasing: held requests may go to their devices; otherwise they wait for `releaseSaved`.
    /// - Returns: how many buffers were freed.
    mutating func checkpoint(releasing: Bool) -> Int {
        let before = unfinished.count + completed.count
        delivered = []
        // Nobody waits for what these have brought or will bring.
        finished.removeAll { !$0.isOwned }
        unfinished.removeAll { !$0.isOwned }
        let freed = before - unfinished.count - completed.count
        for queued in all { queued.isKnownAtCheckpoint = true }
        if releasing { release() }
        countBytes()
        return freed
    }

    /// The requests that the checkpoint knows of, in the order of their issue. Those that are unfinished now are marked as being saved so.
    mutating func save() -> [QueuedRequest] {
        let known = all.filter(\.isKnownAtCheckpoint).sorted { $0.issue < $1.issue }
        for queued in known { queued.isSavedUnfinished = queued.stage == .waiting || queued.stage == .atDevice }
        return known
    }

    /// What `save` returned is durable: lets those held requests go that it knows of.
    ///
    /// A guest that is made again from there repeats the reads that are unfinished in it. A write that has to follow one of those stays until they
    /// are finished in a save: otherwise the repeated read would find it.
    mutating func releaseSaved() {
        let rules = rules
        let repeated = (unfinished + completed).filter { $0.isSavedUnfinished && $0.request.operation == .read }
        release { queued in
            let repeatedBefore = repeated.filter { $0.issue < queued.issue && rules.mustFollow($0.request, queued.request) }
            return repeatedBefore.isEmpty || !rules.saveKeepsWritesBehindReads
        }
    }

    /// Lets held requests go that the checkpoint knows of.
    mutating func release() { release { _ in true } }

    /// Lets held requests go that the checkpoint knows of, if they may and do not have to follow one that may not.
    private mutating func release(where mayGo: (QueuedRequest) -> Bool) {
        var staying: [QueuedRequest] = []
        for queued in held {
            let isKept = !queued.isKnownAtCheckpoint || !mayGo(queued) || staying.contains { rules.mustFollow($0.request, queued.request) }
            if isKept { staying.append(queued) } else { unfinished.append(queued) }
        }
        held = staying
        unfinished.sort { $0.issue < $1.issue }
    }

    /// The guest is as it was at the checkpoint.
    ///
    /// - Returns: how many requests were forgotten, and how many will be delivered again.
    mutating func rollBack() -> (discarded: Int, deliveredAgain: Int) {
        let heldBefore = held.count
        if rules.rollbackDiscardsHeld { held.removeAll { !$0.isKnownAtCheckpoint } }
        if rules.rollbackDisownsReads { disownReads() }
        let again = delivered.filter { $0.isKnownAtCheckpoint && rules.rollbackDeliversAgain }
        for queued in again { queued.stage = .finished }
        finished = again + finished
        delivered.removeAll { $0.stage == .finished }
        if rules.rollbackRepeatsUnfinished { for queued in unfinished { queued.stage = .waiting } }
        expected = Set((held + unfinished + finished).filter(\.isOwned).map(\.request.id))
        countBytes()
        return (heldBefore - held.count, again.count)
    }

    /// Reads since the checkpoint are none of the guest's any more, until it issues them again.
    private mutating func disownReads() {
        func isSince(_ queued: QueuedRequest) -> Bool { !queued.isKnownAtCheckpoint && queued.request.operation == .read }
        for queued in (unfinished + completed).filter(isSince) {
            queued.isOwned = false
            queued.covering = []
            if queued.stage == .delivered { queued.stage = .finished }
        }
        finished += delivered.filter { !$0.isOwned }
        delivered.removeAll { !$0.isOwned }
        unfinished.removeAll { !$0.isOwned && $0.isOutdated }
        finished.removeAll { !$0.isOwned && $0.isOutdated }
    }

    // MARK: Finding

    private func disownedRead(like request: GuestRequest) -> QueuedRequest? {
        (finished + unfinished).first { !$0.isOwned && !$0.isOutdated && $0.request.readsTheSame(as: request) }
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
        keptBytes = all.reduce(into: ByteCount.zero) { $0 += $1.request.byteLength }
    }
}
