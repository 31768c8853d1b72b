// Where a repair writes what can't stand in its old place.
//
// Invariant: nothing of it counts before it was finished, flushed and committed.

import Media
import StoreFormat
import Units

/// A block that was written anew and is to be forwarded.
struct RebuiltBlock: Sendable {
    /// As trees name it.
    let pointer: BlockPointer
    let copy: BlockPointer
    /// Runs: the places that leaves list. Others: 1.
    let listed: UInt16
    /// Runs: the places that the copy has, some of those listed. Others: 1.
    let kept: UInt16
}

/// Appends blocks of one class to segments of its own. Confined to one thread.
final class RepairOutput {
    let appender: SegmentAppender
    private let store: CheckpointStore
    private let queue: WriteQueue

    init(_ store: CheckpointStore, _ segmentClass: SegmentClass) {
        self.store = store
        queue = WriteQueue(medium: store.medium, threads: 0, buffers: 4, bufferBytes: SegmentAppender.bufferBytes(store.geometry))
        appender = SegmentAppender(store: store, segmentClass: segmentClass, id: store.environment.newID(), queue: queue, mayUseReserve: true)
    }

    /// Puts the commit record behind what was written, and writes all of it. Not durable before the next flush.
    func finish() throws(StoreError) -> [SegmentUse] {
        let uses = try appender.finish(record: nil, name: "")
        try queue.drain()
        return uses
    }

    /// Gives everything up that has not been finished, and the claims. Must be called once, in any case.
    func close() {
        appender.abandon()
        queue.close()
        store.release(appender.claims)
    }
}
