// Two ways to the memory of one instant, behind one interface.
//
// Invariants:
// - What is saved is the memory as it was when `mark` returned, whatever is written afterwards.
// - A checkpoint that is cancelled, or whose calls throw, leaves what it would have saved to the next one.

import CheckpointCore
import Units

/// How the memory of an instant is got although it goes on being written.
public enum InstantMethod: String, Sendable, CaseIterable {
    /// Pages are protected ahead of the instant and copied before they are written: the shortest stop, and the only way when devices
    /// have reads under way at the instant. Each page's first write costs a fault that a thread has to answer.
    case copyOnWrite
    /// Pages are saved ahead of the instant, and again when they are written; in the stop the rest is copied. Writers
    /// never wait; the stop includes a scan of the page tables (a millisecond for each GiB), and pages that are written all the time are copied in it.
    case copyAhead
    /// The latter where that gains on the writers; where it does not the former, of all pages, with copies ahead of the store in up to a quarter of
    /// the memory that the host has left.
    case adaptive
}

/// One memory's part of checkpoints. The calls of one checkpoint come in the order `prepare`, `mark`, `save`, `finish`; `cancel` at any point.
public protocol InstantMemory: Sendable {
    var memory: GuestMemory { get }
    /// Gets ready for an instant, while the memory is being written.
    ///
    /// - Parameters:
    ///   - isFull: all pages are wanted, and not only those that were written since the last checkpoint that was finished.
    ///   - region: where they go. Some may be put already, and again later.
    ///   - hasParent: pages that are not put are those of a parent.
    ///   - workers: threads to use.
    func prepare(isFull: Bool, into region: any RegionSink, hasParent: Bool, workers: Int) throws(EngineError)
    /// The instant. Nobody writes the memory during the call.
    ///
    /// - Parameter pending: pages that devices are about to write for requests issued before; the checkpoint gets what they bring.
    func mark(pending: PageRanges) throws(EngineError)
    /// Saves all wanted pages as they were at the instant. Nothing is left to be copied when it returns.
    func save(
        into region: any RegionSink, hasParent: Bool, workers: Int, progress: @escaping @Sendable (PageCount, PageCount) -> Void
    ) throws(EngineError)
    /// The checkpoint is durable.
    func finish() throws(EngineError)
    /// The checkpoint is given up.
    func cancel()
    /// Ends everything. Harmless to repeat.
    func close()
    var report: InstantReport { get }
}

/// What one checkpoint of a memory came to.
public struct InstantReport: Sendable, Equatable {
    /// Rounds before the stop.
    public var rounds = 0
    /// Pages that were protected or copied in the stop.
    public var stopPages = PageCount.zero
    /// Pages that the checkpoint wanted.
    public var wantedPages = PageCount.zero
    /// Write faults that were answered between the instant and the end.
    public var faults = 0
    /// Pages copied aside because they were written before they were saved, or in the stop.
    public var copiedPages = PageCount.zero
    /// The most such copies that were kept at once.
    public var mostCopies = PageCount.zero

    public init() {}
}
