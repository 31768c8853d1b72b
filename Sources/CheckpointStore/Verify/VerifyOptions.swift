// How to verify.

import Threading
public import Units

/// How far a verification is.
public struct VerifyProgress: Sendable {
    /// Bytes that were read and found sound so far.
    public var bytes: ByteCount
    /// What there is to read at most, by the segment table; nil when only one checkpoint is verified, or the table can't be read.
    public var expectedBytes: ByteCount?
}

/// How thoroughly to verify, and how fast.
public struct VerifyOptions: Sendable {
    /// Also decompress every run and compare every page with its hash, not only the checksum of what is stored.
    public var checksPages: Bool
    /// Threads that read at once.
    public var parallelism: Int
    /// Most bytes a second, over all threads; nil: as fast as it goes. At least 1.
    public var bytesPerSecond: ByteCount?
    /// Called by the working threads, for each leaf; must be quick.
    public var progress: (@Sendable (VerifyProgress) -> Void)?
    /// The clock that the rate is kept by.
    package var clock = RateClock.monotonic

    public init(
        checksPages: Bool = false, parallelism: Int = WriterOptions.defaultParallelism, bytesPerSecond: ByteCount? = nil,
        progress: (@Sendable (VerifyProgress) -> Void)? = nil
    ) {
        precondition(parallelism >= 1 && bytesPerSecond != .zero)
        self.checksPages = checksPages
        self.parallelism = parallelism
        self.bytesPerSecond = bytesPerSecond
        self.progress = progress
    }
}
