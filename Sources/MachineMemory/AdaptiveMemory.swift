// The memory of an instant by whichever way suits how hard it is being written, decided anew at each checkpoint.
//
// Writes are noted by the kernel between checkpoints, which costs a writer a microsecond for each page. A checkpoint is saved ahead of the
// instant as long as that gains on the writers, and the rest is copied in the stop. Where it does not, all of the memory is protected and
// copied on write, and the next checkpoint concerns all of it: so does what such writers leave clean.
//
// Invariant: at any time one of the two ways has the memory, and a change between them loses no write: after it everything counts as written.

import CheckpointCore
import Threading
import Units

/// Chooses between `CopyAheadMemory` and `CopyOnWriteMemory`. `prepare` to `finish` are called by one thread at a time.
public final class AdaptiveMemory: InstantMemory {
    private enum Way {
        case ahead(CopyAheadMemory)
        case onWrite(CopyOnWriteMemory)
        case none

        var instant: (any InstantMemory)? {
            switch self {
            case .ahead(let memory): memory
            case .onWrite(let memory): memory
            case .none: nil
            }
        }
    }

    public let memory: GuestMemory
    private let options: CopyOnWriteMemory.Options
    private let way: Lock<Way>
    /// Whether the kernel notes writes by itself.
    private let notesWrites: Bool
    private let lastReport = Lock(InstantReport())

    /// Registers the memory with the kernel.
    /// - Parameter options: for memory that is written too hard to be saved ahead.
    /// - Throws: `.unsupported`, `.permission`, `.busy`. Kernels that can't note writes by themselves (before Linux 6.7) are no reason: all
    ///   checkpoints are copied on write there, with clean pages kept protected.
    public init(_ memory: GuestMemory, options: CopyOnWriteMemory.Options = CopyOnWriteMemory.Options()) throws(EngineError) {
        self.memory = memory
        self.options = options
        way = Lock(.none)
        notesWrites = try KernelFeatures.current().tracksAsynchronously
        let first = try usualWay()
        way.withLock { $0 = first }
    }

    /// What memory begins with, and comes back to.
    private func usualWay() throws(EngineError) -> Way {
        notesWrites ? .ahead(try CopyAheadMemory(memory)) : .onWrite(try CopyOnWriteMemory(memory, options: options))
    }

    deinit { close() }

    private func instant() -> any InstantMemory {
        guard let instant = way.withLock({ $0.instant }) else { preconditionFailure("memory that was closed takes no checkpoints") }
        return instant
    }

    public func prepare(isFull: Bool, into region: any RegionSink, hasParent: Bool, workers: Int) throws(EngineError) {
        if way.withLock({ if case .none = $0 { true } else { false } }) {
            // The last change between the two ways failed halfway: nobody has the memory.
            try change(to: usualWay)
        }
        let instant = instant()
        try instant.prepare(isFull: isFull, into: region, hasParent: hasParent, workers: workers)
        guard let ahead = instant as? CopyAheadMemory, ahead.restPages > CopyAheadMemory.roomInStop else { return }
        // What was saved ahead is not lost: pages that have not changed since are found to be equal.
        var hard = options
        hard.keepsProtection = false
        if hard.copyLimit == nil { hard.copyLimit = try Self.roomForCopies() }
        try change(to: { () throws(EngineError) in .onWrite(try CopyOnWriteMemory(memory, options: hard)) })
        try self.instant().prepare(isFull: true, into: region, hasParent: true, workers: workers)
    }

    /// A share of what the host can give: copies are made ahead of the store, as fast as memory can be copied.
    private static func roomForCopies() throws(EngineError) -> ByteCount {
        let available = try MappedKind.number("/proc/meminfo", "MemAvailable:") ?? 0
        return max(.mebibytes(16), .kibibytes(min(available, 1 << 50) / 4))
    }

    /// Ends one way before the other begins: two can't have the memory at once.
    private func change(to next: () throws(EngineError) -> Way) throws(EngineError) {
        let old = way.withLock { way in
            defer { way = .none }
            return way
        }
        old.instant?.close()
        let new = try next()
        way.withLock { $0 = new }
    }

    public func mark(pending: PageRanges) throws(EngineError) { try instant().mark(pending: pending) }

    public func save(
        into region: any RegionSink, hasParent: Bool, workers: Int, progress: @escaping @Sendable (PageCount, PageCount) -> Void
    ) throws(EngineError) {
        // Untouched pages were put as zeros when the checkpoint was saved ahead.
        try instant().save(into: region, hasParent: hasParent, workers: workers, progress: progress)
    }

    public func finish() throws(EngineError) {
        let instant = instant()
        try instant.finish()
        lastReport.withLock { $0 = instant.report }
        guard notesWrites, instant is CopyOnWriteMemory else { return }
        try change(to: usualWay)
    }

    public func cancel() {
        way.withLock { $0.instant }?.cancel()
        // A memory that was being copied on write is given back to the kernel's tracking by the next checkpoint.
        if notesWrites, let onWrite = way.withLock({ $0.instant }) as? CopyOnWriteMemory {
            way.withLock { $0 = .none }
            onWrite.close()
        }
    }

    public func close() {
        let old = way.withLock { way in
            defer { way = .none }
            return way
        }
        old.instant?.close()
    }

    public var report: InstantReport { lastReport.withLock { $0 } }
}
