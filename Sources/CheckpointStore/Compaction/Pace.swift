// How fast compaction goes, how far it is, and whether it has been told to end.

import StoreFormat
import Threading
import Units

/// What the movers of one compaction share. Thread-safe.
final class Pace: Sendable {
    private let options: CompactionOptions
    private let medium: String
    private let limit: RateLimit?
    private let progress = Lock(CompactionProgress(movedBytes: .zero, plannedBytes: .zero, freedSegments: 0))
    /// How long a mover sleeps before it asks again whether it has been told to end.
    private static let napMicroseconds: UInt64 = 50_000

    init(_ options: CompactionOptions, medium: String) {
        self.options = options
        self.medium = medium
        limit = options.bytesPerSecond.map { RateLimit(bytesPerSecond: $0, clock: Self.interruptible(options)) }
    }

    /// A clock whose sleep ends early when compaction is told to end.
    private static func interruptible(_ options: CompactionOptions) -> RateClock {
        RateClock(nowMicroseconds: options.clock.nowMicroseconds) { wait in
            var rest = wait
            while rest > 0, !(options.isCancelled?() ?? false) {
                let nap = min(rest, napMicroseconds)
                options.clock.sleepMicroseconds(nap)
                rest -= nap
            }
        }
    }

    /// - Throws: `.cancelled`.
    func checkNotCancelled() throws(StoreError) {
        if options.isCancelled?() ?? false { throw StoreError(.cancelled, "compaction was cancelled", medium: medium) }
    }

    /// Waits until the rate allows so many bytes.
    ///
    /// - Throws: `.cancelled` when it is told to end meanwhile.
    func take(_ bytes: ByteCount) throws(StoreError) {
        guard let limit else { return }
        limit.take(bytes)
        try checkNotCancelled()
    }

    func plan(_ bytes: ByteCount) { progress.withLock { $0.plannedBytes = $0.movedBytes + bytes } }

    func didFree(_ segments: Int) { tell { $0.freedSegments += segments } }

    func didMove(_ bytes: ByteCount) { tell { $0.movedBytes += bytes } }

    private func tell(_ change: (inout CompactionProgress) -> Void) {
        let now = progress.withLock { progress in
            change(&progress)
            return progress
        }
        options.progress?(now)
    }
}
