// The memory of one instant without write faults that anybody has to answer: saved ahead in rounds, the rest copied in the stop.
//
// Invariants:
// - Every page that was written since the last finished checkpoint is in `unsaved` or is reported by the next scan.
// - In the stop nothing is saved, and nothing allocated that was not foreseen: pages are copied, and go into the store afterwards.

import CheckpointCore
import Glibc
import Threading
import Units

/// Saves one memory ahead of each instant. `prepare` to `finish` are called by one thread at a time.
public final class CopyAheadMemory: InstantMemory, CopyablePages {
    private struct State {
        var isArmed = false
        /// Pages that the checkpoint under way has put, or still has to put, and the next one will have to put if this one fails.
        var wanted = PageRanges()
        /// What is left for the stop besides what is written until then.
        var rest = PageRanges()
        var copied = Handed(CopiedPages(room: PageCount(1)))
        var report = InstantReport()
        /// What was found in the stop: joined with `wanted` later, since sorting takes its time.
        var writtenInStop = PageRanges()

        mutating func joinStop() {
            wanted = wanted.union(writtenInStop)
            writtenInStop = PageRanges()
        }
    }

    public let memory: GuestMemory
    private let tracker: AsynchronousTracker
    private let state = Lock(State())

    /// So little is copied in the stop without another round: about 0.3 ms.
    private static let fewPages = PageCount(512)
    private static let mostRounds = 8
    /// What may be copied in a stop, in about 3 ms; beyond that `AdaptiveMemory` protects pages instead.
    static let roomInStop = PageCount(4096)
    /// From so many on it is worth asking first how hard they are written: 64 MiB.
    private static let manyPages = PageCount(16384)
    private static let probeMicroseconds: UInt32 = 5000
    /// About half of what two processors save at best.
    private static let pagesSavedPerMillisecond: UInt64 = 125
    /// Room that is provided before the stop at most: 128 MiB.
    private static let mostRoom = PageCount(16384)

    /// Registers the memory with the kernel; tracking begins with the first checkpoint.
    /// - Throws: `.unsupported` when the kernel can't do it (Linux 6.7 can); `.permission`; `.busy`.
    public init(_ memory: GuestMemory) throws(EngineError) {
        self.memory = memory
        tracker = try AsynchronousTracker(memory)
    }

    deinit { close() }

    public func prepare(isFull: Bool, into region: any RegionSink, hasParent: Bool, workers: Int) throws(EngineError) {
        let before = state.withLock { state in
            state.report = InstantReport()
            state.joinStop()
            return state.wanted
        }
        var pages: PageRanges
        if isFull || !state.withLock({ $0.isArmed }) {
            // Arming wipes what the kernel has noted: until all is wanted, nobody may rely on its notes.
            state.withLock { $0.isArmed = false }
            try tracker.arm()
            pages = try memory.touchedPages()
            if hasParent { for range in PageRanges(memory.allPages).subtracting(pages).ranges { try region.putZeros(range) } }
            want(pages)
            state.withLock { $0.isArmed = true }
        } else {
            pages = try scan().union(before)
        }
        want(pages)
        if pages.count > Self.manyPages {
            let (written, isHard) = try probe()
            pages = pages.union(written)
            want(pages)
            // Saving ahead would not gain on the writers: nothing is saved twice in vain.
            guard !isHard else { return leave(pages) }
        }
        // What is written while a round is saved is the next round's.
        for _ in 0..<Self.mostRounds where pages.count > Self.fewPages {
            try PageSaver(self, into: region).save(pages, workers: workers) { _ in }
            let written = try scan()
            want(written)
            state.withLock { $0.report.rounds += 1 }
            let isShrinking = written.count.rawValue < pages.count.rawValue - pages.count.rawValue / 8
            pages = written
            // A few that come again and again are copied in the stop; they may still become fewer.
            guard isShrinking || pages.count <= Self.roomInStop else { break }
        }
        leave(pages)
    }

    /// What is written within some milliseconds, and whether that is more than could be saved meanwhile.
    private func probe() throws(EngineError) -> (written: PageRanges, isHard: Bool) {
        let before = try scan()
        want(before)
        let start = monotonicMicroseconds()
        usleep(Self.probeMicroseconds)
        let written = try scan()
        // A busy machine lets sleepers sleep longer.
        let elapsed = monotonicMicroseconds() - start
        return (before.union(written), written.count.rawValue * 1000 > Self.pagesSavedPerMillisecond * elapsed)
    }

    private func leave(_ rest: PageRanges) {
        state.withLock { state in
            state.rest = rest
            // What is left, and some for what is written until the stop; more of it than that is not copied by those who know better.
            state.copied.value.makeRoom(PageCount(max(Self.fewPages.rawValue, min(rest.count.rawValue, Self.mostRoom.rawValue)) * 2))
        }
    }

    /// What is left for the stop besides what is written until then.
    var restPages: PageCount { state.withLock { $0.rest.count } }

    public func mark(pending: PageRanges) throws(EngineError) {
        precondition(pending.isEmpty, "reads under way at the instant need copy on write")
        let written = try scan()
        try state.withLock { state throws(EngineError) in
            state.writtenInStop = written
            let rest = state.rest.union(written)
            try state.copied.value.take(rest, of: self)
            state.report.stopPages = rest.count
            state.report.copiedPages = rest.count
            state.report.mostCopies = rest.count
        }
    }

    public func save(
        into region: any RegionSink, hasParent: Bool, workers: Int, progress: @escaping @Sendable (PageCount, PageCount) -> Void
    ) throws(EngineError) {
        let copied = state.withLock { state in
            state.joinStop()
            state.report.wantedPages = state.wanted.count
            return state.copied
        }
        try copied.value.save(to: region)
        progress(copied.value.count, copied.value.count)
    }

    public func finish() {
        state.withLock { state in
            state.wanted = PageRanges()
            state.writtenInStop = PageRanges()
            state.rest = PageRanges()
            state.copied = Handed(CopiedPages(room: PageCount(1)))
        }
    }

    public func cancel() { state.withLock { $0.rest = PageRanges() } }

    public func close() { tracker.close() }

    public var report: InstantReport { state.withLock { $0.report } }

    /// Pages as they are at this moment.
    package func copy(_ pages: Range<PageIndex>, into destination: UnsafeMutableRawBufferPointer) throws(EngineError) {
        unsafe destination.copyMemory(from: UnsafeRawBufferPointer(memory.bytes(of: pages)))
    }

    private func want(_ pages: PageRanges) { state.withLock { $0.wanted = $0.wanted.union(pages) } }

    /// A scan that fails has lost what it found.
    private func scan() throws(EngineError) -> PageRanges {
        do throws(EngineError) { return try tracker.scan() } catch {
            state.withLock { $0.isArmed = false }
            throw error
        }
    }
}
