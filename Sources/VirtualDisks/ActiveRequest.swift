// A request on its way, and what a disk knows of all of them.
//
// Invariant: everything in here is guarded by the disk's lock.

import CheckpointCore
import Units

/// One request from `submit` until its completion has returned.
final class ActiveRequest: @unchecked Sendable {
    enum Phase {
        /// Waits for earlier requests.
        case waiting
        /// Being read or written.
        case issued
        /// Its own reading has ended; a read that was issued again for the checkpoint may not have.
        case settling
        /// Done; whoever submitted it is being told.
        case delivering
        /// Whoever submitted it has been told.
        case delivered
    }

    let id: RequestID
    let operation: DiskOperation
    let range: Range<DiskOffset>
    let groups: Range<Int>
    let buffer: GuestBuffer?
    let completion: DiskCompletion
    var phase = Phase.waiting
    /// It was under way at the instant of the checkpoint that is being taken.
    var isPending = false
    /// The overlay that it is written to; nil: none, or not issued yet.
    var target: CowFile?
    var outcome: Result<Void, EngineError>?
    /// Why an overlay could not do its part.
    var overlayFailure: EngineError?
    var wasReissued = false
    var isReissueUnderWay = false

    init(_ id: RequestID, _ request: DiskRequest, _ range: Range<DiskOffset>, _ geometry: DiskGeometry) {
        self.id = id
        operation = request.operation
        self.range = range
        groups = range.isEmpty ? 0..<0 : geometry.groups(of: range)
        buffer = request.buffer
        completion = request.completion
    }

    var ruled: RuledRequest { RuledRequest(operation: operation, range: range, groups: groups) }
    var isDone: Bool { phase == .delivering || phase == .delivered }
    /// Whether it is still to read or write by itself.
    var isUnderWay: Bool { phase == .waiting || phase == .issued }
    var summary: PendingRequest { PendingRequest(id: id, operation: operation, range: range, outcome: outcome) }
}

/// What a disk's lock guards.
struct DiskState {
    /// In issue order.
    var requests: [ActiveRequest] = []
    var requestCount: UInt64 = 0
    /// Newest first.
    var overlays: [CowFile] = []
    /// New requests wait; pending ones go on.
    var isHeld = false
    /// The groups written since the newest checkpoint's instant; nil: there was none, so all count as written.
    var changed: GroupSet?
    var checkpoint: CheckpointProgress?
    var checkpointCount = 0
    /// Hears of what reads are about to write.
    var observer: (any DeviceWriteObserver)?
}

/// The checkpoint that is being taken.
struct CheckpointProgress {
    /// Tells one checkpoint of the disk from another.
    var number = 0
    let overlay: CowFile
    /// To count in from the instant on: made before, since it takes time.
    var fresh: GroupSet
    var isSwitched = false
    var memory: (any CheckpointedMemory)?
    /// The requests that were under way at the instant.
    var pending: [ActiveRequest] = []
    var changedSince: GroupSet?
    var reissueFailure: EngineError?
    /// Why an overlay can't take the machine's writes: they wait.
    var overlayFailure: EngineError?
    /// Told of that; nil: the machine is.
    let onFailure: (@Sendable (EngineError) -> Void)?

    init(_ overlay: CowFile, _ geometry: DiskGeometry, onFailure: (@Sendable (EngineError) -> Void)?) {
        self.overlay = overlay
        self.onFailure = onFailure
        fresh = GroupSet(count: geometry.groupCount)
    }
}
