// How a checkpoint is written.

import Media
import Threading
import Units

/// How a checkpoint is written.
public struct WriterOptions: Sendable {
    /// Threads that compress and write at once; 1 does everything on the calling thread.
    public var parallelism: Int
    /// Labels to start with.
    public var labels: [String: String]
    /// Names that the commit points at the new checkpoint, whether they are new or led elsewhere.
    public var references: [String]
    /// Called by the working threads after each span, with the pages that the call under way has done so far (pages put singly:
    /// those of the span that was saved); must be quick.
    public var progress: (@Sendable (PageCount) -> Void)?
    /// What is stored anew because it has become dear to read; tests have their own rules.
    package var repacking: any RepackingRules = StandardRepacking()

    public init(
        parallelism: Int = WriterOptions.defaultParallelism, labels: [String: String] = [:], references: [String] = [],
        progress: (@Sendable (PageCount) -> Void)? = nil
    ) {
        precondition(parallelism >= 1)
        self.parallelism = parallelism
        self.labels = labels
        self.references = references
        self.progress = progress
    }

    /// One thread for each core.
    public static var defaultParallelism: Int { availableCores() }
}

extension MediumTraits {
    /// True when a write is a copy into mapped memory: more threads than cores gain nothing then.
    var writesAreCopies: Bool { kind == .ram || isPersistentMemory }
}
